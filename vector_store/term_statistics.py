"""The tokens that are too frequent to search by: estimated after a load, and published in the collection's metadata.

The cost of a sparse look-up is proportional to the number of points with any of its tokens. Frequent tokens cost most and say
least. Look-ups leave out tokens with a document frequency above `store.max_document_frequency`, which bounds the cost. Every
reader uses the same published list, so all choose the same neighbours. Without a list, look-ups use every token.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import grpc as api

from vector_store.client import Client
from vector_store.codec import as_bytes, as_text
from vector_store.config import StoreConfig
from vector_store.schema import KEYWORDS, SparseVector
from vector_store.store import Store, scroll

SAMPLE_POINTS = 20_000
SAMPLE_PAGE = 500

FEWEST_KEPT = 3
"""Fewest tokens that a query keeps, its rarest, however frequent they are: a query is never empty."""

FREQUENT_TOKENS = "frequent_tokens"
SURVEYED_POINTS = "frequent_tokens_of_points"
SAMPLED_POINTS = "frequent_tokens_sampled"
LARGEST_FREQUENCY = "frequent_tokens_over"

_TOKENS_TYPE = np.dtype("<u4")


class TermStatistics:
    """The tokens to leave out, `frequent` (uint32, most frequent first), and what they were estimated from.

    `over` is the document frequency that all of them exceed, `num_points` the size of the collection at that time,
    `num_sampled` the number of points that were read.
    """

    def __init__(self, frequent: NDArray[np.uint32], over: int, num_points: int, num_sampled: int) -> None:
        self.frequent = frequent
        self.over = over
        self.num_points = num_points
        self.num_sampled = num_sampled
        self._ranks = {token: rank for rank, token in enumerate(frequent.tolist())}

    def cut(self, keywords: SparseVector) -> SparseVector:
        """The query's keywords without the frequent tokens, but at least its FEWEST_KEPT rarest."""
        if not self._ranks:
            return keywords
        rare = len(self._ranks)
        ranks = [self._ranks.get(token, rare) for token in keywords.indices.tolist()]
        kept = [row for row, rank in enumerate(ranks) if rank == rare]
        if len(kept) == len(ranks):
            return keywords
        if len(kept) < FEWEST_KEPT:
            kept = sorted(sorted(range(len(ranks)), key=lambda row: -ranks[row])[:FEWEST_KEPT])
        return SparseVector(keywords.indices[kept], keywords.values[kept])


UNPUBLISHED = TermStatistics(np.zeros(0, np.uint32), 0, 0, 0)
"""Statistics of a collection without published ones: no token is left out."""


def publish_term_statistics(client: Client, config: StoreConfig) -> TermStatistics:
    """Survey the collection and publish the result; retrievers that are opened later use it. Call it after a load."""
    statistics = survey(client, config)
    publish(client, config, statistics)
    return statistics


def survey(client: Client, config: StoreConfig) -> TermStatistics:
    """Estimate document frequencies from the first points in the order of ids: ids are hashes, so the sample is uniform.

    Reads at most SAMPLE_POINTS keyword vectors, whatever the collection's size; equal points give an equal result. A token of
    10,000 among a million points is in 200 of the sample, so two thirds of such estimates are within 15 %; among ten
    million points, within 45 %.
    """
    num_points = Store(client, config).count()
    over = config.max_document_frequency
    if num_points <= over:
        return TermStatistics(np.zeros(0, np.uint32), over, num_points, 0)
    frequencies: Counter[int] = Counter()
    num_sampled = 0
    request = api.ScrollPoints(
        collection_name=config.collection,
        limit=SAMPLE_PAGE,
        with_payload=api.WithPayloadSelector(enable=False),
        with_vectors=api.WithVectorsSelector(include=api.VectorsSelector(names=[KEYWORDS])),
    )
    for page in scroll(client, request, config.write_deadline_s):
        for point in page:
            frequencies.update(point.vectors.vectors.vectors[KEYWORDS].sparse.indices)
        num_sampled += len(page)
        if num_sampled >= SAMPLE_POINTS:
            break
    least = over * num_sampled / num_points
    frequent = sorted((-found, token) for token, found in frequencies.items() if found > least)
    return TermStatistics(np.array([token for _, token in frequent], np.uint32), over, num_points, num_sampled)


def publish(client: Client, config: StoreConfig, statistics: TermStatistics) -> None:
    """Write the statistics to the collection's metadata; earlier ones are replaced."""
    packed = as_text(statistics.frequent.astype(_TOKENS_TYPE).tobytes())
    Store(client, config).merge_metadata(
        {
            FREQUENT_TOKENS: api.Value(string_value=packed),
            LARGEST_FREQUENCY: api.Value(integer_value=statistics.over),
            SURVEYED_POINTS: api.Value(integer_value=statistics.num_points),
            SAMPLED_POINTS: api.Value(integer_value=statistics.num_sampled),
        }
    )


def read(client: Client, config: StoreConfig) -> TermStatistics:
    """The published statistics; UNPUBLISHED where there are none."""
    return unpack(Store(client, config).metadata())


def metadata_request(collection: str) -> api.GetCollectionInfoRequest:
    """Request for the collection's metadata."""
    return api.GetCollectionInfoRequest(collection_name=collection)


def unpack(metadata: Mapping[str, Any]) -> TermStatistics:
    """The statistics in a collection's metadata; UNPUBLISHED where there are none."""
    if FREQUENT_TOKENS not in metadata:
        return UNPUBLISHED
    packed = as_bytes(metadata[FREQUENT_TOKENS].string_value)
    return TermStatistics(
        np.frombuffer(packed, _TOKENS_TYPE),
        metadata[LARGEST_FREQUENCY].integer_value,
        metadata[SURVEYED_POINTS].integer_value,
        metadata[SAMPLED_POINTS].integer_value,
    )
