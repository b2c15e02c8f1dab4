"""What a point of the memory is, what a look-up asks, and the manifest that says who wrote a collection.

Pure data: numpy arrays and strings. Shapes use these letters: batch, tokens (of one point), dim (of one state).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt

FORMAT_VERSION = 1

KEYWORDS = "keywords"
SENTENCE = "sentence"

Criterion = Literal["keywords", "dense", "hybrid", "random", "none"]
LadderStep = Literal["live", "cached", "null"]


class SparseVector(NamedTuple):
    """Non-zero coordinates of one sparse vector; indices are unique."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Point:
    """One stored reference.

    `id` is a UUID string. `states` is (tokens, dim) float16, `token_ids` (tokens,) int32 aligned with it.
    `sentence` is (dim,) float32, or None where the collection has no dense index.
    """

    id: str
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    keywords: SparseVector
    sentence: NDArray[np.float32] | None
    text: str
    source: str
    document: str
    split: str


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
    text: str | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The best point for each query of a batch, padded to `tokens`.

    `states` (batch, tokens, dim) float16, `token_ids` (batch, tokens) int32 and `mask` (batch, tokens) bool are zero
    past a point's length and for a query without a neighbour. `ids` and `texts` are None there (`texts` also where text
    was not asked for), `scores` is 0. `steps` says which rung of the degrade ladder answered each query: a live answer
    without any neighbour is still `live`.
    """

    ids: list[str | None]
    texts: list[str | None]
    scores: NDArray[np.float32]
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    steps: list[LadderStep]


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """Who wrote a collection and in which shape; stored as the collection's metadata.

    Two runs may share a collection only where every field but the encoder's name is equal: a fingerprint has many paths.
    """

    format_version: PositiveInt = FORMAT_VERSION
    encoder: str
    fingerprint: str
    tokenizer: str
    layer: int
    tokens: PositiveInt
    dim: PositiveInt
    datatype: Literal["float16"] = "float16"
    dense_index: bool = False
    bm25_k1: PositiveFloat
    bm25_b: float
    bm25_average_tokens: PositiveFloat

    def differing(self, other: "Manifest") -> list[str]:
        """Names of the fields that keep two runs from sharing a collection."""
        return [
            name for name in Manifest.model_fields if name != "encoder" and getattr(self, name) != getattr(other, name)
        ]

    def bytes_per_point(self) -> NonNegativeInt:
        """Most that one point's packed states, token ids and vectors take, in bytes, before any is written."""
        states = self.tokens * self.dim * 2
        return round((states + self.tokens * 4) * 4 / 3 + self.tokens * 8 + (self.dim * 4 if self.dense_index else 0))
