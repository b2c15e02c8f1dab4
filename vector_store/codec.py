"""Points to protobuf and back, straight between numpy and packed bytes.

States and token ids travel as base64 in the payload: little-endian float16 and int32, row by row. A float16 multivector
holds the same, but took 40 ms against 11 ms to write 32 points of 32 x 384 and 22 ms against 11 ms to find and decode
them (embedded server, 2 cores, both sides numpy without lists): gRPC carries float32, and the engine hands out lists.
Checks what it packs; knows nothing of collections and connections.
"""

import binascii
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from qdrant_client import grpc as api

from vector_store.errors import InvalidPoint
from vector_store.schema import KEYWORDS, SENTENCE, Manifest, Neighbours, Point, SparseVector, StoredPoint

STATES = "states"
TOKEN_IDS = "token_ids"
TEXT = "text"
SOURCE = "source"
DOCUMENT = "document"
SPLIT = "split"

_STATES_TYPE = np.dtype("<f2")
_TOKEN_IDS_TYPE = np.dtype("<i4")


def check(point: Point, manifest: Manifest) -> None:
    """InvalidPoint, with the reason, where a collection of this manifest could not hold the point."""

    def require(holds: bool, found: str) -> None:
        if not holds:
            raise InvalidPoint(f"point {point.id}: {found}; leave this text out or encode it again")

    try:
        canonical = str(uuid.UUID(point.id)) == point.id
    except ValueError:
        canonical = False
    require(canonical, "its id is not a UUID in lower-case canonical form")
    shape = point.states.shape
    require(
        len(shape) == 2 and 0 < shape[0] <= manifest.tokens and shape[1] == manifest.dim,
        f"states of shape {shape}, wanted (1 to {manifest.tokens}, {manifest.dim})",
    )
    require(point.token_ids.shape == shape[:1], f"{point.token_ids.shape} token ids for {shape[0]} states")
    require(bool(np.isfinite(point.states).all()), "states hold NaN or infinite values")
    indices, values = point.keywords
    require(len(indices) == len(values), f"keywords have {len(indices)} indices and {len(values)} values")
    require(len(np.unique(indices)) == len(indices), "keywords repeat an index")
    require(bool(np.isfinite(values).all()), "keywords hold NaN or infinite values")
    require(
        (point.sentence is not None) == manifest.dense_index,
        "has a sentence vector, the collection has no dense index"
        if point.sentence is not None
        else "has no sentence vector, the collection has a dense index",
    )
    if point.sentence is not None:
        require(
            point.sentence.shape == (manifest.dim,),
            f"sentence vector of shape {point.sentence.shape}, wanted ({manifest.dim},)",
        )
        require(bool(np.isfinite(point.sentence).all()), "sentence vector holds NaN or infinite values")


def encode(point: Point) -> api.PointStruct:
    """The point as stored. Check it first."""
    message = api.PointStruct(id=api.PointId(uuid=point.id))
    packed = {
        STATES: _pack(point.states.astype(_STATES_TYPE, copy=False)),
        TOKEN_IDS: _pack(point.token_ids.astype(_TOKEN_IDS_TYPE, copy=False)),
        TEXT: point.text,
        SOURCE: point.source,
        DOCUMENT: point.document,
        SPLIT: point.split,
    }
    for key, value in packed.items():
        message.payload[key].string_value = value
    vectors = message.vectors.vectors.vectors
    vectors[KEYWORDS].sparse.CopyFrom(sparse_message(point.keywords))
    if point.sentence is not None:
        vectors[SENTENCE].dense.data.extend(point.sentence)
    return message


def sparse_message(vector: SparseVector) -> api.SparseVector:
    """A sparse vector for a point or a query."""
    # Lists, because protobuf takes numpy's scalars one by one, at several times the price.
    return api.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


def empty_neighbours(batch: int, manifest: Manifest) -> Neighbours:
    """`batch` rows without a neighbour, each on the ladder's null step."""
    return Neighbours(
        ids=[None] * batch,
        texts=[None] * batch,
        scores=np.zeros(batch, np.float32),
        states=np.zeros((batch, manifest.tokens, manifest.dim), np.float16),
        token_ids=np.zeros((batch, manifest.tokens), np.int32),
        mask=np.zeros((batch, manifest.tokens), np.bool_),
        steps=["null"] * batch,
    )


def decode(point: Any, tokens: int, dim: int) -> StoredPoint:
    """What a RetrievedPoint or ScoredPoint holds, its arrays read-only; the text only where it came along.

    Raises InvalidPoint where that is not 1 to `tokens` states of `dim` with as many token ids.
    """
    payload: Mapping[str, api.Value] = point.payload
    try:
        states = np.frombuffer(binascii.a2b_base64(payload[STATES].string_value), _STATES_TYPE).reshape(-1, dim)
        token_ids = np.frombuffer(binascii.a2b_base64(payload[TOKEN_IDS].string_value), _TOKEN_IDS_TYPE)
        if not 0 < len(states) == len(token_ids) <= tokens:
            raise ValueError(f"{len(states)} states and {len(token_ids)} token ids")
    except ValueError as error:
        raise InvalidPoint(
            f"stored point {point.id.uuid} is not packed as at most {tokens} states of {dim} with their token ids "
            f"({error}); it was not written by this package: write it again or delete it"
        ) from error
    return StoredPoint(point.id.uuid, states, token_ids, payload[TEXT].string_value if TEXT in payload else None)


def decode_into(row: int, neighbours: Neighbours, point: Any) -> None:
    """Fill one row of an empty batch from a RetrievedPoint or ScoredPoint."""
    tokens, dim = neighbours.states.shape[1:]
    fill(row, neighbours, decode(point, tokens, dim))


def fill(row: int, neighbours: Neighbours, point: StoredPoint) -> None:
    """Copy a point into one row of an empty batch."""
    length = len(point.states)
    neighbours.ids[row] = point.id
    neighbours.texts[row] = point.text
    neighbours.states[row, :length] = point.states
    neighbours.token_ids[row, :length] = point.token_ids
    neighbours.mask[row, :length] = True


def _pack(array: np.ndarray) -> str:
    return binascii.b2a_base64(np.ascontiguousarray(array).data, newline=False).decode("ascii")
