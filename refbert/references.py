"""What references are found by: keyword weights and static sentence vectors.

Both are computed from a text's token ids, with BM25's constants and a table of word vectors, so a look-up needs no neural
encoder. Knows nothing of where references are stored.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refbert.config import ReferenceConfig
from refbert.word_table import WordTable


class Keywords(NamedTuple):
    """Sparse term weights of one text: unique token ids (uint32), ascending, and their weights (float32)."""

    token_ids: NDArray[np.uint32]
    weights: NDArray[np.float32]


def document_keywords(token_ids: NDArray[np.int32], special_ids: Sequence[int], config: ReferenceConfig) -> Keywords:
    """BM25 term weights of a stored text (Robertson & Zaragoza 2009, eq. 3.15, without the IDF factor).

    IDF is in the query. The average length is a constant of the memory, so a weight does not depend
    on what was ingested before.
    """
    unique, counts = _term_counts(token_ids, special_ids)
    length = counts.sum() / config.bm25_average_tokens
    saturation = config.bm25_k1 * (1 - config.bm25_b + config.bm25_b * length)
    return Keywords(unique, (counts * (config.bm25_k1 + 1) / (counts + saturation)).astype(np.float32))


def query_keywords(
    token_ids: NDArray[np.integer[Any]], mask: NDArray[np.bool_], special_ids: Sequence[int]
) -> list[Keywords]:
    """Give each distinct token of padded texts, `token_ids` and `mask` (batch, tokens), the weight 1: BM25's query side."""
    rows, places = np.nonzero(mask & ~np.isin(token_ids, special_ids))
    unique = np.unique(rows << 32 | token_ids[rows, places])
    tokens = np.split((unique & 0xFFFFFFFF).astype(np.uint32), np.searchsorted(unique >> 32, range(1, len(token_ids))))
    return [Keywords(some, np.ones(len(some), dtype=np.float32)) for some in tokens]


def word_table(static_vectors: NDArray[np.float32], dim: int | None = None) -> WordTable:
    """Weight each static token vector (vocabulary, encoder_dim) by its rarity, for `sentence_vector`.

    WordPiece and BPE vocabularies list frequent pieces first, so log(1 + id) stands for IDF under Zipf's law (the weighting
    of Model2Vec) and no pass over the corpus is needed. A `dim` below the encoder's keeps the first principal components.
    """
    weighted = static_vectors * np.log1p(np.arange(len(static_vectors), dtype=np.float32))[:, None]
    if dim is not None and dim < weighted.shape[1]:
        _, directions = np.linalg.eigh(weighted.astype(np.float64).T @ weighted.astype(np.float64))  # ascending
        first = directions[:, ::-1][:, :dim]
        # A direction's sign is arbitrary: the same on every machine, where its largest number is positive.
        first = first * np.sign(first[np.abs(first).argmax(0), np.arange(dim)])
        weighted = (weighted @ first).astype(np.float32)
    scales = np.maximum(np.abs(weighted).max(1) / 127, np.finfo(np.float16).tiny).astype(np.float16)
    rows = np.clip(np.rint(weighted / scales.astype(np.float32)[:, None]), -127, 127).astype(np.int8)
    return WordTable(rows, scales)


def sentence_vector(token_ids: NDArray[np.int32], special_ids: Sequence[int], table: WordTable) -> NDArray[np.float32]:
    """Return the mean of the rarity-weighted static vectors (words_dim,), L2-normalised; zeros for a text of special tokens
    only."""
    ids = token_ids[~np.isin(token_ids, special_ids)]
    if not len(ids):
        return np.zeros(table.dim, dtype=np.float32)
    mean = table.vectors(ids).mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def _term_counts(
    token_ids: NDArray[np.int32], special_ids: Sequence[int]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    unique, counts = np.unique(token_ids[~np.isin(token_ids, special_ids)], return_counts=True)
    return unique.astype(np.uint32), counts
