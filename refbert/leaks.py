"""Find training rows that are near-duplicates of evaluation rows, which a memory must not show when a student is tested.

Two texts are near-duplicates where the Jaccard similarity of their character n-grams, in lower case and without what is no
letter, digit or mark of a letter, reaches a threshold. The search is exact, by prefix filtering (Chaudhuri, Ganti, Kaushik
2006; Bayardo, Ma, Srikant 2007), up to collisions of hashed n-grams. Knows texts only."""

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

NGRAM = 5
NGRAM_HASHES = 2**22

Texts = tuple[str, str | None]  # a text, or a pair


class Leak(NamedTuple):
    """Training row `train` resembles evaluation row `evaluation`. A pair's `similarity` is the smaller of its two."""

    train: int
    evaluation: int
    similarity: float


class Leaks(NamedTuple):
    """Near-duplicates, and pairs of which one side only is shared. Exact duplicates have a similarity of 1."""

    duplicates: list[Leak]
    shared_sides: list[Leak]

    @property
    def train_rows(self) -> set[int]:
        """The training rows to exclude."""
        return {leak.train for leak in self.duplicates}

    @property
    def evaluation_rows(self) -> set[int]:
        """The evaluation rows that have a near-duplicate in training."""
        return {leak.evaluation for leak in self.duplicates}


def find_leaks(train: Sequence[Texts], evaluation: Sequence[Texts], threshold: float = 0.7) -> Leaks:
    """Compare every training row with every evaluation row.

    A pair is a near-duplicate of a pair if both sides are, in the same or in the swapped order; a single text and a pair
    are if either side is. 67,349 x 1,821 sentences (SST-2) take 10 s and 0.8 GB on one busy core.
    """
    train_sides, train_texts = _sides(train)
    evaluation_sides, evaluation_texts = _sides(evaluation)
    rows_of: dict[int, list[tuple[int, int]]] = defaultdict(list)  # training text -> (row, side)
    for row, sides in enumerate(train_sides):
        for side, text in enumerate(sides):
            rows_of[text].append((row, side))
    like: dict[int, list[tuple[int, float]]] = defaultdict(list)  # evaluation text -> (training text, similarity)
    for text, other, similarity in similar_texts(evaluation_texts, train_texts, threshold):
        like[text].append((other, similarity))

    duplicates, shared = [], []
    for row, sides in enumerate(evaluation_sides):
        found: dict[int, dict[tuple[int, int], float]] = defaultdict(
            dict
        )  # training row -> (side, its side) -> similarity
        for side, text in enumerate(sides):
            for other, similarity in like[text]:
                for train_row, train_side in rows_of[other]:
                    found[train_row][side, train_side] = similarity
        for train_row, pairs in found.items():
            if len(sides) == 1 or len(train_sides[train_row]) == 1:
                duplicates.append(Leak(train_row, row, max(pairs.values())))
                continue
            orders = [min(pairs.get((0, side), 0.0), pairs.get((1, 1 - side), 0.0)) for side in (0, 1)]
            if max(orders):
                duplicates.append(Leak(train_row, row, max(orders)))
            else:
                shared.append(Leak(train_row, row, max(pairs.values())))
    return Leaks(duplicates, shared)


def similar_texts(left: Sequence[str], right: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Every (index in left, index in right, Jaccard similarity >= threshold), sorted.

    Sets with a Jaccard similarity of at least t share an n-gram among the |A| - ceil(t |A|) + 1 rarest of each: only pairs
    that do are compared in full.
    """
    assert 0 < threshold <= 1
    if not left or not right:
        return []
    a, b = _ngrams(left), _ngrams(right)
    frequency = np.asarray(a.sum(axis=0) + b.sum(axis=0)).ravel()
    candidates = (_rarest(a, frequency, threshold) @ _rarest(b, frequency, threshold).T).tocoo()
    found = []
    sizes_a, sizes_b = np.diff(a.indptr), np.diff(b.indptr)
    for start in range(0, candidates.nnz, 100_000):
        rows, columns = candidates.row[start : start + 100_000], candidates.col[start : start + 100_000]
        shared = np.asarray(a[rows].multiply(b[columns]).sum(axis=1)).ravel()
        similarity = shared / (sizes_a[rows] + sizes_b[columns] - shared)
        found += [
            (int(rows[i]), int(columns[i]), float(similarity[i]))
            for i in np.flatnonzero(similarity >= threshold - 1e-9)
        ]
    return sorted(found)


def plain(text: str) -> str:
    """Return `text` in lower case, without punctuation and symbols; a text of these only stays as it is."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_words().findall(folded)) or " ".join(folded.split())


@cache
def _words() -> re.Pattern[str]:
    """Letters, digits and the marks on them, such as the vowel signs of Devanagari, which are not in `\\w`."""
    marks = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M"))
    return re.compile(rf"[\w{''.join(marks)}]+")


def _sides(rows: Sequence[Texts]) -> tuple[list[tuple[int, ...]], list[str]]:
    """The distinct plain texts, and the one or two that each row has."""
    numbers: dict[str, int] = {}
    sides = [tuple(numbers.setdefault(plain(text), len(numbers)) for text in row if text is not None) for row in rows]
    return sides, list(numbers)


def _ngrams(texts: Iterable[str]) -> sparse.csr_matrix:
    """(texts, hashes), 1 where the text has the n-gram. Signs at both ends give even an empty text an n-gram."""
    vectorizer = HashingVectorizer(
        analyzer="char", ngram_range=(NGRAM, NGRAM), n_features=NGRAM_HASHES, lowercase=False, binary=True, norm=None,
        alternate_sign=False, dtype=np.float32,
    )  # fmt: skip
    return vectorizer.transform("\x02\x02" + (text or "\x02") + "\x03\x03" for text in texts)


def _rarest(ngrams: sparse.csr_matrix, frequency: NDArray, threshold: float) -> sparse.csr_matrix:
    """The same matrix with only the rarest n-grams of each row: as many as one of them must be shared."""
    sizes = np.diff(ngrams.indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((ngrams.indices, frequency[ngrams.indices], rows))  # ties by number: one order for both sides
    kept = sizes - np.ceil(threshold * sizes - 1e-9).astype(int) + 1
    order = order[np.arange(len(order)) - ngrams.indptr[rows] < kept[rows]]
    return sparse.csr_matrix((ngrams.data[order], (rows[order], ngrams.indices[order])), shape=ngrams.shape)
