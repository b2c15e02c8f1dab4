"""Read a collection that something else wrote: texts and their vectors, as a search index keeps them.

Only reads. Knows nothing of who made the vectors.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vector_store.client import Client
from vector_store.errors import CollectionMismatch, CollectionMissing
from vector_store.protocol import api
from vector_store.schema import Manifest
from vector_store.store import collections_there, payload_fields, scroll

PAGE_BYTES = 8 * 2**20
"""Bytes of a page's vectors; texts come beside them."""

MOST_POINTS = 256


class ForeignVectors(NamedTuple):
    """One kind of vectors in a collection: `name` is empty where the collection has a single one without a name."""

    collection: str
    name: str
    dim: int
    points: int


class ForeignPoint(NamedTuple):
    """A point: its id as a string, its text, None where the payload has none, and its vector (dim,), None where it has none."""

    id: str
    text: str | None
    vector: NDArray[np.float32] | None


def foreign_vectors(client: Client, collection: str, name: str | None, deadline_s: float) -> ForeignVectors:
    """Return the vectors of this name, or the only ones where it is None. CollectionMissing where there is no collection.

    CollectionMismatch for a memory of this project's own, for several vectors without a name given, for a name that there is
    not, and for vectors of vectors.
    """
    request = api.GetCollectionInfoRequest(collection_name=collection)
    try:
        found = client.call(client.collections.Get, request, deadline_s).result.config
    except CollectionMissing:
        there = collections_there(client, deadline_s)
        raise CollectionMissing(
            f"there is no collection {collection!r} at {client.url} (there are: {there}); name one in adapt.adopt.collection"
        ) from None
    if {"fingerprint", "format_version"} <= found.metadata.keys() & Manifest.model_fields.keys():
        raise CollectionMismatch(
            f"collection {collection!r} at {client.url} is a memory already; another student is adapted to it by "
            f"`python jobs/adapt.py adapt.collection={collection}`"
        )
    config = found.params.vectors_config
    single = config.WhichOneof("config") == "params"
    kinds = {"": config.params} if single else dict(config.params_map.map)
    if name is None and len(kinds) == 1:
        (name,) = kinds
    if name is None or name not in kinds:
        there = ", ".join(sorted(kinds)) or "none"
        found_are = "one vector without a name" if single else f"the vectors {there}"
        raise CollectionMismatch(
            f"collection {collection!r} at {client.url} has {found_are}"
            + ("" if name is None else f", and no {name!r}")
            + ("; leave adapt.adopt.vector out" if single else "; name one in adapt.adopt.vector")
        )
    if kinds[name].HasField("multivector_config"):
        raise CollectionMismatch(
            f"vector {name!r} of collection {collection!r} is a list of vectors for each text; wanted one vector for each"
        )
    counted = api.CountPoints(collection_name=collection, exact=True)
    count = client.call(client.points.Count, counted, deadline_s).result.count
    return ForeignVectors(collection, name, kinds[name].size, count)


def foreign_points(
    client: Client, vectors: ForeignVectors, text_field: str, deadline_s: float
) -> Iterator[list[ForeignPoint]]:
    """Yield every point, page by page, in the store's order. Dots in `text_field` lead into nested payloads."""
    request = api.ScrollPoints(
        collection_name=vectors.collection,
        limit=max(1, min(MOST_POINTS, PAGE_BYTES // (4 * vectors.dim))),
        with_payload=payload_fields([text_field]),
    )
    if vectors.name:
        request.with_vectors.include.names.append(vectors.name)
    else:
        request.with_vectors.enable = True
    for page in scroll(client, request, deadline_s):
        yield [_point(message, vectors.name, text_field) for message in page]


def payload_names(client: Client, collection: str, deadline_s: float) -> list[str]:
    """Return the names of the first points' payload fields: what an error names."""
    request = api.ScrollPoints(collection_name=collection, limit=16, with_payload=api.WithPayloadSelector(enable=True))
    first = client.call(client.points.Scroll, request, deadline_s).result
    return sorted({name for point in first for name in point.payload})


def _point(message: api.RetrievedPoint, name: str, text_field: str) -> ForeignPoint:
    identifier = message.id.uuid if message.id.HasField("uuid") else str(message.id.num)
    found = message.vectors.vectors.vectors.get(name) if name else message.vectors.vector
    numbers = [] if found is None else (found.dense.data or found.data)  # the latter before Qdrant 1.16
    vector = np.array(numbers, np.float32) if len(numbers) else None
    return ForeignPoint(identifier, _text(message, text_field), vector)


def _text(message: api.RetrievedPoint, field: str) -> str | None:
    value = message.payload.get(field)
    names = field.split(".")
    if value is None and len(names) > 1:
        value = message.payload.get(names[0])
        for name in names[1:]:
            value = value.struct_value.fields.get(name) if value is not None else None
    text = value.string_value if value is not None and value.WhichOneof("kind") == "string_value" else ""
    return text if text.strip() else None
