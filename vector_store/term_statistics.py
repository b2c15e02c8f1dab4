"""How many points have each token: counted after a load, published with the collection, and made into a query's IDF weights.

IDF is in the query, not in the store, whose own counts each shard for itself, and deleted points too: with published
frequencies every reader gives the same scores, on any number of shards. They also say which tokens are too frequent to search
by: the cost of a sparse look-up is proportional to the number of points with any of its tokens, and frequent tokens cost most
and say least. Look-ups leave out tokens with a document frequency above the bound that was `store.max_document_frequency` when
the statistics were published, but for a query's three rarest. Without published statistics, look-ups use every token, at equal
weight.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vector_store.client import Client
from vector_store.codec import FIRST_POINT
from vector_store.config import StoreConfig
from vector_store.protocol import api
from vector_store.schema import KEYWORDS, SparseVector
from vector_store.store import Store, pinned, scroll

PAGE = 500
POINT_BYTES, TERM_BYTES = 100, 10
"""Of a page's answer: bytes of a point, and of each of its terms."""

FEWEST_KEPT = 3
"""Fewest tokens that a query keeps, its rarest, however frequent they are: a query is never empty."""

TERM_STATISTICS = "term_statistics"
"""Name under which a collection keeps them."""

_HEADER = np.dtype("<i8")
_FREQUENCIES_TYPE = np.dtype("<u4")


class TermStatistics(NamedTuple):
    """`frequencies` (tokens,) uint32: how many of the collection's `num_points` points have each token, by its id.

    Tokens of more points than `over` are too frequent to search by.
    """

    frequencies: NDArray[np.uint32]
    over: int
    num_points: int

    @property
    def num_frequent(self) -> int:
        """How many tokens look-ups leave out."""
        return int((self.frequencies > self.over).sum())

    def weighted(self, keywords: SparseVector, leave_out: bool = True) -> SparseVector:
        """The query's keywords times their IDF, without the frequent tokens, but with at least the FEWEST_KEPT rarest.

        IDF is ln(1 + (N - n + 1/2) / (n + 1/2)) (Robertson & Zaragoza 2009, eq. 3.3, plus 1 as in Lucene and Qdrant).
        """
        if not self.num_points or not len(keywords.indices):
            return keywords
        found = np.zeros(len(keywords.indices), np.int64)
        known = keywords.indices < len(self.frequencies)
        found[known] = self.frequencies[keywords.indices[known]]
        kept = np.arange(len(found))
        if leave_out and len(frequent := np.flatnonzero(found > self.over)):
            kept = np.flatnonzero(found <= self.over)
            if missing := max(0, min(FEWEST_KEPT, len(found)) - len(kept)):
                rarest = frequent[np.argsort(found[frequent], kind="stable")[:missing]]
                kept = np.sort(np.concatenate([kept, rarest]))
        counts = np.minimum(found[kept], self.num_points)
        idf = np.log1p((self.num_points - counts + 0.5) / (counts + 0.5))
        return SparseVector(keywords.indices[kept], (keywords.values[kept] * idf).astype(np.float32))

    def to_bytes(self) -> bytes:
        """The bytes that `unpack` reads."""
        header = np.array([self.over, self.num_points], _HEADER)
        return header.tobytes() + self.frequencies.astype(_FREQUENCIES_TYPE).tobytes()


UNPUBLISHED = TermStatistics(np.zeros(0, np.uint32), 0, 0)
"""Statistics of a collection without published ones: every token weighs the same."""


def publish_term_statistics(client: Client, config: StoreConfig) -> TermStatistics:
    """Survey the collection and publish the result; retrievers that are opened later use it. Call it after a load."""
    config = pinned(client, config)
    statistics = survey(client, config)
    publish(client, config, statistics)
    return statistics


def survey(client: Client, config: StoreConfig) -> TermStatistics:
    """Count the tokens of every point; equal points give equal statistics. Reads keyword vectors alone."""
    config = pinned(client, config)
    frequencies = np.zeros(0, np.int64)
    num_points = 0
    most = config.message_bytes // 2 // (POINT_BYTES + TERM_BYTES * Store(client, config).manifest().text_tokens)
    request = api.ScrollPoints(
        collection_name=config.collection,
        offset=api.PointId(uuid=FIRST_POINT),
        limit=max(1, min(PAGE, most)),
        with_payload=api.WithPayloadSelector(enable=False),
        with_vectors=api.WithVectorsSelector(include=api.VectorsSelector(names=[KEYWORDS])),
    )
    for page in scroll(client, request, config.write_deadline_s):
        tokens = [
            token
            for point in page
            if KEYWORDS in (vectors := point.vectors.vectors.vectors)  # a store leaves an empty vector out
            for token in vectors[KEYWORDS].sparse.indices
        ]
        counts = np.bincount(np.array(tokens, np.int64), minlength=len(frequencies))
        counts[: len(frequencies)] += frequencies
        frequencies = counts
        num_points += len(page)
    return TermStatistics(frequencies.astype(np.uint32), config.max_document_frequency, num_points)


def publish(client: Client, config: StoreConfig, statistics: TermStatistics) -> None:
    """Keep the statistics with the collection; earlier ones are replaced."""
    Store(client, config).keep(TERM_STATISTICS, statistics.to_bytes())


def read(client: Client, config: StoreConfig) -> TermStatistics:
    """The published statistics; UNPUBLISHED where there are none."""
    return unpack(Store(client, config).kept(TERM_STATISTICS))


def unpack(packed: bytes | None) -> TermStatistics:
    """The statistics from their bytes; UNPUBLISHED where there are none."""
    if packed is None:
        return UNPUBLISHED
    over, num_points = np.frombuffer(packed, _HEADER, 2).tolist()
    return TermStatistics(np.frombuffer(packed, _FREQUENCIES_TYPE, offset=2 * _HEADER.itemsize), over, num_points)
