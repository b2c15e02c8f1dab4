"""A read-only copy of one version of a memory in a reader's own process: look-ups without a trip to the store.

Below `HNSW_ROWS` references the nearest are found by comparing with all of them; from there on in an HNSW graph (Malkov &
Yashunin 2018) where the extra `replica` is installed, else by comparing with all. Only criterion dense is answered, without
token states. A replica is of one moment: the service takes another when the memory changes, a reader of `refbert.load` does
not. A replica answers while the store is away.

Shapes: rows (references), batch, count (references of a text), dim (of the teacher's vector), words_dim.
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refbert.correction import Correction, References
from refbert.errors import InputError
from refbert.memory.batch import column_of, words_of_points
from refbert.memory.texts import ReferenceTexts
from vector_store.codec import empty_neighbours
from vector_store.schema import Choice, Neighbours, Parts, Query, Rung, StoredPoint, Text

log = logging.getLogger(__name__)

HNSW_ROWS = 10_000
"""References from which on a graph is used. Batches of 32 on two cores with AVX2, ms: of 5,000 references 1.8 by comparing with
all, 2.2 by the graph; of 10,000 3.9 and 2.5; of 20,000 7.9 and 3.7; a single text of 20,000 3.4 and .12. By a
graph built with 100 candidates and searched with 96."""

HNSW_LINKS, HNSW_BUILT, HNSW_SEARCHED = 32, 200, 64
"""Links per reference, and candidates while building and while searching. Of the 16 nearest sentences of Wikipedia the graph
finds 96 % among 20,000, 94 % among 50,000 and 92 % among 100,000, a batch of 32 in 5.9, 9.1 and 12.0 ms of one core; it takes
82 s of one core to build for 100,000. Built with 100 candidates and searched with 96 it finds .8 to 1.2 points more in
5.6, 11.9 and 15.9 ms, and takes half of the time to build."""


class Replica:
    """A neighbour source: the `texts.references.count` references nearest to each query's words, with their keys.

    A reference's key does not change within a version, so it is computed once, by the version's `correction`. `pages` are all
    the references of that version, as `Store.read` yields them with `read`. Threads may share it. Raises InputError where the
    memory is not asked by its words alone.
    """

    def __init__(
        self, texts: ReferenceTexts, correction: Correction, pages: Iterable[Sequence[StoredPoint]], read: Parts
    ) -> None:
        references, self._manifest = texts.references, texts.manifest
        if references.criterion != "dense" or read.states or texts.words is None:
            raise InputError(
                f"a replica finds references by criterion dense, and has no token states; this memory is asked by "
                f"{references.criterion!r}: read the store itself (serve.replica_rows=0)"
            )
        if references.exclude_splits:
            raise InputError("a replica does not know splits; read the store itself (serve.replica_rows=0)")
        self._read = read
        self._count = references.count
        self._lock = threading.Lock()
        self.counts: dict[Any, int] = dict.fromkeys(("own", "live", "cached", "null"), 0)
        self.lookup_ms = 0.0
        self._ids: list[str] = []
        self._texts: list[Text | None] = []
        dim, key_dim = self._manifest.encoder_dim, correction.part.landmarks.shape[1]
        words, vectors, residuals, keys = [], [], [], []
        for page in pages:
            if not page:
                continue
            self._ids += [point.id for point in page]
            self._texts += [point.text for point in page]
            words.append(words_of_points(page, texts.words))
            vectors.append(torch.from_numpy(column_of(page, "vector", dim)).half())
            residuals.append(torch.from_numpy(column_of(page, "residual", dim)).half())
            of_page = References(vectors[-1].float(), residuals[-1].float(), words[-1])
            keys.append(correction.keyed(of_page).keys.half())
        self._vectors, self._residuals, self._keys = (
            torch.cat([torch.empty(0, width, dtype=torch.half), *column])
            for width, column in ((dim, vectors), (dim, residuals), (key_dim, keys))
        )
        self._row_of = {identifier: row for row, identifier in enumerate(self._ids)}
        self._nearest = _nearest(torch.cat([torch.empty(0, texts.words.dim), *words]))

    @property
    def num_unread(self) -> int:
        """References that had no residual yet when the copy was taken."""
        return int(self._residuals[:, 0].isnan().sum())

    def __len__(self) -> int:
        """Return the number of references."""
        return len(self._ids)

    def neighbours(self, queries: Sequence[Query]) -> Neighbours:
        """Find the nearest references of each query, itself left out."""
        started_s = time.monotonic()
        found = self._empty(len(queries))
        if queries and self._ids:
            asked = torch.from_numpy(np.stack([query.sentence for query in queries if query.sentence is not None]))
            own = np.array([self._row_of.get(query.id, -1) for query in queries])
            scores, rows = self._nearest(asked, min(self._count + 1, len(self._ids)))
            # The query's own row goes last, whatever its score: so it is cut off, or was the one too many.
            order = np.argsort(rows == own[:, None], axis=1, kind="stable")[:, : self._count]
            self._fill(found, np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1), own)
        found.rungs[:] = ["live"] * len(queries)
        self._counted(found.rungs, started_s)
        return found

    def neighbours_and_points(self, queries: Sequence[Query]) -> tuple[Neighbours, Neighbours]:
        """Do the same, and return the vectors that are stored under the queries' own ids."""
        return self.neighbours(queries), self._stored([query.id for query in queries])

    def choices(self, queries: Sequence[Query]) -> list[list[Choice]]:
        """Return which references are the nearest of each query."""
        found = self.neighbours(queries)
        return [
            [Choice(*pair) for pair in zip(ids, scores, strict=False)]
            for ids, scores in zip(found.ids, found.scores.tolist(), strict=True)
        ]

    def planned(
        self, choices: Sequence[Sequence[Choice]], own_ids: Sequence[str] = ()
    ) -> tuple[Neighbours, Neighbours]:
        """Return the references that were chosen earlier and are still there, and the vectors stored under `own_ids`."""
        found = self._empty(len(choices))
        for row, chosen in enumerate(choices):
            there = [(self._row_of[choice.id], choice.score) for choice in chosen if choice.id in self._row_of]
            if there:
                rows, scores = (np.array([column]) for column in zip(*there, strict=True))
                self._fill(found, rows, scores, np.array([-1]), first=row)
        found.rungs[:] = ["live"] * len(choices)
        return found, self._stored(own_ids)

    def _empty(self, batch: int) -> Neighbours:
        return empty_neighbours(batch, self._manifest, self._count, self._read, self._keys.shape[1])

    def _stored(self, ids: Sequence[str]) -> Neighbours:
        found = empty_neighbours(len(ids), self._manifest, read=self._read)
        assert found.vectors is not None
        for row, identifier in enumerate(ids):
            if (place := self._row_of.get(identifier)) is not None:
                found.ids[row], found.vectors[row, 0] = [identifier], self._vectors[place].numpy()
        found.rungs[:] = ["live"] * len(ids)
        return found

    def _fill(
        self, found: Neighbours, rows: NDArray[Any], scores: NDArray[Any], own: NDArray[Any], first: int = 0
    ) -> None:
        """Put references `rows` (batch, count), but none of `own` (batch,), into the batch from its row `first` on."""
        there = (rows != own[:, None]) & (rows >= 0)  # a row's references come first, the one left out is its last
        assert found.keys is not None
        assert found.residuals is not None
        batch = slice(first, first + len(rows)), slice(rows.shape[1])
        chosen = torch.from_numpy(np.where(there, rows, 0).reshape(-1))
        for column, halves in ((found.residuals, self._residuals), (found.keys, self._keys)):
            # Torch turns halves into floats six times as fast as numpy does.
            torch.from_numpy(column[batch]).copy_(halves.index_select(0, chosen).view(*rows.shape, -1))
            column[batch][~there] = np.nan
        found.scores[batch] = np.where(there, scores, 0)
        for row, (places, count) in enumerate(zip(rows.tolist(), there.sum(1).tolist(), strict=True)):
            kept = places[:count]
            found.ids[first + row] = [self._ids[place] for place in kept]
            found.texts[first + row] = [self._texts[place] for place in kept]

    def _counted(self, rungs: Sequence[Rung], started_s: float) -> None:
        with self._lock:
            for rung in rungs:
                self.counts[rung] += 1
            self.lookup_ms = (time.monotonic() - started_s) * 1000


def _nearest(words: Tensor) -> Any:
    """Return a function of queries (batch, words_dim) and a number: scores and rows (batch, number), the best first."""
    if len(words) < HNSW_ROWS:
        return _among_all(words)
    try:
        import faiss
    except ModuleNotFoundError:
        log.warning(
            "a replica of %s references compares each text with all of them; a graph is faster: pip install 'refbert[replica]'",
            f"{len(words):,}",
        )
        return _among_all(words)
    graph = faiss.IndexHNSWSQ(words.shape[1], faiss.ScalarQuantizer.QT_fp16, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)  # type: ignore[arg-type]  # SWIG's enum
    graph.hnsw.efConstruction, graph.hnsw.efSearch = HNSW_BUILT, HNSW_SEARCHED
    graph.train(words.numpy())
    graph.add(words.numpy())

    def search(asked: Tensor, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return graph.search(asked.numpy(), number)

    return search


def _among_all(words: Tensor) -> Any:
    def search(asked: Tensor, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        found = (asked @ words.T).topk(number, dim=1)
        return found.values.numpy(), found.indices.numpy()

    return search
