"""What a point of the memory is, what a look-up asks, and the manifest that says who wrote a collection.

Pure data: numpy arrays and strings. Shapes use these words: batch, tokens (of one point), dim (of one state), count (the most
points that a query may be answered with).
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

    `id` is a UUID string. `states` is (tokens, dim) float16, whatever they are stored as; `token_ids` (tokens,) int32
    is aligned with it. `keywords` are those of the whole text, of which `states` may hold the start only.
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
    """The states as another collection of the same manifest stores them: written as they are, to the bit."""


@dataclass(frozen=True, slots=True)
class Query:
    """One look-up. `id` is the asking text's own point id: it never comes back. `document`, where given, neither."""

    id: str
    keywords: SparseVector
    sentence: NDArray[np.float32] | None = None
    document: str | None = None


class Choice(NamedTuple):
    """A point chosen for a query, and its score under the criterion."""

    id: str
    score: float


class StoredPoint(NamedTuple):
    """What a look-up reads of one point: `states` (tokens, dim) float16, `token_ids` (tokens,) int32, `text` if asked."""

    id: str
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    text: Text | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The best points for each query of a batch: up to `count`, fewer where there are no more.

    A row's neighbours lie one after another, the best first, without gaps: `states` (batch, count x tokens, dim) float16
    and `token_ids` (batch, count x tokens) int32, zero past the last; `ranks` (batch, count x tokens) int16 says which
    neighbour a token is of, 0 the best, and is -1 past the last. `ids` and `texts` have an entry for each neighbour of a row
    (a text is None where texts were not asked for), `scores` (batch, count) is 0 past them. `rungs` says which rung of the
    degrade ladder answered each query: a live answer without any neighbour is still `live`, and a kept one may have lost some.
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
        """The most neighbours that a row may have."""
        return self.scores.shape[1]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where there is a token, (batch, count x tokens)."""
        return self.ranks >= 0


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """Who wrote a collection and in which shape; stored as the collection's metadata.

    `text_tokens` is how many tokens of a text its encoder read, `tokens` how many of their states are stored, from the
    start; `encoder_dim` is the width of the encoder's states and of sentence vectors, `dim` that of a stored state.
    `projection` names the matrix that narrows the one to the other, UNPROJECTED where there is none. Who only reads may
    want ANY_PROJECTION.

    Two runs may share a collection only where every field but the encoder's name is equal: a fingerprint has many paths.
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
        """Names of the fields in which a run that wants another manifest cannot share this one's collection."""
        return [
            name
            for name in Manifest.model_fields
            if name != "encoder"
            and getattr(self, name) != getattr(wanted, name)
            and not (name == "projection" and wanted.projection == ANY_PROJECTION and self.projection != UNPROJECTED)
        ]

    @property
    def packed_states_bytes(self) -> int:
        """Most that one point's states take before base64, in bytes."""
        per_token = 2 * self.dim if self.datatype == "float16" else self.dim + 2
        return self.tokens * per_token

    def bytes_per_point(self) -> NonNegativeInt:
        """Most that one point's packed states, token ids and vectors take, in bytes, before any is written."""
        packed = (self.packed_states_bytes + self.tokens * 4) * 4 / 3
        return round(packed + self.text_tokens * 8 + (self.encoder_dim * 4 if self.dense_index else 0))


def parts(text: Text) -> tuple[str, ...]:
    """The one text, or the two of a pair."""
    return text if isinstance(text, tuple) else (text,)


def point_id(fingerprint: str, texts: Sequence[str]) -> str:
    """UUID5 of (encoder fingerprint, texts): the same text is the same point, whoever stores it.

    `texts` are normalised already: one for a plain text, two for a pair, which is one point.
    """
    name = json.dumps(list(texts), ensure_ascii=False)
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, fingerprint), name))
