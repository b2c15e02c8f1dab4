"""Write and administer one collection: create it with a manifest and indexes, add, count, read and delete points, keep bytes.

A store that does not answer raises; only the retriever degrades. Makes no searches: neighbours are the retriever's.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vector_store.blobs import (
    blob_names,
    blobs,
    delete_blob,
    is_blob,
    num_blob_points,
    read_blob,
    write_blob,
)
from vector_store.client import Client
from vector_store.codec import (
    DOCUMENT,
    FIRST_POINT,
    MOST,
    RESIDUAL,
    SOURCE,
    SPLIT,
    as_bytes,
    as_text,
    check,
    decode,
    decode_parts,
    empty_neighbours,
    fill,
    pack_vector,
    payload_of,
)
from vector_store.config import StoreConfig
from vector_store.errors import (
    CollectionExists,
    CollectionMismatch,
    InvalidPoint,
    PointMissing,
    StoreError,
    StoreUnavailable,
)
from vector_store.protocol import api
from vector_store.schema import FORMAT_VERSION, KEYWORDS, SENTENCE, Manifest, Neighbours, Parts, Point, StoredPoint
from vector_store.writer import Writer

log = logging.getLogger(__name__)

IDS_PER_CALL = 1024
STATUS_POLL_S = 1.0
EVERY_COPY_S = 10.0
"""Time for an answer from every copy of a shard, and how long one copy is asked after a copy did not answer."""

HNSW_M, HNSW_EF_CONSTRUCT = 32, 200
"""Links per point, and candidates while building; a search considers as many as the latter. Of 100,000 static sentence vectors
of 384, Qdrant's defaults of 16 and 100 find the nearest for 90 % of the queries, these for 97 % (docs/log.md)."""

INDEXING_THRESHOLD_KB = 1_000
"""Most kilobytes of vectors that a look-up scans, divided among shards, since it counts for each. Of 10,815 vectors of 192 (4
MB, float16) a batch of 32 searches takes 23 ms of CPU by scanning, 10 with the index, whose 8-bit vectors are made with it;
Qdrant's defaults, 10 and 20 MB, leave such a memory without."""

NUMBER_BYTES = {api.Datatype.Float16: 2, api.Datatype.Uint8: 1}
"""Bytes of a vector's number as it is stored, which a threshold of indexing counts; all others have 4."""

SCANNED_SHARE = 0.2
"""An index is complete with less than this share of its vectors beside it: the embedded server builds none anew for them."""

UNINDEXED_POLLS = 10
"""How often a status is green while vectors are scanned, before that is believed: it is green also before a build starts."""

DELETED = "deleted"
"""Name under which a collection keeps the ids of deleted points, 16 bytes each."""

SAMPLE_POINTS = 256
SAMPLE_PAGE = 32
IDENTITY = "identity"
"""Name under which a collection keeps what tells it from any other, also of its name: drawn when it is created. Snapshots,
exports and imports carry it along."""

UNKNOWN_OUTCOMES = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED}
"""Statuses after which a change may have been made, or may be made later."""

REMEDY = "run `python jobs/ingest.py` with another store.collection, or delete this one"


class IndexState(NamedTuple):
    """The dense index as the store counts it: `unindexed` of `points` vectors, `unindexed_bytes` in all, are scanned."""

    points: int
    unindexed: int
    unindexed_bytes: int
    is_green: bool

    @property
    def scans(self) -> bool:
        """Whether look-ups scan more than they are meant to, whatever the status says."""
        return (
            self.unindexed_bytes > INDEXING_THRESHOLD_KB * 1024
            and self.unindexed > SCANNED_SHARE * (self.points - self.unindexed)
        )  # fmt: skip


class Known(NamedTuple):
    """Some ids by what the collection knows of them: those that are stored, those that were deleted, and the `new` ones.

    What is stored again after its deletion is stored. New ones are in the order in which they were asked for, each once.
    """

    stored: set[str]
    deleted: set[str]
    new: list[str]


class Store:
    """One collection, for those who write to it or administer it. The first call connects, not the constructor.

    A name that is an alias is resolved once, by the first call: all others reach that collection, whatever the alias names by
    then. Open another store to follow it.
    """

    def __init__(self, client: Client, config: StoreConfig) -> None:
        self._client = client
        self._config = config
        self._pinned: StoreConfig | None = None
        self._pinning = threading.Lock()
        self._manifest: Manifest | None = None
        self._parameters: api.CollectionParams | None = None
        self._deleted: frozenset[str] | None = None
        self._ask_one_until_s = 0.0

    @property
    def config(self) -> StoreConfig:
        """The config with the collection's own name in the place of an alias."""
        with self._pinning:
            if self._pinned is None:
                self._pinned = pinned(self._client, self._config)
            return self._pinned

    @property
    def _name(self) -> str:
        return self.config.collection

    def ensure(self, manifest: Manifest, attachments: Mapping[str, bytes] | None = None) -> Manifest:
        """Create the collection with this manifest, or check that it has an equal one; return the collection's manifest.

        `attachments` are stored with a new collection; `attachment` reads them. CollectionMismatch where the manifests differ.
        """
        with suppress(CollectionExists):  # `require` compares its manifest
            create = _create_collection(self.config, manifest, attachments or {})
            settle(
                lambda: self._call(self._client.collections.Create, create),
                lambda: self._name in collection_names(self._client, self._config.write_deadline_s),
                f"creating collection {self._name!r}",
            )
            self._set_read_fan_out()
            self._set_indexing_threshold(_indexing_threshold(self._info()))
        found = self.require(manifest)
        self._warn_of_other_shards()
        for field in (DOCUMENT, SOURCE, SPLIT):
            self._call(
                self._client.points.CreateFieldIndex,
                api.CreateFieldIndexCollection(
                    collection_name=self._name,
                    wait=True,
                    field_name=field,
                    field_type=api.FieldType.FieldTypeKeyword,
                ),
            )
        return found

    def require(self, manifest: Manifest) -> Manifest:
        """Check that the collection has an equal manifest, and return it; CollectionMismatch, with the fields, where not."""
        found = self.manifest()
        if differing := found.differing(manifest):
            raise CollectionMismatch(_differences(self._name, found, manifest, differing))
        return found

    def raw_manifest(self) -> dict[str, Any]:
        """The metadata that are plain values, of any format: a manifest's fields are among them."""
        metadata = self._info().config.metadata.items()
        return {key: getattr(value, value.WhichOneof("kind")) for key, value in metadata if value.WhichOneof("kind")}

    def manifest(self) -> Manifest:
        """The collection's manifest; CollectionMissing without a collection, CollectionMismatch without a valid manifest."""
        fields = {key: value for key, value in self.raw_manifest().items() if key in Manifest.model_fields}
        if (found := fields.get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
            how = (
                f"convert it: `python -m vector_store convert LOCATION NEW --collection {self._name}`"
                if found == FORMAT_VERSION - 1
                else REMEDY
            )
            raise CollectionMismatch(
                f"collection {self._name!r} at {self._client.url} has format {found}, this release reads "
                f"{FORMAT_VERSION}; {how}"
            )
        if not fields:
            raise CollectionMismatch(
                f"collection {self._name!r} at {self._client.url} is no memory, something else wrote it; give another one, "
                f"or make a memory of it: `refbert adopt STUDENT {self._name}`"
            )
        try:
            self._manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            raise CollectionMismatch(
                f"collection {self._name!r} at {self._client.url} carries no manifest of this format "
                f"({error.error_count()} fields missing or unknown); {REMEDY}"
            ) from error
        return self._manifest

    def warnings(self) -> list[str]:
        """What the server says is wrong with the collection, a line each."""
        return [warning.message for warning in self._info().warnings]

    def identity(self) -> str | None:
        """What tells the collection from any other, also of its name; None where an earlier release created it."""
        found = self.metadata().get(IDENTITY)
        return found.string_value if found else None

    def exists(self) -> bool:
        """Whether the collection exists."""
        request = api.CollectionExistsRequest(collection_name=self._name)
        return self._call(self._client.collections.CollectionExists, request).result.exists

    @contextmanager
    def bulk_load(self, wait: bool = True) -> Iterator[None]:
        """Pause the HNSW index while the block loads many points; afterwards build it and, with `wait`, return when it is
        complete.

        The pause is a setting of the collection, so the next load ends one that a killed load has left. Without a dense index
        there is nothing to pause.
        """
        if not (self._manifest or self.manifest()).dense_index:
            yield
            return
        found = self._info()
        wanted = _indexing_threshold(found)
        self._set_indexing_threshold(0)
        try:
            yield
        finally:
            before = found.config.optimizer_config.indexing_threshold  # 0 where a load that was killed left it paused
            self._set_indexing_threshold(min(before or wanted, wanted))
        if wait:
            self.wait_until_indexed()

    def wait_until_indexed(self) -> bool:
        """Wait until the status is green and the index holds the vectors; False after store.index_deadline_s, or where a
        green index goes on lacking them.
        """
        deadline = time.monotonic() + self._config.index_deadline_s
        polls = 0
        while True:
            state = self.index_state()
            if state is None or (state.is_green and not state.scans):
                return True
            polls = polls + 1 if state.is_green else 0
            if time.monotonic() > deadline or polls > UNINDEXED_POLLS:
                log.warning(
                    "%s of collection %r: %s",
                    "the status is green" if state.is_green else "the index is still being built", self._name,
                    scanned(state),
                )  # fmt: skip
                return False
            time.sleep(STATUS_POLL_S)

    def index_state(self) -> IndexState | None:
        """What look-ups by the dense index find indexed; None where the collection has none.

        The store counts indexed vectors of all kinds together, and a sparse one is always in an index.
        """
        manifest = self._manifest or self.manifest()
        if not manifest.dense_index:
            return None
        found = self._info()
        unindexed = min(found.points_count, max(0, 2 * found.points_count - found.indexed_vectors_count))
        declared = found.config.params.vectors_config.params_map.map[SENTENCE].datatype
        scanned_bytes = unindexed * manifest.words_dim * NUMBER_BYTES.get(declared, 4)
        return IndexState(found.points_count, unindexed, scanned_bytes, found.status == api.CollectionStatus.Green)

    def writer(self) -> Writer:
        """A writer to this collection; use it in a `with` block."""
        return Writer(self._client, self.config, self._manifest or self.manifest())

    def existing(self, ids: Sequence[str]) -> set[str]:
        """The ids that are stored: where shards have several copies, in every one, since a failed write is in some only."""
        return {
            point.id.uuid for some in _by_call(ids) for point in self._in_every_copy(get_points(self._name, some, ()))
        }

    def known(self, ids: Sequence[str]) -> Known:
        """Tell which of these a load is to store: the new ones, which are neither stored nor deleted.

        Deleted ids are read once, by the first call, and again after a deletion or readmission through this store.
        """
        if self._deleted is None:
            self._deleted = self.deleted_ids()
        stored = self.existing(ids)
        deleted = self._deleted.intersection(ids) - stored
        return Known(stored, set(deleted), [each for each in dict.fromkeys(ids) if each not in stored | deleted])

    def parameters(self) -> api.CollectionParams:
        """How many shards and copies the collection has, and how many copies a write needs: fixed when it is created."""
        if self._parameters is None:
            self._parameters = self._info().config.params
        return self._parameters

    def upsert(self, points: Sequence[Point]) -> int:
        """Write points in batches of bounded bytes, and return how many were acknowledged: all of them.

        InvalidPoint, before the first is sent, where a point does not fit the manifest. After a later error (also InvalidPoint
        for a point too large for a message) some batches may be stored; writing again is safe.
        """
        manifest = self._manifest or self.manifest()
        for point in points:
            check(point, manifest)
        with Writer(self._client, self.config, manifest) as writer:
            writer.submit(points)
            written, rejected = writer.finish()
        if rejected:
            raise InvalidPoint(rejected[0].reason)
        return written

    def count(self, where: tuple[str, str] | None = None) -> int:
        """Exact number of points, or of those whose payload field has a value: `where` is (field, value)."""
        request = api.CountPoints(collection_name=self._name, exact=True, filter=field_filter(where))
        counted = self._call(self._client.points.Count, request).result.count
        return counted if where else counted - num_blob_points(self._client, self.config)

    def fetch(self, ids: Sequence[str], read: Parts | None = None) -> Neighbours:
        """These points, one in each row; the row of a missing point is empty. By default with their states, if stored."""
        manifest = self._manifest or self.manifest()
        read = read or Parts(states=manifest.tokens > 0)
        found = empty_neighbours(len(ids), manifest, read=read)
        points = {point.id: point for point in decode_parts(list(self._get(ids, payload_of(read))), manifest, read)}
        found.rungs[:] = ["live"] * len(ids)
        fill(found, {row: [points[point_id]] for row, point_id in enumerate(ids) if point_id in points})
        return found

    def bytes_estimate(self) -> int:
        """Estimated bytes of all points as messages, from the mean of the first: ids are hashes, so the sample is random."""
        sizes: list[int] = []
        for page in self._scroll_whole(SAMPLE_PAGE):
            sizes += [point.ByteSize() for point in page]
            if len(sizes) >= SAMPLE_POINTS:
                break
        return round(self.count() * sum(sizes) / len(sizes)) if sizes else 0

    def delete_collection(self) -> bool:
        """Delete the collection with all its points; False where there was none. An alias is no collection, and stays."""
        self._manifest = self._pinned = self._parameters = self._deleted = None
        name, deadline_s = self._config.collection, self._config.write_deadline_s
        existed = name in collection_names(self._client, deadline_s)  # a second attempt would answer that there is none
        settle(
            lambda: self._call(self._client.collections.Delete, api.DeleteCollection(collection_name=name)),
            lambda: name not in collection_names(self._client, deadline_s),
            f"deleting collection {name!r}",
        )
        return existed

    def delete(self, where: tuple[str, str]) -> int:
        """Delete the points whose payload field has this value, and return their number.

        Their ids are remembered first (`deleted_ids`), so that a load of the same texts does not store them again. One copy is
        asked for them: after a deletion that failed it may have none, and another copy still has them. So the deletion is sent
        whatever was found.
        """
        found = api.ScrollPoints(
            collection_name=self._name,
            limit=IDS_PER_CALL,
            filter=field_filter(where),
            with_payload=payload_fields(()),
        )
        ids = [point.id for page in scroll(self._client, found, self._config.write_deadline_s) for point in page]
        if ids:
            self.remember_deleted(identifier.uuid for identifier in ids if identifier.uuid)  # numbers are no texts'
        request = api.DeletePoints(
            collection_name=self._name, wait=True, points=api.PointsSelector(filter=field_filter(where))
        )
        self._call(self._client.points.Delete, request)
        return len(ids)

    def deleted_ids(self) -> frozenset[str]:
        """Ids of the points that `delete` has deleted and that were not readmitted since."""
        packed = self.kept(DELETED) or b""
        return frozenset(str(uuid.UUID(bytes=packed[start : start + 16])) for start in range(0, len(packed), 16))

    def remember_deleted(self, ids: Iterable[str]) -> None:
        """Add ids to those that a load does not store."""
        remembered = self.deleted_ids() | frozenset(ids)
        self.keep(DELETED, b"".join(sorted(uuid.UUID(identifier).bytes for identifier in remembered)))
        self._deleted = None

    def readmit(self) -> int:
        """Forget which points were deleted, and return how many they were: the next load stores them again."""
        num_ids = len(self.deleted_ids())
        self.forget(DELETED)
        self._deleted = None
        return num_ids

    def pages(self, page: int = 256, where: tuple[str, str] | None = None) -> Iterator[list[Point]]:
        """Every point (with this value of a field) in the order of ids; InvalidPoint at the first that cannot be decoded."""
        manifest = self.manifest()
        for messages in self.stored_pages(page, where):
            yield [decode(message, manifest) for message in messages]

    def stored_pages(self, page: int = 256, where: tuple[str, str] | None = None) -> Iterator[list[api.RetrievedPoint]]:
        """The same points undecoded, for a caller that reads on past a damaged one.

        A page has at most `page` points, fewer where that many of full length would not fit into a quarter of a message.
        """
        manifest = self._manifest or self.manifest()
        yield from self.raw_pages(manifest.bytes_per_point(), page, where)

    def raw_pages(
        self, bytes_per_point: int, page: int = 256, where: tuple[str, str] | None = None
    ) -> Iterator[list[api.RetrievedPoint]]:
        """The same for points of any format, which take at most so many bytes."""
        yield from self._scroll_whole(min(page, self._config.message_bytes // 4 // bytes_per_point), where)

    def read(self, read: Parts, page: int = 1024) -> Iterator[list[StoredPoint]]:
        """These parts of every point, in the order of ids; InvalidPoint at the first that cannot be decoded."""
        manifest = self.manifest()
        request = api.ScrollPoints(
            collection_name=self._name,
            offset=api.PointId(uuid=FIRST_POINT),
            limit=max(1, min(page, self._config.message_bytes // 4 // manifest.bytes_per_point())),
            with_payload=payload_fields(payload_of(read)),
        )
        for messages in scroll(self._client, request, self._config.write_deadline_s):
            yield decode_parts(messages, manifest, read)

    def metadata(self) -> dict[str, api.Value]:
        """The collection's metadata without its manifest."""
        found = self._info().config.metadata
        return {key: value for key, value in found.items() if key not in Manifest.model_fields}

    def merge_metadata(self, values: Mapping[str, api.Value]) -> None:
        """Add these values to the collection's metadata, or replace those of the same name."""
        request = api.UpdateCollection(collection_name=self._name)
        for key, value in values.items():
            request.metadata[key].CopyFrom(value)
        self._call(self._client.collections.Update, request)

    def attachment(self, name: str) -> bytes | None:
        """Bytes stored with the collection under this name; None where there are none."""
        found = self.metadata().get(name)
        return None if found is None else as_bytes(found.string_value)

    def attach(self, name: str, content: bytes) -> None:
        """Store bytes with the collection under this name; earlier ones are replaced."""
        self.merge_metadata({name: _attached(content)})

    def set_residuals(self, reader: str, residuals: Mapping[str, NDArray[np.float32]]) -> int:
        """Write what these points, by id, lack for a reader: (encoder_dim,) each. The rest of a point stays as it is.

        Returns how many of the points have it now: not those that were deleted meanwhile, or that a copy of their shard lacks.
        InvalidPoint, before the first is sent, for a residual that the collection cannot hold.
        """
        manifest = self._manifest or self.manifest()
        packed = {}
        for identifier, residual in residuals.items():
            if residual.shape != (manifest.encoder_dim,) or not bool((np.abs(residual) <= MOST).all()):
                raise InvalidPoint(
                    f"the residual of point {identifier} is no vector of {manifest.encoder_dim} finite numbers up to "
                    f"{MOST:.0f}; adapt the memory again"
                )
            packed[identifier] = as_text(pack_vector(residual, manifest.vector_datatype))
        return sum(
            self._set_texts(RESIDUAL + reader, {each: packed[each] for each in some}) for some in _by_call(list(packed))
        )

    def _set_texts(self, field: str, texts: Mapping[str, str]) -> int:
        """Set a field of the payload of each of these points that is there, and return their number."""
        try:
            request = api.UpdateBatchPoints(collection_name=self._name, wait=True)
            for identifier, text in texts.items():
                operation = request.operations.add().set_payload
                operation.points_selector.points.ids.add().uuid = identifier
                operation.payload[field].string_value = text
            self._call(self._client.points.UpdateBatch, request)
        except PointMissing:  # the whole batch is refused, wherever in it the point stood
            there = self.existing(list(texts))
            if len(there) == len(texts):
                raise
            return self._set_texts(field, {each: texts[each] for each in texts if each in there}) if there else 0
        return len(texts)

    def drop_residuals(self, reader: str) -> None:
        """Delete the residuals of a reader from every point."""
        request = api.DeletePayloadPoints(collection_name=self._name, wait=True, keys=[RESIDUAL + reader])
        request.points_selector.filter.SetInParent()
        self._call(self._client.points.DeletePayload, request)

    def keep(self, name: str, content: bytes) -> None:
        """Keep bytes of any size with the collection under this name; earlier ones are replaced."""
        write_blob(self._client, self.config, name, content)

    def forget(self, name: str) -> None:
        """Delete what `keep` stored under this name."""
        delete_blob(self._client, self.config, name)

    def kept(self, name: str) -> bytes | None:
        """Bytes that `keep` stored under this name; None where there are none."""
        return read_blob(self._client, self.config, name)

    def names(self) -> list[str]:
        """The names of everything that `keep` stored."""
        return blob_names(self._client, self.config)

    def blobs(self) -> Iterator[tuple[str, bytes]]:
        """Everything that `keep` stored, by name."""
        return blobs(self._client, self.config)

    def _info(self) -> api.CollectionInfo:
        return self._call(self._client.collections.Get, api.GetCollectionInfoRequest(collection_name=self._name)).result

    def _set_read_fan_out(self) -> None:
        if self._config.read_fan_out_factor is not None:
            request = api.UpdateCollection(collection_name=self._name)
            request.params.read_fan_out_factor = self._config.read_fan_out_factor
            self._call(self._client.collections.Update, request)

    def _warn_of_other_shards(self) -> None:
        """Warn where shards and copies, which are fixed when a collection is created, are not those of the config."""
        found, wanted = self.parameters(), self._config
        differing = [
            f"{name}={getattr(found, name)} (store.{name}={getattr(wanted, name)})"
            for name in ("shard_number", "replication_factor", "write_consistency_factor")
            if getattr(wanted, name) not in (None, getattr(found, name))
        ]
        if differing:
            log.warning(
                "collection %r was created with %s; to change that, ingest again into another store.collection",
                self._name,
                ", ".join(differing),
            )
        if found.write_consistency_factor > 1:
            log.warning(
                "collection %r needs %d copies for every write (write_consistency_factor): while a node is away writes fail, "
                "stay in the copies that live, and nothing makes the copies equal; look for such points with `python -m "
                "vector_store verify --repair`, or create collections with factor 1",
                self._name,
                found.write_consistency_factor,
            )

    def _set_indexing_threshold(self, kilobytes: int) -> None:
        request = api.UpdateCollection(collection_name=self._name)
        request.optimizers_config.indexing_threshold = kilobytes
        self._call(self._client.collections.Update, request)

    def _call(self, stub_method: Any, request: Any) -> Any:
        return self._client.call(stub_method, request, self._config.write_deadline_s)

    def _in_every_copy(self, request: api.GetPoints) -> Sequence[api.RetrievedPoint]:
        """The points that every copy has.

        Where one does not answer, those of one copy: what it has missed meanwhile is written to it before it is read again.
        That holds while a write needs a single copy; where it needs more, failed writes leave copies different: this waits.
        """
        parameters = self.parameters()
        if parameters.replication_factor > 1 and time.monotonic() >= self._ask_one_until_s:
            request.read_consistency.type = api.ReadConsistencyType.All
            if parameters.write_consistency_factor > 1:
                return self._call(self._client.points.Get, request).result
            try:
                deadline_s = min(EVERY_COPY_S, self._config.write_deadline_s)
                return self._client.ask(self._client.points.Get, [request], deadline_s)[0].result
            except StoreUnavailable as error:
                log.warning("a copy of %r does not answer, asking the others what is stored: %s", self._name, error)
                self._ask_one_until_s = time.monotonic() + EVERY_COPY_S
            request.ClearField("read_consistency")
        return self._call(self._client.points.Get, request).result

    def _scroll_whole(self, limit: int, where: tuple[str, str] | None = None) -> Iterator[list[api.RetrievedPoint]]:
        request = api.ScrollPoints(
            collection_name=self._name,
            limit=max(1, limit),
            with_payload=api.WithPayloadSelector(enable=True),
            with_vectors=api.WithVectorsSelector(enable=True),
            filter=field_filter(where),
        )
        one = api.ScrollPoints(collection_name=self._name, limit=1, with_payload=payload_fields(()))
        first = self._call(self._client.points.Scroll, one).result
        if not (first and first[0].id.HasField("num")):  # something else wrote those, and they come before blobs
            request.offset.uuid = FIRST_POINT
        for page in scroll(self._client, request, self._config.write_deadline_s):
            yield [point for point in page if not is_blob(point.id)]

    def _get(self, ids: Sequence[str], payload: Sequence[str]) -> Iterator[api.RetrievedPoint]:
        for some in _by_call(ids):
            yield from self._call(self._client.points.Get, get_points(self._name, some, payload)).result


def _indexing_threshold(found: api.CollectionInfo) -> int:
    """Kilobytes of vectors in a shard from which on it gets an index."""
    return max(1, INDEXING_THRESHOLD_KB // max(1, found.config.params.shard_number))


def scanned(state: IndexState) -> str:
    """Say what look-ups scan, and what to do about it."""
    return (
        f"look-ups by `dense` scan {state.unindexed} of {state.points} vectors ({state.unindexed_bytes / 1e6:.0f} MB); where "
        "the index is not being built, lower the collection's indexing_threshold: it counts for each segment of each shard"
    )


def settle(
    change: Callable[[], object], is_made: Callable[[], bool], what: str, advice: str = "then repeat it where it is not"
) -> None:
    """Make a change, and look again where the answer leaves open whether it was made.

    A cluster whose nodes do not agree in time answers INTERNAL, and may make the change once they are back.
    StoreUnavailable where the look does not find it made.
    """
    try:
        change()
    except StoreError as error:
        code = error.__cause__.code() if isinstance(error.__cause__, grpc.Call) else None
        if not (isinstance(error, StoreUnavailable) or code in UNKNOWN_OUTCOMES):
            raise
        with suppress(StoreError):
            if is_made():
                log.warning("%s: made, though the store answered: %s", what, error)
                return
        raise StoreUnavailable(
            f"{what} may still be applied when the store's nodes are back ({error}); see `python -m vector_store info` and "
            f"`aliases` by then, {advice}"
        ) from error


def aliases(client: Client, deadline_s: float = 10.0) -> dict[str, str]:
    """Every alias at the client's address, with the collection that it names."""
    answer = client.call(client.collections.ListAliases, api.ListAliasesRequest(), deadline_s)
    return {found.alias_name: found.collection_name for found in answer.aliases}


def pinned(client: Client, config: StoreConfig) -> StoreConfig:
    """The config with the collection that its name stands for now, an alias's or its own.

    What takes several calls uses it throughout, so that it reads and writes one version while the alias is switched.
    """
    collection = aliases(client, config.write_deadline_s).get(config.collection, config.collection)
    return config.model_copy(update={"collection": collection})


def collection_names(client: Client, deadline_s: float = 10.0) -> list[str]:
    """Names of all collections at the client's address."""
    response = client.call(client.collections.List, api.ListCollectionsRequest(), deadline_s)
    return [collection.name for collection in response.collections]


def collections_there(client: Client, deadline_s: float = 10.0) -> str:
    """The same as an error line names them."""
    return ", ".join(sorted(collection_names(client, deadline_s))) or "none"


def scroll(client: Client, request: api.ScrollPoints, deadline_s: float) -> Iterator[list[api.RetrievedPoint]]:
    """Every page of a scroll, from the request's offset on; the request is changed."""
    while True:
        answer = client.call(client.points.Scroll, request, deadline_s)
        if answer.result:
            yield list(answer.result)
        if not answer.HasField("next_page_offset"):
            return
        request.offset.CopyFrom(answer.next_page_offset)


def field_filter(where: tuple[str, str] | None) -> api.Filter | None:
    """Filter for the points whose payload field (document, source or split) has exactly this value; None without one."""
    if where is None:
        return None
    key, value = where
    condition = api.Condition(field=api.FieldCondition(key=key, match=api.Match(keyword=value)))
    return api.Filter(must=[condition])


def _by_call(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many ids as one call names, one after another."""
    for start in range(0, len(ids), IDS_PER_CALL):
        yield ids[start : start + IDS_PER_CALL]


def get_points(collection: str, ids: Sequence[str], payload: Sequence[str]) -> api.GetPoints:
    """A request for points by id with some payload fields and no vectors."""
    return api.GetPoints(
        collection_name=collection,
        ids=[api.PointId(uuid=i) for i in ids],
        with_payload=payload_fields(payload),
        with_vectors=api.WithVectorsSelector(enable=False),
    )


def payload_fields(fields: Sequence[str]) -> api.WithPayloadSelector:
    """Select these payload fields, or none."""
    if not fields:
        return api.WithPayloadSelector(enable=False)
    return api.WithPayloadSelector(include=api.PayloadIncludeSelector(fields=fields))


def _create_collection(
    config: StoreConfig, manifest: Manifest, attachments: Mapping[str, bytes]
) -> api.CreateCollection:
    request = api.CreateCollection(
        collection_name=config.collection,
        on_disk_payload=True,
        shard_number=config.shard_number,
        replication_factor=config.replication_factor,
        write_consistency_factor=config.write_consistency_factor,
    )
    # Without Qdrant's IDF, which counts per shard, and deleted points too: it is in the query (term_statistics).
    keywords = request.sparse_vectors_config.map[KEYWORDS]
    # Below its default of 5000 points a filtered look-up scores every point instead of using the index: 40 ms instead of
    # 0.7 ms for 32 look-ups among 4000 points.
    keywords.index.full_scan_threshold = 1
    if manifest.dense_index:
        params = request.vectors_config.params_map.map[SENTENCE]
        params.size = manifest.words_dim
        # Of unit vectors (`codec.unit`): Cosine would scale float16 to length 1 again, and copies would differ from originals.
        params.distance = api.Distance.Dot
        params.datatype = api.Datatype.Float16
        params.hnsw_config.m, params.hnsw_config.ef_construct = HNSW_M, HNSW_EF_CONSTRUCT
        # A search walks over 8-bit vectors and orders what it found by the stored ones (`Retriever`).
        params.quantization_config.scalar.type = api.QuantizationType.Int8
        params.quantization_config.scalar.always_ram = True
    request.metadata[IDENTITY].string_value = uuid.uuid4().hex
    for key, value in manifest.model_dump().items():
        kind = {str: "string", bool: "bool", int: "integer", float: "double"}[type(value)]
        setattr(request.metadata[key], f"{kind}_value", value)
    for key, content in attachments.items():
        request.metadata[key].CopyFrom(_attached(content))
    return request


def _attached(content: bytes) -> api.Value:
    return api.Value(string_value=as_text(content))


def _differences(name: str, found: Manifest, wanted: Manifest, fields: list[str]) -> str:
    found_text, wanted_text = (
        ", ".join(f"{key}={getattr(manifest, key)!r}" for key in fields) for manifest in (found, wanted)
    )
    return (
        f"collection {name!r} was written by {found.encoder} with {found_text}; this run wants {wanted_text}; {REMEDY}"
    )
