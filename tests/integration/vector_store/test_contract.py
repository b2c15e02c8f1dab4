"""What any Qdrant must do for us, through the official client and the raw stubs. Knows not which server answers."""

import multiprocessing
import os
import threading
import time
import uuid
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as api
from qdrant_client.http.exceptions import UnexpectedResponse

from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import InvalidPoint
from vector_store.retriever import Retriever
from vector_store.schema import Query
from vector_store.store import Store

NAME = "contract"
VECTORS = {
    "dense": models.VectorParams(size=4, distance=models.Distance.COSINE),
    "many": models.VectorParams(
        size=2,
        distance=models.Distance.DOT,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        hnsw_config=models.HnswConfigDiff(m=0),
    ),
}
SPARSE = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}


@pytest.fixture
def official(server_url):
    client = QdrantClient(
        url=server_url,
        grpc_port=urlsplit(server_url).port or 6334,
        prefer_grpc=True,
        check_compatibility=False,
        api_key=os.environ.get("QDRANT_API_KEY"),
    )
    yield client
    client.close()


@pytest.fixture
def filled(official):
    """Ten points: number i has dense axis i % 4, word i % 5, group a or b, and a payload of every type."""
    official.delete_collection(NAME)
    official.create_collection(
        NAME, vectors_config=VECTORS, sparse_vectors_config=SPARSE, metadata={"made_by": "tests", "version": 3}
    )
    official.upsert(
        NAME,
        [
            models.PointStruct(
                id=i,
                vector={
                    "dense": [float(axis == i % 4) + i / 100 for axis in range(4)],
                    "many": [[float(i), 1.0], [0.0, 1.0]],
                    "words": models.SparseVector(indices=[i % 5, 100], values=[1.0, 0.5]),
                },
                payload={"group": "ab"[i % 2], "n": i, "nested": {"list": [i, None, True, 0.5, "x"]}},
            )
            for i in range(10)
        ],
    )
    yield official
    official.delete_collection(NAME)


def ids(points):
    return [point.id for point in points]


def group(value):
    return models.Filter(must=[models.FieldCondition(key="group", match=models.MatchValue(value=value))])


def test_a_collection_tells_its_settings_and_metadata(filled):
    info = filled.get_collection(NAME)
    assert info.status == models.CollectionStatus.GREEN
    assert info.points_count == 10
    assert info.config.metadata == {"made_by": "tests", "version": 3}
    assert info.config.params.vectors["dense"].size == 4
    assert info.config.params.vectors["dense"].distance == models.Distance.COSINE
    assert info.config.params.vectors["many"].multivector_config is not None
    assert info.config.params.sparse_vectors["words"].modifier == models.Modifier.IDF


def test_metadata_is_merged(filled):
    filled.update_collection(NAME, metadata={"version": 4, "more": [1]})
    assert filled.get_collection(NAME).config.metadata == {"made_by": "tests", "version": 4, "more": [1]}


def test_collections_are_listed_found_and_deleted(filled):
    assert NAME in [collection.name for collection in filled.get_collections().collections]
    assert filled.collection_exists(NAME)
    assert filled.delete_collection(NAME)
    assert not filled.collection_exists(NAME)
    assert NAME not in [collection.name for collection in filled.get_collections().collections]


def test_a_collection_made_twice_already_exists(filled):
    with pytest.raises((grpc.RpcError, UnexpectedResponse), match="already exists"):
        filled.create_collection(NAME, vectors_config=VECTORS)


def test_a_deleted_name_may_be_used_again_and_is_empty(filled):
    filled.delete_collection(NAME)
    filled.create_collection(NAME, vectors_config=VECTORS)
    assert filled.count(NAME).count == 0


def test_a_missing_collection_is_not_found_by_name(official):
    with pytest.raises(grpc.RpcError) as caught:
        official.count("nowhere")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "`nowhere` doesn't exist" in caught.value.details()


def test_points_come_back_whole(filled):
    (point,) = filled.retrieve(NAME, [3], with_payload=True, with_vectors=True)
    assert point.payload == {"group": "b", "n": 3, "nested": {"list": [3, None, True, 0.5, "x"]}}
    assert np.isclose(np.linalg.norm(point.vector["dense"]), 1), "cosine normalises on upload"
    assert point.vector["many"] == [[3.0, 1.0], [0.0, 1.0]]
    assert dict(zip(point.vector["words"].indices, point.vector["words"].values, strict=True)) == {3: 1.0, 100: 0.5}


def test_selectors_choose_payload_and_vectors(filled):
    (point,) = filled.retrieve(NAME, [3], with_payload=["n"], with_vectors=["many"])
    assert point.payload == {"n": 3}
    assert list(point.vector) == ["many"]
    (point,) = filled.retrieve(
        NAME, [3], with_payload=models.PayloadSelectorExclude(exclude=["nested"]), with_vectors=False
    )
    assert point.payload == {"group": "b", "n": 3}
    assert not point.vector


def test_missing_ids_are_left_out(filled):
    assert sorted(ids(filled.retrieve(NAME, [2, 77, 4]))) == [2, 4]


def test_uuids_are_ids(filled):
    point_id = str(uuid.uuid4())
    filled.upsert(NAME, [models.PointStruct(id=point_id, vector={}, payload={"n": 1})])
    assert ids(filled.retrieve(NAME, [point_id])) == [point_id]


def test_upserting_an_id_again_replaces_the_point(filled):
    filled.upsert(NAME, [models.PointStruct(id=3, vector={}, payload={"new": 1})])
    assert filled.count(NAME).count == 10
    assert filled.retrieve(NAME, [3])[0].payload == {"new": 1}


def test_nearest_by_dense_vector(filled):
    found = filled.query_points(NAME, query=[0.0, 0.0, 1.0, 0.0], using="dense", limit=3).points
    assert ids(found) == [2, 6, 1] or set(ids(found)[:2]) == {2, 6}
    assert found[0].score >= found[1].score >= found[2].score


def test_nearest_by_sparse_vector_with_idf(filled):
    words = models.SparseVector(indices=[3, 100], values=[1.0, 1.0])
    found = filled.query_points(NAME, query=words, using="words", limit=10).points
    assert set(ids(found)[:2]) == {3, 8}
    assert found[0].score > 1.0, "the rare word weighs more than its stored value"
    assert found[2].score < 0.5, "the word in every point weighs almost nothing"


def test_nearest_by_multivector(filled):
    found = filled.query_points(NAME, query=[[1.0, 0.0]], using="many", limit=2).points
    assert [(p.id, p.score) for p in found] == [(9, 9.0), (8, 8.0)]


def test_an_empty_sparse_query_finds_nothing(filled):
    empty = models.SparseVector(indices=[], values=[])
    assert filled.query_points(NAME, query=empty, using="words").points == []


def test_limit_offset_and_score_threshold(filled):
    def search(**how):
        return filled.query_points(NAME, query=[[1.0, 0.0]], using="many", **how).points

    assert ids(search(limit=2, offset=3)) == [6, 5]
    assert ids(search(limit=10, score_threshold=7.5)) == [9, 8]
    assert len(search()) == 10


def test_without_a_query_points_come_by_id(filled):
    assert ids(filled.query_points(NAME, limit=3).points) == [0, 1, 2]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (models.Filter(must=[models.FieldCondition(key="group", match=models.MatchValue(value="a"))]), {0, 2, 4, 6, 8}),
        (models.Filter(must_not=[models.HasIdCondition(has_id=[0, 1, 2, 3, 4])]), {5, 6, 7, 8, 9}),
        (models.Filter(must=[models.FieldCondition(key="n", match=models.MatchAny(any=[1, 2]))]), {1, 2}),
        (models.Filter(must_not=[models.FieldCondition(key="group", match=models.MatchAny(any=["a"]))]), {1, 3, 5, 7, 9}),
        (models.Filter(must=[models.FieldCondition(key="n", range=models.Range(gt=2, lte=5))]), {3, 4, 5}),
        (models.Filter(must=[models.FieldCondition(key="n", match=models.MatchExcept(**{"except": [1]}))]),
         {0, 2, 3, 4, 5, 6, 7, 8, 9}),
        (models.Filter(should=[models.HasIdCondition(has_id=[1]), models.HasIdCondition(has_id=[2])]), {1, 2}),
        (models.Filter(must=[models.Filter(must_not=[group("a")])]), {1, 3, 5, 7, 9}),
        (models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="absent"))]), set(range(10))),
        (models.Filter(must=[models.HasVectorCondition(has_vector="dense")]), set(range(10))),
        (models.Filter(min_should=models.MinShould(
            conditions=[group("a"), models.HasIdCondition(has_id=[0, 1])], min_count=2)), {0}),
    ],
)  # fmt: skip
def test_filters_count_scroll_and_search_alike(filled, condition, expected):
    assert filled.count(NAME, count_filter=condition).count == len(expected)
    assert set(ids(filled.scroll(NAME, scroll_filter=condition, limit=100)[0])) == expected
    found = filled.query_points(NAME, query=[[1.0, 0.0]], using="many", query_filter=condition, limit=100)
    assert set(ids(found.points)) == expected


def test_scrolling_pages_through_everything_once(filled):
    seen, offset = [], None
    while True:
        page, offset = filled.scroll(NAME, limit=3, offset=offset)
        seen += ids(page)
        if offset is None:
            break
    assert seen == list(range(10))


@pytest.mark.parametrize("fusion", [models.Fusion.RRF, models.Fusion.DBSF])
def test_fusion_ranks_what_both_criteria_find_first(filled, fusion):
    found = filled.query_points(
        NAME,
        prefetch=[
            models.Prefetch(query=[0.0, 0.0, 0.0, 1.0], using="dense", limit=2),
            models.Prefetch(query=models.SparseVector(indices=[3], values=[1.0]), using="words", limit=2),
        ],
        query=models.FusionQuery(fusion=fusion),
        limit=3,
    ).points
    assert found[0].id == 3, "3 is first or second by both; 7 and 8 by one only"
    assert set(ids(found)) == {3, 7, 8}


def test_a_batch_answers_like_its_queries_one_by_one(filled):
    requests = [
        models.QueryRequest(query=[[1.0, 0.0]], using="many", limit=2, filter=group("a"), with_payload=True),
        models.QueryRequest(query=[0.0, 1.0, 0.0, 0.0], using="dense", limit=1),
    ]
    batch = filled.query_batch_points(NAME, requests)
    assert ids(batch[0].points) == [8, 6]
    assert batch[0].points[0].payload["group"] == "a"
    alone = filled.query_points(NAME, query=[0.0, 1.0, 0.0, 0.0], using="dense", limit=1)
    assert ids(batch[1].points) == ids(alone.points)
    assert batch[1].points[0].score == alone.points[0].score


def test_deletion_by_id_and_by_filter(filled):
    filled.delete(NAME, models.PointIdsList(points=[1, 2]))
    assert filled.count(NAME).count == 8
    filled.delete(NAME, models.FilterSelector(filter=group("a")))
    assert set(ids(filled.scroll(NAME, limit=100)[0])) == {3, 5, 7, 9}


def test_payload_is_set_and_the_rest_kept(filled):
    filled.set_payload(NAME, {"extra": "yes"}, points=[1])
    filled.set_payload(NAME, {"extra": "all"}, points=group("a"))
    assert filled.retrieve(NAME, [1])[0].payload["extra"] == "yes"
    assert filled.retrieve(NAME, [1])[0].payload["n"] == 1
    assert filled.retrieve(NAME, [2])[0].payload["extra"] == "all"


def test_payload_indexes_come_and_go(filled):
    filled.create_payload_index(NAME, "group", models.PayloadSchemaType.KEYWORD, wait=True)
    assert filled.get_collection(NAME).payload_schema["group"].data_type == models.PayloadSchemaType.KEYWORD
    assert filled.count(NAME, count_filter=group("a")).count == 5
    filled.delete_payload_index(NAME, "group", wait=True)
    assert "group" not in filled.get_collection(NAME).payload_schema


def test_points_are_ordered_by_an_indexed_field(filled):
    filled.create_payload_index(NAME, "n", models.PayloadSchemaType.INTEGER, wait=True)
    page, _ = filled.scroll(NAME, order_by=models.OrderBy(key="n", direction=models.Direction.DESC), limit=2)
    assert ids(page) == [9, 8]


def test_one_unnamed_vector_works_too(official):
    name = f"plain-{uuid.uuid4()}"
    official.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    official.upsert(name, [models.PointStruct(id=i, vector=[float(i), 1.0]) for i in range(3)])
    found = official.query_points(name, query=[1.0, 0.0], limit=1, with_vectors=True).points[0]
    assert (found.id, found.vector) == (2, [2.0, 1.0])
    official.delete_collection(name)


# ---------------------------------------------------------------- refusals, by raw stubs


def upsert(name="dense", vector=None, point_id=None):
    point = api.PointStruct(id=point_id or api.PointId(num=50))
    point.vectors.vectors.vectors[name].CopyFrom(vector or api.Vector(dense=api.DenseVector(data=[1, 2, 3, 4])))
    return api.UpsertPoints(collection_name=NAME, wait=True, points=[point])


@pytest.mark.parametrize(
    "request_",
    [
        upsert(vector=api.Vector(dense=api.DenseVector(data=[1, 2]))),
        upsert(name="nothing"),
        upsert(point_id=api.PointId(uuid="not a uuid")),
        upsert(name="words", vector=api.Vector(sparse=api.SparseVector(indices=[1, 1], values=[1, 1]))),
    ],
)
def test_bad_points_are_invalid_arguments_and_not_stored(filled, client, request_):
    with pytest.raises(InvalidPoint):
        client.call(client.points.Upsert, request_, 10)
    assert filled.count(NAME).count == 10


@pytest.mark.parametrize(
    "request_",
    [
        api.QueryPoints(using="dense", query=api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=[1])))),
        api.QueryPoints(using="gone", query=api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=[1])))),
        api.QueryPoints(query=api.Query(fusion=api.Fusion.RRF)),
    ],
)
def test_bad_queries_are_invalid_arguments(filled, client, request_):
    request_.collection_name = NAME
    with pytest.raises(InvalidPoint):
        client.call(client.points.Query, request_, 10)


# ---------------------------------------------------------------- settings and status


def test_indexing_is_switched_off_and_on_and_shown(filled):
    filled.update_collection(NAME, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0))
    info = filled.get_collection(NAME)
    assert info.config.optimizer_config.indexing_threshold == 0
    assert info.status == models.CollectionStatus.GREEN, "nothing is due where nothing is to be indexed"
    assert info.config.metadata["version"] == 3, "what was not named is kept"
    filled.update_collection(NAME, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=20_000))
    assert filled.get_collection(NAME).config.optimizer_config.indexing_threshold == 20_000


def test_hnsw_options_are_changed_and_shown(filled):
    filled.update_collection(NAME, hnsw_config=models.HnswConfigDiff(m=24))
    config = filled.get_collection(NAME).config.hnsw_config
    assert (config.m, config.ef_construct) == (24, 100)


def test_a_bulk_load_is_indexed_once_the_threshold_is_back(official):
    """Enough vectors to want an index (10 MB), loaded without one; green then means indexed."""
    name, size, num_points = f"bulk-{uuid.uuid4()}", 512, 6000
    vectors = np.random.default_rng(0).standard_normal((num_points, size)).astype(np.float32)
    official.create_collection(
        name,
        vectors_config=models.VectorParams(size=size, distance=models.Distance.DOT),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0, default_segment_number=1),
    )
    for start in range(0, num_points, 500):
        points = [models.PointStruct(id=i, vector=vectors[i].tolist()) for i in range(start, start + 500)]
        official.upsert(name, points, wait=True)
    info = official.get_collection(name)
    assert (info.status, info.indexed_vectors_count) == (models.CollectionStatus.GREEN, 0)
    official.update_collection(name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=5_000))
    deadline = time.monotonic() + 120
    while (info := official.get_collection(name)).status != models.CollectionStatus.GREEN:
        assert time.monotonic() < deadline, info
        time.sleep(0.1)
    assert info.indexed_vectors_count >= 0.9 * num_points
    official.upsert(name, [models.PointStruct(id=7, vector=(-vectors[7]).tolist())])
    for point_id, vector in ((7, -vectors[7]), (5, vectors[5])):
        assert ids(official.query_points(name, query=vector.tolist(), limit=1).points) == [point_id]
    assert official.count(name).count == num_points
    official.delete_collection(name)


# ---------------------------------------------------------------- aliases


def create_alias(alias, collection=NAME):
    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias))


def rename_alias(old, new):
    return models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name=old, new_alias_name=new))


def delete_alias(alias):
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def aliases_of(official, collection=NAME):
    return sorted(alias.alias_name for alias in official.get_collection_aliases(collection).aliases)


@pytest.fixture
def second(filled):
    """Another collection, of one point with id 1000."""
    name = f"second-{uuid.uuid4()}"
    filled.create_collection(name, vectors_config=VECTORS, sparse_vectors_config=SPARSE)
    filled.upsert(name, [models.PointStruct(id=1000, vector={"dense": [0.0, 0.0, 1.0, 0.0]}, payload={"group": "a"})])
    yield name
    filled.delete_collection(name)


def test_every_call_takes_an_alias_for_its_collection(filled):
    filled.update_collection_aliases([create_alias("current")])
    assert filled.count("current").count == 10
    filled.upsert("current", [models.PointStruct(id=70, vector={}, payload={"n": 70})])
    filled.set_payload("current", {"extra": 1}, points=[70])
    assert filled.retrieve("current", [70])[0].payload == {"n": 70, "extra": 1}
    filled.delete("current", models.PointIdsList(points=[70]))
    assert len(filled.scroll("current", limit=100)[0]) == 10
    found = filled.query_points("current", query=[[1.0, 0.0]], using="many", limit=1).points
    assert ids(found) == [9]
    batch = filled.query_batch_points("current", [models.QueryRequest(query=[[1.0, 0.0]], using="many", limit=1)])
    assert ids(batch[0].points) == [9]
    filled.create_payload_index("current", "group", models.PayloadSchemaType.KEYWORD, wait=True)
    filled.delete_payload_index("current", "group", wait=True)
    assert filled.collection_exists("current")
    assert filled.get_collection("current").points_count == 10
    filled.update_collection("current", metadata={"by_alias": True})
    assert filled.get_collection(NAME).config.metadata["by_alias"] is True


def test_aliases_are_listed_renamed_and_deleted(filled, second):
    filled.update_collection_aliases([create_alias("a"), create_alias("b"), create_alias("c", second)])
    assert aliases_of(filled) == ["a", "b"]
    assert aliases_of(filled, second) == ["c"]
    everywhere = {(alias.alias_name, alias.collection_name) for alias in filled.get_aliases().aliases}
    assert {("a", NAME), ("b", NAME), ("c", second)} <= everywhere
    filled.update_collection_aliases([rename_alias("a", "z"), delete_alias("b")])
    assert aliases_of(filled) == ["z"]
    filled.update_collection_aliases([delete_alias("never was")])
    assert NAME in [collection.name for collection in filled.get_collections().collections]
    assert "z" not in [collection.name for collection in filled.get_collections().collections]


def test_an_alias_is_pointed_elsewhere_and_back(filled, second):
    filled.update_collection_aliases([create_alias("current")])
    filled.update_collection_aliases([create_alias("current", second)])
    assert filled.count("current").count == 1
    filled.update_collection_aliases([delete_alias("current"), create_alias("current")])
    assert filled.count("current").count == 10


def test_deleting_a_collection_deletes_its_aliases_and_deleting_an_alias_name_no_collection(filled, second):
    filled.update_collection_aliases([create_alias("current"), create_alias("other", second)])
    filled.delete_collection("current")
    assert filled.count("current").count == 10
    filled.delete_collection(NAME)
    assert not filled.collection_exists("current")
    with pytest.raises(grpc.RpcError) as caught:
        filled.count("current")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert aliases_of(filled) == []
    assert aliases_of(filled, second) == ["other"]


def change_aliases(client, *actions):
    client.collections.UpdateAliases(api.ChangeAliases(actions=actions), timeout=10, metadata=client._metadata)


def create_action(alias, collection=NAME):
    return api.AliasOperations(create_alias=api.CreateAlias(collection_name=collection, alias_name=alias))


@pytest.mark.parametrize(
    ("action", "codes"),
    [
        (create_action("x", "nowhere"), {"NOT_FOUND"}),
        (create_action(NAME), {"ALREADY_EXISTS", "INVALID_ARGUMENT"}),
        (
            api.AliasOperations(rename_alias=api.RenameAlias(old_alias_name="nothing", new_alias_name="x")),
            {"NOT_FOUND", "INVALID_ARGUMENT"},
        ),
    ],
)
def test_bad_alias_changes_are_refused(filled, client, action, codes):
    with pytest.raises(grpc.RpcError) as caught:
        change_aliases(client, action)
    assert caught.value.code().name in codes
    assert aliases_of(filled) == []


def test_a_collection_is_not_created_under_an_aliass_name(filled):
    filled.update_collection_aliases([create_alias("current")])
    with pytest.raises((grpc.RpcError, UnexpectedResponse), match=r"Alias with the same name already exists"):
        filled.create_collection("current", vectors_config=VECTORS)
    assert filled.count("current").count == 10


def test_calls_go_on_while_an_alias_is_switched(filled, second, client):
    """Each answer is whole and from one of the two collections; none is an error."""
    filled.update_collection_aliases([create_alias("current")])
    count = api.CountPoints(collection_name="current", exact=True)
    done, answers, errors = threading.Event(), set(), []

    def ask():
        while not done.is_set():
            try:
                answers.add(client.points.Count(count, timeout=10, metadata=client._metadata).result.count)
            except grpc.RpcError as error:
                errors.append(error)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    for turn in range(40):
        change_aliases(client, create_action("current", [second, NAME][turn % 2]))
    done.set()
    for thread in asking:
        thread.join()
    assert errors == []
    assert answers == {1, 10}


# ---------------------------------------------------------------- snapshots


def test_snapshots_are_made_listed_and_deleted(filled, client):
    stub = api.SnapshotsStub(client._channel)
    more = {"timeout": 60, "metadata": client._metadata}
    made = stub.Create(api.CreateSnapshotRequest(collection_name=NAME), **more).snapshot_description
    assert made.name.startswith(NAME)
    assert made.name.endswith(".snapshot")
    assert made.size > 0
    assert len(made.checksum) == 64
    wanted = api.ListSnapshotsRequest(collection_name=NAME)
    assert [found.name for found in stub.List(wanted, **more).snapshot_descriptions] == [made.name]
    stub.Delete(api.DeleteSnapshotRequest(collection_name=NAME, snapshot_name=made.name), **more)
    assert not stub.List(wanted, **more).snapshot_descriptions


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Create", api.CreateSnapshotRequest(collection_name="nowhere")),
        ("List", api.ListSnapshotsRequest(collection_name="nowhere")),
        ("Delete", api.DeleteSnapshotRequest(collection_name="nowhere", snapshot_name="x")),
        ("Delete", api.DeleteSnapshotRequest(collection_name=NAME, snapshot_name="x.snapshot")),
    ],
)
def test_snapshots_of_what_is_not_there_are_not_found(filled, client, method, request_):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(api.SnapshotsStub(client._channel), method)(request_, timeout=10, metadata=client._metadata)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


# ---------------------------------------------------------------- shards and copies

IS_EMBEDDED = "QDRANT_URL" not in os.environ


def test_a_collection_of_one_shard_and_one_copy_says_so(server_url, store, manifest, client, config):
    store.ensure(manifest)
    info = client.call(client.collections.Get, api.GetCollectionInfoRequest(collection_name=config.collection), 10)
    params = info.result.config.params
    assert (params.replication_factor, params.write_consistency_factor) == (1, 1)
    assert params.shard_number == 1 or not IS_EMBEDDED  # a cluster's default is one per node


@pytest.mark.parametrize("consistency", [1, "majority", "quorum", "all"])
def test_reads_with_a_consistency_find_the_same(config, manifest, make_points, consistency):
    config = config.model_copy(update={"read_consistency": consistency})
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        points = make_points(10)
        assert store.upsert(points) == 10
        assert store.existing([point.id for point in points]) == {point.id for point in points}
        assert store.count() == 10
        assert sum(len(page) for page in store.pages()) == 10
        retriever = Retriever(client, config, manifest, "keywords")
        queries = [Query(point.id, point.keywords, point.sentence, point.document) for point in points]
        assert retriever.neighbours(queries).steps == ["live"] * 10
        store.delete_collection()


@pytest.mark.skipif(not IS_EMBEDDED, reason="a cluster has shards and copies")
@pytest.mark.parametrize("field", ["shard_number", "replication_factor", "write_consistency_factor"])
def test_the_embedded_server_refuses_more_than_one_shard_or_copy_in_one_line(client, field):
    request = api.CreateCollection(collection_name="sharded", **{field: 2})
    with pytest.raises(InvalidPoint, match=f"{field}=2: the embedded server has one shard and one copy") as caught:
        client.call(client.collections.Create, request, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(IS_EMBEDDED, reason="the embedded server has one shard")
def test_a_server_makes_the_shards_that_the_config_asks_for(config, manifest, make_points):
    config = config.model_copy(update={"shard_number": 3})
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        request = api.GetCollectionInfoRequest(collection_name=config.collection)
        assert client.call(client.collections.Get, request, 10).result.config.params.shard_number == 3
        assert store.upsert(make_points(50)) == store.count() == 50
        store.delete_collection()


# ---------------------------------------------------------------- several processes


def _write_search_and_read(url: str, name: str, worker: int) -> list[bool]:
    config = StoreConfig(url=url)
    with connect(config, url) as client:
        mine = api.Filter(must=[api.Condition(field=api.FieldCondition(key="worker", match=api.Match(integer=worker)))])
        search = api.QueryPoints(
            collection_name=name,
            using="dense",
            limit=200,
            filter=mine,
            params=api.SearchParams(exact=True),
            query=api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=[1.0, 1.0, 0.0, 0.0]))),
        )
        found = []
        for i in range(20):
            first = worker * 1000 + i * 5
            points = []
            for n in range(first, first + 5):
                point = api.PointStruct(id=api.PointId(num=n))
                point.payload["worker"].integer_value = worker
                point.vectors.vectors.vectors["dense"].dense.data.extend([1.0, float(n), 0.0, 0.0])
                points.append(point)
            client.call(client.points.Upsert, api.UpsertPoints(collection_name=name, wait=True, points=points), 30)
            found.append(len(client.call(client.points.Query, search, 30).result) == (i + 1) * 5)
        wanted = [api.PointId(num=worker * 1000 + n) for n in range(100)]
        get = api.GetPoints(collection_name=name, ids=wanted, with_payload=api.WithPayloadSelector(enable=True))
        result = client.call(client.points.Get, get, 30).result
        return found + [point.payload["worker"].integer_value == worker for point in result]


def test_several_processes_write_search_and_read_at_once(filled, server_url):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        answers = pool.starmap(_write_search_and_read, [(server_url, NAME, worker) for worker in (1, 2, 3)])
    assert answers == [[True] * 120] * 3
    assert filled.count(NAME).count == 310
    for worker in (1, 2, 3):
        mine = models.Filter(must=[models.FieldCondition(key="worker", match=models.MatchValue(value=worker))])
        assert filled.count(NAME, count_filter=mine).count == 100
