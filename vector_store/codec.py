"""Encode points as protobuf messages, decode them, also into rows of neighbours, and check them against a manifest.

States, the teacher's vector, residuals and token ids are packed bytes, in base64 in the payload: little-endian float16, and
uint16 or int32, row by row. With int8, a row is divided by 1/127 of its largest absolute value, and these divisors (float16)
precede all rows. What a point is found by, its keywords (sparse) and its sentence vector (dense), are named vectors of Qdrant
and not packed. A float16 multivector would hold the same states, but takes 40 ms instead of 11 ms to write 32 points of 32 x
384, and 22 ms instead of 11 ms to find and decode them (embedded server, 2 cores, numpy without lists on both sides): gRPC
sends float32, and the engine returns lists.

Reads no collection and opens no connection.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray

from vector_store.config import Datatype
from vector_store.errors import InvalidPoint
from vector_store.protocol import api
from vector_store.schema import (
    KEYWORDS,
    SENTENCE,
    STATES_ALONE,
    Manifest,
    Neighbours,
    Parts,
    Point,
    SparseVector,
    StoredPoint,
    Text,
    parts,
    row_bytes,
)

VECTOR = "vector"
RESIDUAL = "residual_"
"""Followed by who reads it."""

STATES = "states"
TOKEN_IDS = "token_ids"
TEXT = "text"
TEXT_PAIR = "text_pair"
SOURCE = "source"
DOCUMENT = "document"
SPLIT = "split"

FIRST_POINT = str(uuid.UUID(int=1 << 64))
"""The least id of a point. Those below are the blobs' that travel with a collection: they are neither counted nor read."""

MOST = float(np.finfo(np.float16).max)
"""Largest absolute value of a vector's number: what float16, and int8 with a float16 divisor, can hold."""

UNIT_TOLERANCE = 1e-3
"""Rounding to float16 changes a vector's length by less."""

_FLOAT16 = np.dtype("<f2")
_TOKEN_IDS_TYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<i4")}


def as_written(found: api.RetrievedPoint) -> api.PointStruct:
    """A point that was read with payload and vectors, as the message that writes the same point."""
    written = api.PointStruct(id=found.id, payload=found.payload)
    written.vectors.vectors.SetInParent()
    for name, vector in found.vectors.vectors.vectors.items():
        kind = vector.WhichOneof("vector")
        getattr(written.vectors.vectors.vectors[name], kind).CopyFrom(getattr(vector, kind))
    return written


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
    require(point.id >= FIRST_POINT, f"its id is below {FIRST_POINT}, where what travels with a collection is kept")
    indices, values = point.keywords
    for name, array, wanted in (
        ("token ids", point.token_ids, np.int32),
        ("indices of keywords", indices, np.uint32),
        ("values of keywords", values, np.float32),
    ):
        require(array.dtype == wanted, f"{name} are {array.dtype}, wanted {np.dtype(wanted)}")
    for field, value in _strings(point).items():
        require(_is_text(value), f"{field} is {value!a}, wanted a string that UTF-8 can hold")
    num_tokens = len(point.token_ids)
    require(
        point.token_ids.ndim == 1 and 0 < num_tokens <= manifest.text_tokens,
        f"token ids of shape {point.token_ids.shape}, wanted (1 to {manifest.text_tokens},)",
    )
    most = np.iinfo(_TOKEN_IDS_TYPES[manifest.token_bytes]).max
    require(
        bool((point.token_ids >= 0).all() and (point.token_ids <= most).all()),
        f"token ids from {point.token_ids.min()} to {point.token_ids.max()}, wanted 0 to {most}",
    )
    if point.states is None:
        require(not manifest.tokens, "has no states, the collection stores them")
    else:
        wanted_shape = min(num_tokens, manifest.tokens), manifest.dim
        require(point.states.dtype == np.float16, f"states are {point.states.dtype}, wanted float16")
        require(manifest.tokens > 0, "has states, the collection stores none")
        require(
            point.states.shape == wanted_shape,
            f"states of shape {point.states.shape} for {num_tokens} token ids, wanted {wanted_shape}",
        )
        require(bool(np.isfinite(point.states).all()), "states hold NaN or infinite values")
    vectors = {"vector": point.vector, **{f"residual of {name}": array for name, array in point.residuals.items()}}
    for name, array in vectors.items():
        require(array.dtype == np.float32, f"{name} is {array.dtype}, wanted float32")
        require(
            array.shape == (manifest.encoder_dim,), f"{name} of shape {array.shape}, wanted ({manifest.encoder_dim},)"
        )
        require(bool((np.abs(array) <= MOST).all()), f"{name} holds NaN, infinite or larger values than {MOST:.0f}")
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
            point.sentence.shape == (manifest.words_dim,),
            f"sentence vector of shape {point.sentence.shape}, wanted ({manifest.words_dim},)",
        )
        require(bool(np.isfinite(point.sentence).all()), "sentence vector holds NaN or infinite values")


def encode(point: Point, manifest: Manifest) -> api.PointStruct:
    """The point as a message to store. Call `check` first."""
    message = api.PointStruct(id=api.PointId(uuid=point.id))
    token_ids = point.token_ids.astype(_TOKEN_IDS_TYPES[manifest.token_bytes], copy=False)
    packed = {
        VECTOR: as_text(pack_vector(point.vector, manifest.vector_datatype)),
        TOKEN_IDS: as_text(token_ids.tobytes()),
        **_strings(point),
        **{
            RESIDUAL + student: as_text(pack_vector(residual, manifest.vector_datatype))
            for student, residual in point.residuals.items()
        },
    }
    if point.states is not None:
        packed[STATES] = as_text(point.packed_states or pack_states(point.states, manifest.datatype))
    for key, value in packed.items():
        message.payload[key].string_value = value
    vectors = message.vectors.vectors.vectors
    vectors[KEYWORDS].sparse.CopyFrom(sparse_message(point.keywords))
    if point.sentence is not None:
        vectors[SENTENCE].dense.data.extend(unit(point.sentence))
    return message


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector of length 1, in float16's numbers: as it is where it is that already, so that copies of copies are equal."""
    length = float(np.linalg.norm(vector))
    rounded = vector.astype(_FLOAT16).astype(np.float32)
    if length == 0 or (abs(length - 1) < UNIT_TOLERANCE and np.array_equal(rounded, vector)):
        return vector
    return (vector / length).astype(_FLOAT16).astype(np.float32)


def sparse_message(vector: SparseVector) -> api.SparseVector:
    """A sparse vector for a point or a query."""
    # Lists, because protobuf converts numpy's scalars one by one: 9 us instead of 2 us for 25 of them.
    return api.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


def empty_neighbours(
    batch: int, manifest: Manifest, count: int = 1, read: Parts = STATES_ALONE, key_dim: int | None = None
) -> Neighbours:
    """`batch` empty rows with room for `count` neighbours each, on the null rung of the degrade ladder.

    With `key_dim` there are keys in the place of tokens and vectors.
    """
    tokens = 0 if key_dim else count * (manifest.tokens if read.states else manifest.text_tokens)

    def absent(wanted: bool, dim: int = manifest.encoder_dim) -> NDArray[np.float32] | None:
        return np.full((batch, count, dim), np.nan, np.float32) if wanted else None

    return Neighbours(
        ids=[[] for _ in range(batch)],
        texts=[[] for _ in range(batch)],
        scores=np.zeros((batch, count), np.float32),
        states=np.zeros((batch, tokens, manifest.dim if read.states else 0), np.float16),
        token_ids=np.zeros((batch, tokens), np.int32),
        ranks=np.full((batch, tokens), -1, np.int16),
        rungs=["null"] * batch,
        vectors=absent(read.vector and not key_dim),
        residuals=absent(read.residual_of is not None),
        keys=absent(key_dim is not None, key_dim or 0),
    )


def pack_vector(vector: NDArray[np.float32], datatype: Datatype) -> bytes:
    """Pack a vector (encoder_dim,) as it is stored, before base64."""
    return _pack_rows(vector[None], datatype)


def unpack_vector(packed: bytes, encoder_dim: int, datatype: Datatype) -> NDArray[np.float32]:
    """Unpack a vector (encoder_dim,) from `pack_vector`; ValueError for any other number of bytes."""
    _require_vector(packed, encoder_dim, datatype)
    return _unpack_vectors([packed], encoder_dim, datatype)[0]


def pack_states(states: NDArray[np.float16], datatype: Datatype) -> bytes:
    """Pack states (tokens, dim) as they are stored, before base64. Finite states are unpacked as finite ones."""
    return _pack_rows(states, datatype)


def unpack_states(packed: bytes, dim: int, datatype: Datatype) -> NDArray[np.float16]:
    """Unpack states (tokens, dim) from `pack_states`; ValueError where the bytes are not a whole number of rows."""
    if datatype == "float16":
        return np.frombuffer(packed, _FLOAT16).reshape(-1, dim)
    # A divisor rounded up may carry the largest value just past float16's range.
    return np.clip(_unpack_rows(packed, dim, datatype), -MOST, MOST).astype(np.float16)


def _pack_rows(rows: NDArray[Any], datatype: Datatype) -> bytes:
    if datatype == "float16":
        return rows.astype(_FLOAT16, copy=False).tobytes()
    largest = np.abs(rows).max(1, keepdims=True).astype(np.float32)
    # The smallest normal float16: below it the divisor itself would lose precision.
    divisors = np.maximum(largest / 127, np.finfo(np.float16).tiny).astype(_FLOAT16)
    rounded = np.clip(np.rint(rows.astype(np.float32) / divisors.astype(np.float32)), -127, 127)
    return divisors.tobytes() + rounded.astype(np.int8).tobytes()


def _unpack_rows(packed: bytes, width: int, datatype: Datatype) -> NDArray[np.float32]:
    if datatype == "float16":
        return np.frombuffer(packed, _FLOAT16).reshape(-1, width).astype(np.float32)
    length, rest = divmod(len(packed), width + _FLOAT16.itemsize)
    if rest:
        raise ValueError(f"{len(packed)} bytes are not a whole number of int8 rows of {width} with their divisors")
    divisors = np.frombuffer(packed, _FLOAT16, length).astype(np.float32)
    rounded = np.frombuffer(packed, np.int8, offset=length * _FLOAT16.itemsize).reshape(length, width)
    return rounded * divisors[:, None]


def payload_of(read: Parts) -> list[str]:
    """The payload fields that `decode_parts` reads."""
    wanted = {
        TOKEN_IDS: True,
        STATES: read.states,
        VECTOR: read.vector,
        TEXT: read.text,
        TEXT_PAIR: read.text,
        f"{RESIDUAL}{read.residual_of}": read.residual_of is not None,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def decode_parts(
    points: Sequence[api.RetrievedPoint], manifest: Manifest, read: Parts = STATES_ALONE
) -> list[StoredPoint]:
    """Decode what a look-up reads of some points.

    A residual that a point does not have is None. InvalidPoint where one is not packed as the manifest says.
    """
    decoded: list[tuple[str, NDArray[np.float16], NDArray[np.int32], Text | None]] = []
    residual = f"{RESIDUAL}{read.residual_of}" if read.residual_of is not None else None
    packed: dict[str, list[bytes | None]] = {
        key: [] for key in ((VECTOR,) if read.vector else ()) + ((residual,) if residual else ())
    }
    for point in points:
        payload: Mapping[str, api.Value] = point.payload
        try:
            token_ids = _token_ids(payload, manifest)
            if read.states:
                states = unpack_states(as_bytes(payload[STATES].string_value), manifest.dim, manifest.datatype)
                if not 0 < len(states) == min(len(token_ids), manifest.tokens):
                    raise ValueError(f"{len(states)} states and {len(token_ids)} token ids")
                token_ids = token_ids[: len(states)]
            else:
                if not 0 < len(token_ids) <= manifest.text_tokens:
                    raise ValueError(f"{len(token_ids)} token ids")
                states = np.empty((len(token_ids), 0), np.float16)
            for key, column in packed.items():
                column.append(
                    None if key == residual and key not in payload else _packed_vector(payload, key, manifest)
                )
        except ValueError as error:
            raise InvalidPoint(
                f"stored point {point.id.uuid} is not packed as this collection's points are ({error}); it was not written by "
                "this package: write it again or delete it"
            ) from error
        text = _text(payload) if read.text and TEXT in payload else None
        decoded.append((point.id.uuid, states, token_ids, text))
    absent: list[NDArray[np.float32] | None] = [None] * len(decoded)
    unpacked = {key: _each_unpacked(column, manifest) for key, column in packed.items()}
    vectors, residuals = unpacked.get(VECTOR, absent), unpacked.get(residual or "", absent)
    return [
        StoredPoint(*parts, vector, lacks) for parts, vector, lacks in zip(decoded, vectors, residuals, strict=True)
    ]


def _each_unpacked(column: Sequence[bytes | None], manifest: Manifest) -> list[NDArray[np.float32] | None]:
    """Unpack the vectors of a column at once; None stays None."""
    there = [content for content in column if content is not None]
    unpacked = iter(_unpack_vectors(there, manifest.encoder_dim, manifest.vector_datatype))
    # Not views: one would keep all of them in memory.
    return [None if content is None else next(unpacked).copy() for content in column]


def fill(
    neighbours: Neighbours,
    found: Mapping[int, Sequence[StoredPoint]],
    scores: Mapping[int, Sequence[float]] | None = None,
) -> None:
    """Copy points, the best first, without gaps into these rows of an empty batch; `scores` likewise."""
    flat = [point for points in found.values() for point in points]
    for row, points in found.items():
        neighbours.ids[row] = [point.id for point in points]
        neighbours.texts[row] = [point.text for point in points]
        if scores is not None:
            neighbours.scores[row, : len(points)] = scores[row]
    if not flat:
        return
    counts = np.array([len(points) for points in found.values()])
    rows = np.repeat(np.array(list(found)), counts)
    ranks = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    if neighbours.token_ids.shape[1]:
        _fill_tokens(neighbours, rows, ranks, flat)
    for into, name in ((neighbours.vectors, "vector"), (neighbours.residuals, "residual"), (neighbours.keys, "key")):
        if into is None:
            continue
        column = [getattr(point, name) for point in flat]
        there = [place for place, numbers in enumerate(column) if numbers is not None]
        if there:  # not np.stack, which looks at each array in Python: a fifth of a look-up of 512 references
            numbers = np.concatenate([column[place] for place in there])
            into[rows[there], ranks[there]] = numbers.reshape(len(there), -1)


def _fill_tokens(
    neighbours: Neighbours, rows: NDArray[Any], ranks: NDArray[Any], points: Sequence[StoredPoint]
) -> None:
    lengths = np.array([len(point.token_ids) for point in points])
    places = token_places(ranks, lengths)
    of = np.repeat(rows, lengths)
    neighbours.token_ids[of, places] = np.concatenate([point.token_ids for point in points])
    neighbours.ranks[of, places] = np.repeat(ranks, lengths)
    if neighbours.states.shape[2]:
        starts = places[np.cumsum(lengths) - lengths]
        for row, point, start, length in zip(rows.tolist(), points, starts.tolist(), lengths.tolist(), strict=True):
            neighbours.states[row, start : start + length] = point.states


def token_places(ranks: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """Where in its row each token lies, (tokens,): a row has its points, with so many tokens each, one after another.

    `ranks` and `lengths` (points,) are those of all rows' points, row by row, the best first.
    """
    ends = np.cumsum(lengths)
    firsts = np.maximum.accumulate(np.where(ranks == 0, ends - lengths, 0))  # where a row's first token is among all
    return np.arange(lengths.sum()) - np.repeat(firsts, lengths)


def decode(message: api.RetrievedPoint, manifest: Manifest) -> Point:
    """Decode a whole point from a message with payload and vectors, the inverse of `encode`. Does not `check` it.

    InvalidPoint, with the reason, where a part is missing or of another kind.
    """
    identifier = message.id.uuid or str(message.id.num)
    vectors, payload = message.vectors.vectors.vectors, message.payload
    try:
        states = unpack_states(packed_states(message), manifest.dim, manifest.datatype) if STATES in payload else None
        return Point(
            id=identifier,
            vector=_vector(payload, VECTOR, manifest),
            token_ids=_token_ids(payload, manifest),
            # A store may leave out an empty vector.
            keywords=_sparse(vectors[KEYWORDS] if KEYWORDS in vectors else api.VectorOutput()),
            sentence=_dense(vectors[SENTENCE]) if SENTENCE in vectors else None,
            text=_text(payload),
            source=_field(payload, SOURCE),
            document=_field(payload, DOCUMENT),
            split=_field(payload, SPLIT),
            states=states,
            residuals={
                key.removeprefix(RESIDUAL): _vector(payload, key, manifest)
                for key in sorted(payload)
                if key.startswith(RESIDUAL)
            },
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


def _token_ids(payload: Mapping[str, api.Value], manifest: Manifest) -> NDArray[np.int32]:
    packed = as_bytes(_field(payload, TOKEN_IDS))
    return np.frombuffer(packed, _TOKEN_IDS_TYPES[manifest.token_bytes]).astype(np.int32, copy=False)


def _vector(payload: Mapping[str, api.Value], key: str, manifest: Manifest) -> NDArray[np.float32]:
    return unpack_vector(as_bytes(_field(payload, key)), manifest.encoder_dim, manifest.vector_datatype)


def _packed_vector(payload: Mapping[str, api.Value], key: str, manifest: Manifest) -> bytes:
    packed = as_bytes(_field(payload, key))
    _require_vector(packed, manifest.encoder_dim, manifest.vector_datatype)
    return packed


def _require_vector(packed: bytes, encoder_dim: int, datatype: Datatype) -> None:
    if len(packed) != row_bytes(encoder_dim, datatype):
        raise ValueError(f"{len(packed)} bytes are not one {datatype} vector of {encoder_dim}")


def _unpack_vectors(packed: Sequence[bytes], encoder_dim: int, datatype: Datatype) -> NDArray[np.float32]:
    """Unpack vectors (rows, encoder_dim) at once: one by one, 600 take many times as long."""
    rows = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), row_bytes(encoder_dim, datatype))
    if datatype == "float16":
        return np.ascontiguousarray(rows).view(_FLOAT16).astype(np.float32)
    divisors = np.ascontiguousarray(rows[:, : _FLOAT16.itemsize]).view(_FLOAT16).astype(np.float32)
    return np.ascontiguousarray(rows[:, _FLOAT16.itemsize :]).view(np.int8) * divisors


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
