"""Encode points as protobuf messages and decode them, directly between numpy and packed bytes.

States and token ids are base64 in the payload: little-endian float16 and int32, row by row. With int8, a row is divided by
1/127 of its largest absolute value, and these divisors (float16) precede all rows. A float16 multivector would hold the same,
but takes 40 ms instead of 11 ms to write 32 points of 32 x 384, and 22 ms instead of 11 ms to find and decode them (embedded
server, 2 cores, numpy without lists on both sides): gRPC sends float32, and the engine returns lists.
Checks points against a manifest; knows nothing of collections and connections.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray
from qdrant_client import grpc as api

from vector_store.config import Datatype
from vector_store.errors import InvalidPoint
from vector_store.schema import KEYWORDS, SENTENCE, Manifest, Neighbours, Point, SparseVector, StoredPoint, Text, parts

STATES = "states"
TOKEN_IDS = "token_ids"
TEXT = "text"
TEXT_PAIR = "text_pair"
SOURCE = "source"
DOCUMENT = "document"
SPLIT = "split"

_FLOAT16 = np.dtype("<f2")
_TOKEN_IDS_TYPE = np.dtype("<i4")


def check(point: Point, manifest: Manifest) -> None:
    """Check that a collection with this manifest can hold the point; InvalidPoint, with the reason, where not."""

    def require(holds: bool, found: str) -> None:
        if not holds:
            raise InvalidPoint(f"point {point.id}: {found}; leave this text out or encode it again", reason=found)

    try:
        canonical = str(uuid.UUID(point.id)) == point.id
    except ValueError:
        canonical = False
    require(canonical, "its id is not a UUID in lower-case canonical form")
    indices, values = point.keywords
    for name, array, wanted in (
        ("states", point.states, np.float16),
        ("token ids", point.token_ids, np.int32),
        ("indices of keywords", indices, np.uint32),
        ("values of keywords", values, np.float32),
    ):
        require(array.dtype == wanted, f"{name} are {array.dtype}, wanted {np.dtype(wanted)}")
    for field, value in _strings(point).items():
        require(_is_text(value), f"{field} is {value!a}, wanted a string that UTF-8 can hold")
    shape = point.states.shape
    require(
        len(shape) == 2 and 0 < shape[0] <= manifest.tokens and shape[1] == manifest.dim,
        f"states of shape {shape}, wanted (1 to {manifest.tokens}, {manifest.dim})",
    )
    require(point.token_ids.shape == shape[:1], f"{point.token_ids.shape} token ids for {shape[0]} states")
    require(bool(np.isfinite(point.states).all()), "states hold NaN or infinite values")
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
            point.sentence.shape == (manifest.encoder_dim,),
            f"sentence vector of shape {point.sentence.shape}, wanted ({manifest.encoder_dim},)",
        )
        require(bool(np.isfinite(point.sentence).all()), "sentence vector holds NaN or infinite values")


def encode(point: Point, datatype: Datatype) -> api.PointStruct:
    """The point as a message to store. Call `check` first."""
    message = api.PointStruct(id=api.PointId(uuid=point.id))
    packed = {
        STATES: as_text(point.packed_states or pack_states(point.states, datatype)),
        TOKEN_IDS: as_text(point.token_ids.astype(_TOKEN_IDS_TYPE, copy=False).tobytes()),
        **_strings(point),
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
    # Lists, because protobuf converts numpy's scalars one by one: 9 us instead of 2 us for 25 of them.
    return api.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


def empty_neighbours(batch: int, manifest: Manifest, count: int = 1) -> Neighbours:
    """`batch` empty rows with room for `count` neighbours each, on the null rung of the degrade ladder."""
    tokens = count * manifest.tokens
    return Neighbours(
        ids=[[] for _ in range(batch)],
        texts=[[] for _ in range(batch)],
        scores=np.zeros((batch, count), np.float32),
        states=np.zeros((batch, tokens, manifest.dim), np.float16),
        token_ids=np.zeros((batch, tokens), np.int32),
        ranks=np.full((batch, tokens), -1, np.int16),
        rungs=["null"] * batch,
    )


def pack_states(states: NDArray[np.float16], datatype: Datatype) -> bytes:
    """Pack states (tokens, dim) as they are stored, before base64. Finite states are unpacked as finite ones."""
    if datatype == "float16":
        return states.astype(_FLOAT16, copy=False).tobytes()
    largest = np.abs(states).max(1, keepdims=True).astype(np.float32)
    # The smallest normal float16: below it the divisor itself would lose precision.
    divisors = np.maximum(largest / 127, np.finfo(np.float16).tiny).astype(_FLOAT16)
    rounded = np.clip(np.rint(states.astype(np.float32) / divisors.astype(np.float32)), -127, 127)
    return divisors.tobytes() + rounded.astype(np.int8).tobytes()


def unpack_states(packed: bytes, dim: int, datatype: Datatype) -> NDArray[np.float16]:
    """Unpack states (tokens, dim) from `pack_states`; ValueError where the bytes are not a whole number of rows."""
    if datatype == "float16":
        return np.frombuffer(packed, _FLOAT16).reshape(-1, dim)
    length, rest = divmod(len(packed), dim + _FLOAT16.itemsize)
    if rest:
        raise ValueError(f"{len(packed)} bytes are not a whole number of int8 rows of {dim} with their divisors")
    divisors = np.frombuffer(packed, _FLOAT16, length).astype(np.float32)
    rounded = np.frombuffer(packed, np.int8, offset=length * _FLOAT16.itemsize).reshape(length, dim)
    # A divisor rounded up may carry the largest value just past float16's range.
    limit = float(np.finfo(np.float16).max)
    return np.clip(rounded * divisors[:, None], -limit, limit).astype(np.float16)


def decode_states(point: Any, tokens: int, dim: int, datatype: Datatype) -> StoredPoint:
    """Decode what a look-up reads of a RetrievedPoint or ScoredPoint; the text is None where the message has none.

    InvalidPoint where it is not 1 to `tokens` states of `dim` with as many token ids.
    """
    payload: Mapping[str, api.Value] = point.payload
    try:
        states = unpack_states(as_bytes(payload[STATES].string_value), dim, datatype)
        token_ids = np.frombuffer(as_bytes(payload[TOKEN_IDS].string_value), _TOKEN_IDS_TYPE)
        if not 0 < len(states) == len(token_ids) <= tokens:
            raise ValueError(f"{len(states)} states and {len(token_ids)} token ids")
    except ValueError as error:
        raise InvalidPoint(
            f"stored point {point.id.uuid} is not packed as at most {tokens} {datatype} states of {dim} with their token "
            f"ids ({error}); it was not written by this package: write it again or delete it"
        ) from error
    text = payload[TEXT].string_value if TEXT in payload else None
    pair = payload[TEXT_PAIR].string_value if TEXT_PAIR in payload else None
    return StoredPoint(point.id.uuid, states, token_ids, text if text is None or pair is None else (text, pair))


def decode_into(row: int, neighbours: Neighbours, point: Any, datatype: Datatype) -> None:
    """Fill one row of an empty batch, with room for one neighbour, from a RetrievedPoint or ScoredPoint."""
    tokens, dim = neighbours.states.shape[1:]
    fill_row(row, neighbours, [decode_states(point, tokens, dim, datatype)])


def fill_row(row: int, neighbours: Neighbours, points: Sequence[StoredPoint], scores: Sequence[float] = ()) -> None:
    """Copy points, the best first, without gaps into one row of an empty batch."""
    end = 0
    for rank, point in enumerate(points):
        start, end = end, end + len(point.states)
        neighbours.states[row, start:end] = point.states
        neighbours.token_ids[row, start:end] = point.token_ids
        neighbours.ranks[row, start:end] = rank
    neighbours.ids[row] = [point.id for point in points]
    neighbours.texts[row] = [point.text for point in points]
    for rank, score in enumerate(scores):
        neighbours.scores[row, rank] = score


def decode(message: api.RetrievedPoint, manifest: Manifest) -> Point:
    """Decode a whole point from a message with payload and vectors, the inverse of `encode`. Does not `check` it.

    InvalidPoint, with the reason, where a part is missing or of another kind.
    """
    identifier = message.id.uuid or str(message.id.num)
    vectors = message.vectors.vectors.vectors
    try:
        return Point(
            id=identifier,
            states=unpack_states(packed_states(message), manifest.dim, manifest.datatype),
            token_ids=np.frombuffer(as_bytes(_field(message.payload, TOKEN_IDS)), _TOKEN_IDS_TYPE),
            # A store may leave out an empty vector.
            keywords=_sparse(vectors[KEYWORDS] if KEYWORDS in vectors else api.VectorOutput()),
            sentence=_dense(vectors[SENTENCE]) if SENTENCE in vectors else None,
            text=_text(message.payload),
            source=_field(message.payload, SOURCE),
            document=_field(message.payload, DOCUMENT),
            split=_field(message.payload, SPLIT),
        )
    except ValueError as error:
        raise InvalidPoint(
            f"stored point {identifier} is not packed as this package packs: {error}; write it again or delete it",
            reason=str(error),
        ) from error


def packed_states(message: api.RetrievedPoint) -> bytes:
    """A stored point's states as the packed bytes that are stored; ValueError where there are none."""
    return as_bytes(_field(message.payload, STATES))


def as_text(packed: bytes) -> str:
    """Bytes as base64, for a payload or metadata."""
    return pybase64.b64encode_as_string(packed)


def as_bytes(text: str) -> bytes:
    """Bytes of a base64 text; ValueError for any other text. Takes 2 us for a reference of 24 kB, binascii 49."""
    return pybase64.b64decode(text, validate=True)


def _strings(point: Point) -> dict[str, str]:
    """The payload fields that are plain strings; only a pair has the one of the second text."""
    texts = dict(zip((TEXT, TEXT_PAIR), parts(point.text), strict=False))
    return {**texts, SOURCE: point.source, DOCUMENT: point.document, SPLIT: point.split}


def _text(payload: Mapping[str, api.Value]) -> Text:
    text = _field(payload, TEXT)
    return (text, _field(payload, TEXT_PAIR)) if TEXT_PAIR in payload else text


def _field(payload: Mapping[str, api.Value], key: str) -> str:
    kind = payload[key].WhichOneof("kind") if key in payload else None
    if kind != "string_value":
        found = f"a {kind.removesuffix('_value')}" if kind else "nothing"
        raise ValueError(f"payload field {key!r} holds {found}, wanted a string")
    return payload[key].string_value


def _sparse(vector: api.VectorOutput) -> SparseVector:
    if vector.WhichOneof("vector") == "sparse":
        indices, values = vector.sparse.indices, vector.sparse.values
    else:  # the older, flat form
        indices, values = vector.indices.data, vector.data
    return SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))


def _dense(vector: api.VectorOutput) -> NDArray[np.float32]:
    return np.array(vector.dense.data if vector.WhichOneof("vector") == "dense" else vector.data, np.float32)


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
