"""A table of invalid input: each row is refused in clear words, and harms nothing, not even the restart after a kill.

Rows of the first table go through `Store`, as a job's would; those of the second through the raw stubs, as anything that
speaks Qdrant's protocol might. For the embedded server only: it has a key, a message limit, and it is killed.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import kill_server
from vector_store.client import Client, connect
from vector_store.codec import encode
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMismatch, CollectionMissing, InvalidPoint, StoreError
from vector_store.retriever import Retriever
from vector_store.schema import Manifest, Parts, Point, Query, SparseVector
from vector_store.server.access import split
from vector_store.server.process import embedded_server
from vector_store.store import Store

KEY = "right"
MESSAGE_BYTES = 8 * 2**20
ROW = 1024
"""Width of the raw collection's multivector: more than 1024 rows of it are more elements than Qdrant allows."""


class Memory(NamedTuple):
    """A collection of five good points, and a raw one with a vector of every kind, that nothing may harm."""

    path: Path
    url: str
    client: Client
    store: Store
    config: StoreConfig
    manifest: Manifest
    points: list[Point]
    others: list[Point]
    raw: str

    def assert_intact(self) -> None:
        with grpc.insecure_channel(self.url.removeprefix("http://")) as channel:
            health = api.QdrantStub(channel).HealthCheck(api.HealthCheckRequest(), timeout=30)
        assert "embedded" in health.title
        assert self.store.manifest() == self.manifest
        assert self.store.count() == len(self.points)
        found = self.store.fetch([point.id for point in self.points], Parts(text=True))
        assert found.texts == [[point.text] for point in self.points]
        for row, point in enumerate(self.points):
            assert np.array_equal(found.states[row][found.mask[row]], point.states)
        assert not self.store.existing([point.id for point in self.others])
        count = api.CountPoints(collection_name=self.raw, exact=True)
        assert self.client.call(self.client.points.Count, count, 30).result.count == 1
        get = api.GetPoints(collection_name=self.raw, ids=[api.PointId(num=1)])
        get.with_vectors.enable = get.with_payload.enable = True
        (point,) = self.client.call(self.client.points.Get, get, 30).result
        assert point.payload["text"].string_value == "good"
        assert set(point.vectors.vectors.vectors) == {"dense", "many", "words"}
        assert len(point.vectors.vectors.vectors["many"].multi_dense.vectors) == 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    path = tmp_path_factory.mktemp("bad-points")
    with embedded_server(path, api_key=KEY, message_bytes=MESSAGE_BYTES) as url:
        yield path, split(url)[0]


@contextmanager
def new_memory(path: Path, url: str, manifest: Manifest, points: list[Point]) -> Iterator[Memory]:
    config = StoreConfig(
        url=url, collection=f"c-{uuid.uuid4()}", message_bytes=MESSAGE_BYTES, api_key_env="NO_SUCH_VARIABLE"
    )
    with connect(config, url, api_key=KEY) as client:
        store = Store(client, config)
        store.ensure(manifest)
        store.upsert(points[:5])
        raw = f"raw-{uuid.uuid4()}"
        client.call(client.collections.Create, raw_collection(raw), 30)
        client.call(client.points.Upsert, api.UpsertPoints(collection_name=raw, wait=True, points=[raw_point()]), 30)
        yield Memory(path, url, client, store, config, manifest, points[:5], points[5:], raw)
        store.delete_collection()
        client.call(client.collections.Delete, api.DeleteCollection(collection_name=raw), 30)


@pytest.fixture(scope="module")
def memory(served, manifest, make_points) -> Iterator[Memory]:
    """One for the whole table, since no row may harm it."""
    with new_memory(*served, manifest, make_points(8)) as memory:
        yield memory


@pytest.fixture
def another_memory(served, manifest, make_points) -> Iterator[Memory]:
    with new_memory(*served, manifest, make_points(8)) as memory:
        yield memory


class Bad(NamedTuple):
    """One row: what is tried, how it must be refused, and which words must say so."""

    name: str
    attempt: Callable[[Memory], Any]
    error: type[Exception]
    words: tuple[str, ...]


# ---------------------------------------------------------------- through Store


def bad_point(name: str, *words: str, **changes: Any) -> Bad:
    """A point that differs from a good one in these fields, sent between two good ones: none of the three is stored."""

    def attempt(memory: Memory) -> None:
        first, middle, last = memory.others
        memory.store.upsert([first, replace(middle, **changes), last])

    return Bad(name, attempt, InvalidPoint, words)


def oversized_point(memory: Memory) -> None:
    memory.store.upsert([replace(memory.others[0], text="x" * MESSAGE_BYTES)])


def with_key(key: str | None, ask: Callable[[Store, Memory], Any]) -> Callable[[Memory], None]:
    def attempt(memory: Memory) -> None:
        with connect(memory.config, memory.url, api_key=key) as client:
            ask(Store(client, memory.config), memory)

    return attempt


def elsewhere(ask: Callable[[Store, Memory], Any]) -> Callable[[Memory], None]:
    """Ask a collection that nobody made."""

    def attempt(memory: Memory) -> None:
        ask(Store(memory.client, memory.config.model_copy(update={"collection": "nowhere"})), memory)

    return attempt


def upsert(store: Store, memory: Memory) -> None:
    store.upsert(memory.others)


NAN, INFINITE = float("nan"), float("inf")
REMEDY = "leave this text out or encode it again"
TWO = np.zeros(2, np.int32)
UPSIDE_DOWN = np.array([[0, 1, 2, 3], [0, 1, INFINITE, 3]], np.float16)
KEY_REMEDY = "set $NO_SUCH_VARIABLE to its key"

THROUGH_STORE = [
    bad_point("states of the wrong dimension", "states of shape (2, 5) for 2 token ids, wanted (2, 4)", REMEDY,
              states=np.zeros((2, 5), np.float16), token_ids=TWO),
    bad_point("states of one axis", "states of shape (4,) for 4 token ids, wanted (4, 4)", REMEDY,
              states=np.zeros(4, np.float16), token_ids=np.zeros(4, np.int32)),
    bad_point("no states at all", "token ids of shape (0,), wanted (1 to 8,)", REMEDY,
              states=np.zeros((0, 4), np.float16), token_ids=TWO[:0]),
    bad_point("more tokens than the manifest has", "token ids of shape (9,), wanted (1 to 8,)", REMEDY,
              states=np.zeros((9, 4), np.float16), token_ids=np.zeros(9, np.int32)),
    bad_point("token ids that do not match", "states of shape (2, 4) for 3 token ids, wanted (3, 4)", REMEDY,
              states=np.zeros((2, 4), np.float16), token_ids=np.zeros(3, np.int32)),
    bad_point("NaN states", "states hold NaN or infinite values", REMEDY,
              states=np.full((2, 4), NAN, np.float16), token_ids=TWO),
    bad_point("one infinite state", "states hold NaN or infinite values", REMEDY, states=UPSIDE_DOWN, token_ids=TWO),
    bad_point("a vector of the wrong dimension", "vector of shape (3,), wanted (4,)", REMEDY, vector=np.ones(3, np.float32)),
    bad_point("a vector with NaN", "vector holds NaN, infinite or larger values", REMEDY,
              vector=np.full(4, NAN, np.float32)),
    bad_point("an infinite residual", "residual of 0123456789ab holds NaN, infinite or larger values", REMEDY,
              residuals={"0123456789ab": np.full(4, np.inf, np.float32)}),
    bad_point("a negative token id", "token ids from -1 to 1, wanted 0 to 2147483647", REMEDY,
              states=np.ones((2, 4), np.float16), token_ids=np.array([-1, 1], np.int32)),
    bad_point("a sentence vector of the wrong dimension", "shape (3,), wanted (4,)", REMEDY,
              sentence=np.zeros(3, np.float32)),
    bad_point("an infinite sentence vector", "sentence vector holds NaN or infinite values", REMEDY,
              sentence=np.array([0, 0, 0, -INFINITE], np.float32)),
    bad_point("no sentence vector", "has no sentence vector, the collection has a dense index", REMEDY, sentence=None),
    bad_point("a repeated sparse index", "keywords repeat an index", REMEDY,
              keywords=SparseVector(np.array([7, 7], np.uint32), np.ones(2, np.float32))),
    bad_point("sparse indices without values", "keywords have 2 indices and 1 values", REMEDY,
              keywords=SparseVector(np.array([7, 8], np.uint32), np.ones(1, np.float32))),
    bad_point("NaN keywords", "keywords hold NaN or infinite values", REMEDY,
              keywords=SparseVector(np.array([7], np.uint32), np.full(1, NAN, np.float32))),
    bad_point("an id that is no UUID", "point 5: its id is not a UUID in lower-case canonical form", REMEDY, id="5"),
    bad_point("an id in capitals", "its id is not a UUID in lower-case canonical form", REMEDY,
              id="6BA7B810-9DAD-11D1-80B4-00C04FD430C8"),
    Bad("a point larger than a message", oversized_point, InvalidPoint,
        (f"store.message_bytes is {MESSAGE_BYTES}", "raise it or store fewer tokens")),
    Bad("writing to an unknown collection", elsewhere(upsert), CollectionMissing, ("`nowhere` doesn't exist",)),
    Bad("reading from an unknown collection", elsewhere(lambda store, memory: store.fetch([memory.points[0].id])),
        CollectionMissing, ("`nowhere` doesn't exist",)),
    Bad("writing without a key", with_key(None, upsert), StoreError, ("no API key was sent", KEY_REMEDY)),
    Bad("writing with a wrong key", with_key("wrong", upsert), StoreError,
        ("the API key sent is not accepted", KEY_REMEDY)),
    Bad("reading with a wrong key", with_key("wrong", lambda store, memory: store.count()), StoreError,
        ("the API key sent is not accepted", KEY_REMEDY)),
    Bad("dropping with a key that only begins right", with_key(KEY[:-1], lambda store, _: store.delete_collection()),
        StoreError, ("the API key sent is not accepted", KEY_REMEDY)),
    Bad("a second manifest",
        lambda memory: memory.store.ensure(memory.manifest.model_copy(update={"fingerprint": "f2", "layer": 1})),
        CollectionMismatch,
        ("was written by test with fingerprint='f1', layer=3", "wants fingerprint='f2', layer=1",
         "another store.collection")),
    bad_point("states beyond half precision", "states", REMEDY,
              states=np.full((2, 4), 1e6, np.float32), token_ids=TWO),
    bad_point("token ids beyond 32 bits", "token ids", REMEDY,
              states=np.zeros((2, 4), np.float16), token_ids=np.full(2, 2**40)),
    bad_point("a negative sparse index", "keywords", REMEDY,
              keywords=SparseVector(np.array([-1]), np.ones(1, np.float32))),
    bad_point("a text that is a number", "text", REMEDY, text=5),
    bad_point("a document that is nothing", "document", REMEDY, document=None),
    bad_point("a text that no encoding can hold", "text", REMEDY, text="half of a pair: \ud800"),
    Bad("an unknown collection, and what to do", elsewhere(upsert), CollectionMissing,
        ("`nowhere` doesn't exist", "python jobs/ingest.py")),
]  # fmt: skip


# ---------------------------------------------------------------- through the raw stubs


def raw_collection(name: str) -> api.CreateCollection:
    request = api.CreateCollection(collection_name=name)
    vectors = request.vectors_config.params_map.map
    vectors["dense"].size, vectors["dense"].distance = 4, api.Distance.Dot
    vectors["many"].size, vectors["many"].distance = ROW, api.Distance.Dot
    vectors["many"].multivector_config.comparator = api.MultiVectorComparator.MaxSim
    vectors["many"].hnsw_config.m = 0
    request.sparse_vectors_config.map["words"].modifier = api.Modifier.Idf
    return request


def dense(*values: float) -> api.Vector:
    return api.Vector(dense=api.DenseVector(data=values))


def many(*widths: int) -> api.Vector:
    """A multivector whose rows have these widths."""
    return api.Vector(multi_dense=api.MultiDenseVector(vectors=[api.DenseVector(data=[1.0] * w) for w in widths]))


def words(indices: list[int], values: list[float]) -> api.Vector:
    return api.Vector(sparse=api.SparseVector(indices=indices, values=values))


def raw_point(number: int = 1, text: str = "good", **vectors: api.Vector) -> api.PointStruct:
    """A good point, but for the vectors given."""
    point = api.PointStruct(id=api.PointId(num=number))
    point.payload["text"].string_value = text
    good = {"dense": dense(1, 2, 3, 4), "many": many(ROW, ROW), "words": words([3, 5], [1, 2])}
    for name, vector in {**good, **vectors}.items():
        point.vectors.vectors.vectors[name].CopyFrom(vector)
    return point


def raw_upsert(memory: Memory, *points: api.PointStruct) -> None:
    request = api.UpsertPoints(collection_name=memory.raw, wait=True, points=points)
    memory.client.call(memory.client.points.Upsert, request, 30)


def bad_vector(name: str, *found: str, **vectors: api.Vector) -> Bad:
    """A raw point with such a vector after a good one: neither is stored."""
    return Bad(
        name, lambda memory: raw_upsert(memory, raw_point(2), raw_point(3, **vectors)), InvalidPoint, ("Upsert", *found)
    )


def bad_payload(name: str, found: str, value: api.Value) -> Bad:
    def attempt(memory: Memory) -> None:
        point = raw_point(2)
        point.payload["bad"].CopyFrom(value)
        raw_upsert(memory, raw_point(3), point)

    return Bad(name, attempt, InvalidPoint, ("payload", found))


def bad_id(name: str, found: str, point_id: api.PointId) -> Bad:
    def attempt(memory: Memory) -> None:
        point = raw_point(2)
        point.id.CopyFrom(point_id)
        raw_upsert(memory, point)

    return Bad(name, attempt, InvalidPoint, (found, "neither an unsigned integer nor a UUID"))


def unnamed_vector(memory: Memory) -> None:
    point = api.PointStruct(id=api.PointId(num=2))
    point.vectors.vector.CopyFrom(dense(1, 2, 3, 4))
    raw_upsert(memory, point)


def repeated_index_of_a_reference(memory: Memory) -> None:
    """A stored reference's own message, spoilt on its way: what `Store` would have refused comes past it."""
    message = encode(memory.others[0], memory.manifest)
    message.vectors.vectors.vectors["keywords"].CopyFrom(words([7, 7], [1, 1]))
    request = api.UpsertPoints(collection_name=memory.config.collection, wait=True, points=[message])
    memory.client.call(memory.client.points.Upsert, request, 30)


def set_bad_payload(memory: Memory) -> None:
    request = api.SetPayloadPoints(collection_name=memory.raw, wait=True)
    request.points_selector.points.ids.add().num = 1
    request.payload["text"].double_value = NAN
    memory.client.call(memory.client.points.SetPayload, request, 30)


def oversized_message(memory: Memory) -> None:
    generous = memory.config.model_copy(update={"message_bytes": 2 * MESSAGE_BYTES})
    with connect(generous, memory.url, api_key=KEY) as client:
        request = api.UpsertPoints(collection_name=memory.raw, points=[raw_point(2, text="x" * MESSAGE_BYTES)])
        client.call(client.points.Upsert, request, 30)


def no_message_at_all(memory: Memory) -> None:
    with grpc.insecure_channel(memory.url.removeprefix("http://")) as channel:
        channel.unary_unary("/qdrant.Points/Upsert")(b"\xff\xfe no protobuf", metadata=(("api-key", KEY),), timeout=30)


def raw_call(stub: str, method: str, request: Any) -> Callable[[Memory], None]:
    return lambda memory: memory.client.call(getattr(getattr(memory.client, stub), method), request, 30)


def nested(number: float) -> api.Value:
    item = api.Value(list_value=api.ListValue(values=[api.Value(double_value=number)]))
    return api.Value(struct_value=api.Struct(fields={"inner": item}))


def search(*values: float) -> Callable[[Memory], None]:
    def attempt(memory: Memory) -> None:
        request = api.QueryPoints(collection_name=memory.raw, using="dense")
        request.query.nearest.dense.data.extend(values)
        memory.client.call(memory.client.points.Query, request, 30)

    return attempt


BY_RAW_STUBS = [
    bad_vector("a dense vector of the wrong dimension", "expected dim: 4, got 3", dense=dense(1, 2, 3)),
    bad_vector("an empty dense vector", "expected dim: 4, got 0", dense=dense()),
    bad_vector("a NaN vector", "'dense' has NaN or infinite values", dense=dense(1, 2, NAN, 4)),
    bad_vector("an infinite vector", "'dense' has NaN or infinite values", dense=dense(1, 2, INFINITE, 4)),
    bad_vector("infinities that cancel out", "'dense' has NaN or infinite values",
               dense=dense(INFINITE, -INFINITE, 0, 0)),
    bad_vector("a ragged multivector", f"expected dim: {ROW}, got {ROW - 1}", many=many(ROW, ROW - 1)),
    bad_vector("a multivector with an empty row", f"expected dim: {ROW}, got 0", many=many(ROW, 0)),
    bad_vector("a multivector without rows", "'many'", many=many()),
    bad_vector("a multivector over Qdrant's limit", f"{1025 * ROW} elements, at most 1048576 are allowed",
               many=many(*[ROW] * 1025)),
    bad_vector("one vector where many belong", "'many' is a multivector, found a single vector",
               many=dense(*[1.0] * ROW)),
    bad_vector("many vectors where one belongs", "'dense' is a single vector, found a multivector",
               dense=many(4, 4)),
    bad_vector("a repeated sparse index", "'words' repeats an index", words=words([7, 7], [1, 1])),
    bad_vector("sparse indices without values", "2 indices and 1 values", words=words([7, 8], [1])),
    bad_vector("a NaN sparse value", "'words' has NaN or infinite values", words=words([7], [NAN])),
    bad_vector("a dense vector where a sparse one belongs", "'words' is sparse, found a dense one",
               words=dense(1, 2, 3, 4)),
    bad_vector("a sparse vector where a dense one belongs", "dense", dense=words([1], [1])),
    bad_vector("a vector of an unknown name", "Not existing vector name error: other", other=dense(1, 2, 3, 4)),
    bad_vector("a vector that says nothing", "got 0", dense=api.Vector()),
    Bad("a vector without a name", unnamed_vector, InvalidPoint, ("Not existing vector name",)),
    Bad("a repeated index in a reference", repeated_index_of_a_reference, InvalidPoint,
        ("'keywords' repeats an index",)),
    bad_payload("NaN in the payload", "nan is not a finite number", api.Value(double_value=NAN)),
    bad_payload("infinity in the payload", "inf is not a finite number", api.Value(double_value=INFINITE)),
    bad_payload("infinity deep in the payload", "-inf is not a finite number", nested(-INFINITE)),
    Bad("NaN set into the payload", set_bad_payload, InvalidPoint, ("nan is not a finite number",)),
    bad_id("an id that is no UUID", "'not a uuid'", api.PointId(uuid="not a uuid")),
    bad_id("no id", "''", api.PointId()),
    Bad("a message over the server's limit", oversized_message, InvalidPoint,
        ("larger than max", "raise store.message_bytes")),
    Bad("bytes that are no message", no_message_at_all, grpc.RpcError, ("deserializing",)),
    Bad("writing to an unknown collection",
        raw_call("points", "Upsert", api.UpsertPoints(collection_name="nowhere", points=[raw_point()])),
        CollectionMissing, ("Upsert", "`nowhere` doesn't exist")),
    Bad("deleting from an unknown collection",
        raw_call("points", "Delete", api.DeletePoints(collection_name="nowhere", points=api.PointsSelector(
            points=api.PointsIdsList(ids=[api.PointId(num=1)])))),
        CollectionMissing, ("Delete", "`nowhere` doesn't exist")),
    Bad("deleting nothing in particular",
        lambda memory: memory.client.call(
            memory.client.points.Delete, api.DeletePoints(collection_name=memory.raw), 30),
        InvalidPoint, ("no points are selected; give ids or a filter",)),
    Bad("searching with the wrong dimension", search(1, 2), InvalidPoint, ("Query", "expected dim: 4, got 2")),
    Bad("searching with NaN", search(1, 2, 3, NAN), InvalidPoint, ("Query", "NaN or infinite values")),
]  # fmt: skip

TABLE = [*THROUGH_STORE, *BY_RAW_STUBS]


def refuse(memory: Memory, bad: Bad) -> None:
    with pytest.raises(bad.error) as caught:
        bad.attempt(memory)
    message = caught.value.details() if isinstance(caught.value, grpc.RpcError) else str(caught.value)
    for found in bad.words:
        assert found in message
    assert "\n" not in message


@pytest.mark.parametrize("bad", TABLE, ids=[bad.name for bad in TABLE])
def test_invalid_input_is_refused_in_clear_words_and_leaves_the_store_intact(memory, bad):
    refuse(memory, bad)
    memory.assert_intact()


def test_after_all_invalid_input_a_killed_server_restarts_and_accepts_valid_points(another_memory):
    memory = another_memory
    for bad in TABLE:
        refuse(memory, bad)
    kill_server(memory.path, 60)
    with embedded_server(memory.path, api_key=KEY, message_bytes=MESSAGE_BYTES) as again:
        assert split(again)[0] == memory.url
        memory.assert_intact()
        memory.store.upsert(memory.others)
        assert memory.store.count() == len(memory.points) + len(memory.others)
        retriever = Retriever(memory.client, memory.config, memory.manifest, "keywords")
        asking = memory.others[0]
        found = retriever.neighbours([Query(str(uuid.uuid4()), asking.keywords)])
        assert found.rungs == ["live"]
        assert found.ids[0]
