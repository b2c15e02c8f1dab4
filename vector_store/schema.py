"""Data types: points, queries, neighbours, and the manifest that describes a collection.

Arrays are numpy's; there are no tensors and no protobuf messages. Shapes use these words: batch, tokens (of one point), dim (of
one state), encoder_dim (of a point's `vector` and its residuals), words_dim (of its `sentence`, a vector in the dense index),
key_dim (of a reader's key), count (most neighbours of a query).
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt

from vector_store.config import Datatype

FORMAT_VERSION = 3
UNPROJECTED = "none"
ANY_PROJECTION = "any"

KEYWORDS = "keywords"
SENTENCE = "sentence"

Criterion = Literal["keywords", "dense", "hybrid", "random", "none"]
Rung = Literal["own", "live", "cached", "null"]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts that its encoder read together: one point either way."""


class SparseVector(NamedTuple):
    """Non-zero coordinates of one sparse vector; indices are unique."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Point:
    """One stored reference.

    `id` is a UUID string. `vector` (encoder_dim,) float32 is the encoder's sentence vector, `token_ids` (tokens,) int32 are
    those of the whole text. `keywords` and `sentence` are what it is found by: term weights, and a (words_dim,) float32 vector
    where the collection has a dense index, else None. `states` (tokens, dim) float16, possibly of the text's start only, is
    None where the collection keeps none. `residuals` has by reader (a version of a student's correction) what
    that one's answer lacks of the vector, (encoder_dim,) float32.
    """

    id: str
    vector: NDArray[np.float32]
    token_ids: NDArray[np.int32]
    keywords: SparseVector
    sentence: NDArray[np.float32] | None
    text: Text
    source: str
    document: str
    split: str
    states: NDArray[np.float16] | None = None
    residuals: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    packed_states: bytes | None = None
    """The states' packed bytes from another collection of the same manifest; where given, these are written."""


class Parts(NamedTuple):
    """What a look-up reads of a point beside its id and token ids; `residual_of` names a reader."""

    states: bool = True
    text: bool = False
    vector: bool = False
    residual_of: str | None = None


STATES_ALONE = Parts()


@dataclass(frozen=True, slots=True)
class Query:
    """One look-up. `id` is the point id of the query's text; that point and those of `document` are never neighbours."""

    id: str
    keywords: SparseVector
    sentence: NDArray[np.float32] | None = None
    document: str | None = None


class Choice(NamedTuple):
    """A point chosen for a query, and its score under the criterion."""

    id: str
    score: float


class StoredPoint(NamedTuple):
    """What a look-up reads of one point: `states` (tokens, dim) float16, `token_ids` (tokens,) int32; and if asked for `text`,
    `vector` and `residual`, both (encoder_dim,) float32.

    Token ids are those of the states; of the whole text where states are not asked for, whose dim is 0 then. `key` (key_dim,)
    is what a reader has made of it (`PointKeys`), None where it wants none.
    """

    id: str
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    text: Text | None
    vector: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None
    key: NDArray[np.float32] | None = None


class PointKeys(Protocol):
    """Makes the keys by which a reader weighs points: each once, to be kept in the place of the point's vector and tokens."""

    dim: int

    def __call__(self, points: Sequence[StoredPoint]) -> NDArray[np.float32]:
        """Return the keys (points, dim); NaN for a point that cannot be weighed."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The best points for each query of a batch: up to `count`, fewer where there are no more.

    A row has its neighbours one after another, the best first, without gaps: `states` (batch, count x tokens, dim) float16
    and `token_ids` (batch, count x tokens) int32 are zero after the last; `ranks` (batch, count x tokens) int16 is the rank of
    each token's neighbour, 0 for the best, and -1 after the last. `ids` and `texts` have an entry per neighbour of a row (a
    text is None where texts were not asked for); `scores` (batch, count) is 0 after them. `rungs` is the rung of the degrade
    ladder that answered each query: `live` also without neighbours; a `cached` answer may lack some. `vectors` and `residuals`
    (batch, count, encoder_dim) float32 are None where not asked for; NaN after the last neighbour, and of a point that has no
    residual yet. Without states the dim is 0. `own` (batch, encoder_dim) is the vector stored under the query's own id, NaN
    where there is none (the rung of the others is `own`); None where it was not asked for. `keys` (batch, count, key_dim) are
    those that a reader has had made (`PointKeys`), NaN where there is none; None where it wants none. `asked` (batch,
    words_dim) are the queries' own sentence vectors, where a reader wants them again.
    """

    ids: list[list[str]]
    texts: list[list[Text | None]]
    scores: NDArray[np.float32]
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    ranks: NDArray[np.int16]
    rungs: list[Rung]
    vectors: NDArray[np.float32] | None = None
    residuals: NDArray[np.float32] | None = None
    own: NDArray[np.float32] | None = None
    keys: NDArray[np.float32] | None = None
    asked: NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        """Most neighbours of a row."""
        return self.scores.shape[1]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where there is a token, (batch, count x tokens)."""
        return self.ranks >= 0


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The encoder, shapes and format of a collection; stored as its metadata.

    `text_tokens` is the most tokens of a text that the encoder reads, `tokens` the most states that are stored, from the text's
    start: 0 where none are. `encoder_dim` is the width of the encoder's states and of sentence vectors, `dim` that of a stored
    state. `datatype` is how numbers of states are kept, `vector_datatype` those of vectors and residuals; a token id takes
    `token_bytes`. `words_dim` is the width of the dense index, 0 without one. `projection` identifies the matrix from
    encoder_dim to dim, UNPROJECTED where there is none. A reader may want ANY_PROJECTION.

    Two runs may share a collection where every field except `encoder` is equal: the same model may have several paths.
    """

    format_version: PositiveInt = FORMAT_VERSION
    encoder: str
    fingerprint: str
    tokenizer: str
    layer: int
    text_tokens: PositiveInt
    tokens: NonNegativeInt
    encoder_dim: PositiveInt
    dim: PositiveInt
    datatype: Datatype = "float16"
    vector_datatype: Datatype = "int8"
    token_bytes: Literal[2, 4] = 4
    projection: str = UNPROJECTED
    words_dim: NonNegativeInt = 0
    bm25_k1: PositiveFloat
    bm25_b: float
    bm25_average_tokens: PositiveFloat

    @property
    def dense_index(self) -> bool:
        """Whether points can be found by the vectors of their words."""
        return self.words_dim > 0

    def differing(self, wanted: "Manifest") -> list[str]:
        """Names of the fields that prevent a run with the `wanted` manifest from sharing this one's collection."""
        return [
            name
            for name in Manifest.model_fields
            if name != "encoder"
            and getattr(self, name) != getattr(wanted, name)
            and not (name == "projection" and wanted.projection == ANY_PROJECTION and self.projection != UNPROJECTED)
        ]

    @property
    def packed_states_bytes(self) -> int:
        """Most bytes of one point's packed states, before base64."""
        return self.tokens * row_bytes(self.dim, self.datatype)

    @property
    def packed_vector_bytes(self) -> int:
        """Bytes of one packed sentence vector, or residual, before base64."""
        return row_bytes(self.encoder_dim, self.vector_datatype)

    def bytes_per_point(self, residuals: int = 1) -> NonNegativeInt:
        """Most bytes of one point's payload and vectors, computed from the shapes; with so many students' residuals."""
        packed = self.packed_states_bytes + self.text_tokens * self.token_bytes
        packed += (1 + residuals) * self.packed_vector_bytes
        return round(packed * 4 / 3 + self.text_tokens * 8 + self.words_dim * 4)


def row_bytes(width: int, datatype: Datatype) -> int:
    """Bytes of one packed row of so many numbers: with int8, its divisor too."""
    return 2 * width if datatype == "float16" else width + 2


def parts(text: Text) -> tuple[str, ...]:
    """The text, or the two texts of a pair, as a tuple."""
    return text if isinstance(text, tuple) else (text,)


def point_id(fingerprint: str, texts: Sequence[str]) -> str:
    """UUID5 of (encoder fingerprint, texts): the same text is the same point, whoever stores it.

    `texts` are normalised: one for a single text, two for a pair.
    """
    name = json.dumps(list(texts), ensure_ascii=False)
    return str(uuid.uuid5(_namespace(fingerprint), name))


@lru_cache(maxsize=16)
def _namespace(fingerprint: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, fingerprint)
