"""Byte strings that travel with a collection, as points without vectors: no search finds them, and scrolls over texts begin
after them.

A text's id is a hash (UUID5), never one whose first eight bytes are zero: those are a blob's. Because blobs are points, a
snapshot, a copy on another node and an alias's switch carry them along, whatever their size; a collection's metadata goes
through a cluster's consensus and comes with every look at the collection, and is for small values only. Knows nothing of what
the bytes are.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator

from vector_store.client import Client
from vector_store.codec import FIRST_POINT, as_bytes, as_text
from vector_store.config import StoreConfig
from vector_store.errors import InvalidPoint
from vector_store.protocol import api

PART_BYTES = 2**20
PAGE, POINT_BYTES = 64, 256
"""Points of a page that looks for blobs, and most bytes of one of them in an answer, without its content."""

NAME, CONTENT, NUM_PARTS, DIGEST = "blob", "content", "parts", "digest"

READS = 5
"""Most readings of a blob that is being replaced meanwhile, with BETWEEN_READS_S between them."""

BETWEEN_READS_S = 0.1


def is_blob(point_id: api.PointId) -> bool:
    """Whether a point is part of a blob."""
    return point_id.HasField("uuid") and point_id.uuid < FIRST_POINT


def write_blob(client: Client, config: StoreConfig, name: str, content: bytes) -> None:
    """Keep bytes under a name with the collection; earlier ones are replaced. A reader gets the old ones or the new ones."""
    size = min(PART_BYTES, config.upsert_bytes // 2)
    parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    digest = hashlib.sha256(content).hexdigest()
    for number, part in reversed(list(enumerate(parts))):  # the first one, which says how many there are, comes last
        point = api.PointStruct(id=api.PointId(uuid=_part_id(name, number)))
        point.vectors.vectors.SetInParent()
        for key, value in ((NAME, name), (CONTENT, as_text(part)), (DIGEST, digest)):
            point.payload[key].string_value = value
        point.payload[NUM_PARTS].integer_value = len(parts)
        request = api.UpsertPoints(collection_name=config.collection, wait=True, points=[point])
        client.call(client.points.Upsert, request, config.write_deadline_s)


def delete_blob(client: Client, config: StoreConfig, name: str) -> None:
    """Delete what is kept under a name; where nothing is, nothing happens."""
    by_name = api.Condition(field=api.FieldCondition(key=NAME, match=api.Match(keyword=name)))
    selected = api.PointsSelector(filter=api.Filter(must=[by_name]))
    request = api.DeletePoints(collection_name=config.collection, wait=True, points=selected)
    client.call(client.points.Delete, request, config.write_deadline_s)


def read_blob(client: Client, config: StoreConfig, name: str) -> bytes | None:
    """The bytes that are kept under a name; None where there are none. InvalidPoint where parts of them are gone."""

    def get(request: api.GetPoints) -> api.GetResponse:
        return client.call(client.points.Get, request, config.write_deadline_s)

    return read_parts(get, config.collection, name)


def read_parts(get: Callable[[api.GetPoints], api.GetResponse], collection: str, name: str) -> bytes | None:
    """The same for a caller with its own way to `get` points: other deadlines, say."""

    def part(number: int) -> api.RetrievedPoint | None:
        request = api.GetPoints(
            collection_name=collection,
            ids=[api.PointId(uuid=_part_id(name, number))],
            with_payload=api.WithPayloadSelector(enable=True),
            with_vectors=api.WithVectorsSelector(enable=False),
        )
        return next(iter(get(request).result), None)

    for attempt in range(READS):
        if attempt:
            time.sleep(BETWEEN_READS_S)
        if (first := part(0)) is None:
            return None
        rest = [part(number) for number in range(1, first.payload[NUM_PARTS].integer_value)]
        content = b"".join(as_bytes(found.payload[CONTENT].string_value) for found in (first, *rest) if found)
        if hashlib.sha256(content).hexdigest() == first.payload[DIGEST].string_value:
            return content
    raise InvalidPoint(f"blob {name!r} of collection {collection!r} is incomplete; write it again")


def blobs(client: Client, config: StoreConfig) -> Iterator[tuple[str, bytes]]:
    """Every blob of the collection, by name."""
    for name in blob_names(client, config):
        if (content := read_blob(client, config, name)) is not None:
            yield name, content


def blob_names(client: Client, config: StoreConfig) -> list[str]:
    """The names of all blobs, sorted."""
    pages = _blob_pages(client, config, payload=[NAME])
    return sorted({point.payload[NAME].string_value for page in pages for point in page if NAME in point.payload})


def num_blob_points(client: Client, config: StoreConfig) -> int:
    """How many of the collection's points are parts of blobs."""
    return sum(len(page) for page in _blob_pages(client, config, payload=[]))


def _part_id(name: str, number: int) -> str:
    hashed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
    return str(uuid.UUID(int=hashed << 16 | number))


def _blob_pages(client: Client, config: StoreConfig, payload: list[str]) -> Iterator[list[api.RetrievedPoint]]:
    """Every page of the scroll that holds a blob's part."""
    selector = (
        api.WithPayloadSelector(include=api.PayloadIncludeSelector(fields=payload))
        if payload
        else api.WithPayloadSelector(enable=False)
    )
    limit = max(1, min(PAGE, config.message_bytes // POINT_BYTES))
    request = api.ScrollPoints(collection_name=config.collection, limit=limit, with_payload=selector)
    while True:
        answer = client.call(client.points.Scroll, request, config.write_deadline_s)
        if page := [point for point in answer.result if is_blob(point.id)]:
            yield page
        if any(point.id.uuid >= FIRST_POINT for point in answer.result) or not answer.HasField("next_page_offset"):
            return
        request.offset.CopyFrom(answer.next_page_offset)
