"""Data types: points, queries, neighbours, and the manifest that describes a collection.

Numpy arrays and strings only. Shapes use these words: batch, tokens (of one point), dim (of one state), count (most neighbours
of a query).
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt

from vector_store.config import Datatype

FORMAT_VERSION = 2
UNPROJECTED = "none"
ANY_PROJECTION = "any"

KEYWORDS = "keywords"
SENTENCE = "sentence"

Criterion = Literal["keywords", "dense", "hybrid", "random", "none"]
Rung = Literal["live", "cached", "null"]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts that its encoder read together: one point either way."""


class SparseVector(NamedTuple):
    """Non-zero coordinates of one sparse vector; indices are unique."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Point:
    """One stored reference.

    `id` is a UUID string. `states` is (tokens, dim) float16, whatever the stored datatype; `token_ids` (tokens,) int32 is
    aligned with it. `keywords` are those of the whole text, `states` possibly those of its start only.
    `sentence` is (encoder_dim,) float32, or None where the collection has no dense index.
    """

    id: str
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    keywords: SparseVector
    sentence: NDArray[np.float32] | None
    text: Text
    source: str
    document: str
    split: str
    packed_states: bytes | None = None
    """The states' packed bytes from another collection of the same manifest; where given, these are written."""


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
    """What a look-up reads of one point: `states` (tokens, dim) float16, `token_ids` (tokens,) int32, `text` if asked for."""

    id: str
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    text: Text | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The best points for each query of a batch: up to `count`, fewer where there are no more.

    A row has its neighbours one after another, the best first, without gaps: `states` (batch, count x tokens, dim) float16
    and `token_ids` (batch, count x tokens) int32 are zero after the last; `ranks` (batch, count x tokens) int16 is the rank of
    each token's neighbour, 0 for the best, and -1 after the last. `ids` and `texts` have an entry per neighbour of a row (a
    text is None where texts were not asked for); `scores` (batch, count) is 0 after them. `rungs` is the rung of the degrade
    ladder that answered each query: `live` also without neighbours; a `cached` answer may lack some.
    """

    ids: list[list[str]]
    texts: list[list[Text | None]]
    scores: NDArray[np.float32]
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    ranks: NDArray[np.int16]
    rungs: list[Rung]

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
    start; `encoder_dim` is the width of the encoder's states and of sentence vectors, `dim` that of a stored state.
    `projection` identifies the matrix from the former to the latter, UNPROJECTED where there is none. A reader may want
    ANY_PROJECTION.

    Two runs may share a collection where every field except `encoder` is equal: the same model may have several paths.
    """

    format_version: PositiveInt = FORMAT_VERSION
    encoder: str
    fingerprint: str
    tokenizer: str
    layer: int
    text_tokens: PositiveInt
    tokens: PositiveInt
    encoder_dim: PositiveInt
    dim: PositiveInt
    datatype: Datatype = "float16"
    projection: str = UNPROJECTED
    dense_index: bool = False
    bm25_k1: PositiveFloat
    bm25_b: float
    bm25_average_tokens: PositiveFloat

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
        per_token = 2 * self.dim if self.datatype == "float16" else self.dim + 2
        return self.tokens * per_token

    def bytes_per_point(self) -> NonNegativeInt:
        """Most bytes of one point's payload and vectors, computed from the shapes."""
        packed = (self.packed_states_bytes + self.tokens * 4) * 4 / 3
        return round(packed + self.text_tokens * 8 + (self.encoder_dim * 4 if self.dense_index else 0))


def parts(text: Text) -> tuple[str, ...]:
    """The text, or the two texts of a pair, as a tuple."""
    return text if isinstance(text, tuple) else (text,)


def point_id(fingerprint: str, texts: Sequence[str]) -> str:
    """UUID5 of (encoder fingerprint, texts): the same text is the same point, whoever stores it.

    `texts` are normalised: one for a single text, two for a pair.
    """
    name = json.dumps(list(texts), ensure_ascii=False)
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, fingerprint), name))
