"""Which tokens too many points have for a look-up to follow: estimated after a load, published with the collection.

A sparse look-up costs in proportion to the points that have any of its tokens, and a frequent token's share of the
collection grows with it while it says ever less. Leaving out tokens that more than `store.max_document_frequency` points
have bounds the cost. Every reader takes the same published list, so all of them choose the same neighbours; a collection
without one is searched by every token.
"""

import binascii
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import grpc as api

from vector_store.client import Client
from vector_store.config import StoreConfig
from vector_store.schema import KEYWORDS, SparseVector
from vector_store.store import Store

SAMPLE_POINTS = 20_000
SAMPLE_PAGE = 500

FEWEST_KEPT = 3
"""Tokens that a query keeps at least, its rarest, however frequent they are: so that it is never empty."""

FREQUENT_TOKENS = "frequent_tokens"
SURVEYED_POINTS = "frequent_tokens_of_points"
SAMPLED_POINTS = "frequent_tokens_sampled"
LARGEST_FREQUENCY = "frequent_tokens_over"

_TOKENS_TYPE = np.dtype("<u4")


class TermStatistics:
    """The tokens to leave out, `frequent` (uint32, by falling document frequency), and what they were estimated from.

    `over` is the document frequency that all of them exceed, `num_points` the size of the collection then, `num_sampled`
    how many of its points were read.
    """

    def __init__(self, frequent: NDArray[np.uint32], over: int, num_points: int, num_sampled: int) -> None:
        self.frequent = frequent
        self.over = over
        self.num_points = num_points
        self.num_sampled = num_sampled
        self._places = {token: place for place, token in enumerate(frequent.tolist())}

    def cut(self, keywords: SparseVector) -> SparseVector:
        """The query without its frequent tokens, but with at least its FEWEST_KEPT rarest."""
        if not self._places:
            return keywords
        rare = len(self._places)
        places = [self._places.get(token, rare) for token in keywords.indices.tolist()]
        kept = [row for row, place in enumerate(places) if place == rare]
        if len(kept) == len(places):
            return keywords
        if len(kept) < FEWEST_KEPT:
            kept = sorted(sorted(range(len(places)), key=lambda row: -places[row])[:FEWEST_KEPT])
        return SparseVector(keywords.indices[kept], keywords.values[kept])


UNPUBLISHED = TermStatistics(np.zeros(0, np.uint32), 0, 0, 0)
"""What a collection without statistics is searched by: nothing is left out."""


def publish_term_statistics(client: Client, config: StoreConfig) -> TermStatistics:
    """Survey the collection and publish the result, for retrievers opened from now on. Call it after a load."""
    statistics = survey(client, config)
    publish(client, config, statistics)
    return statistics


def survey(client: Client, config: StoreConfig) -> TermStatistics:
    """Estimate document frequencies from the first points in the order of ids, which are hashes: a uniform sample.

    Reads at most SAMPLE_POINTS keyword vectors, page by page, whatever the collection's size, and gives the same result
    for the same points. A token at the limit is found in 200 of the sample where a million points hold 10,000 of it, so
    its estimate is within 15 % two times of three; over ten million points, within 45 %.
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
    while num_sampled < SAMPLE_POINTS:
        page = client.call(client.points.Scroll, request, config.write_deadline_s)
        for point in page.result:
            frequencies.update(point.vectors.vectors.vectors[KEYWORDS].sparse.indices)
        num_sampled += len(page.result)
        if not page.HasField("next_page_offset"):
            break
        request.offset.CopyFrom(page.next_page_offset)
    least = over * num_sampled / num_points
    frequent = sorted((-found, token) for token, found in frequencies.items() if found > least)
    return TermStatistics(np.array([token for _, token in frequent], np.uint32), over, num_points, num_sampled)


def publish(client: Client, config: StoreConfig, statistics: TermStatistics) -> None:
    """Write the statistics into the collection's metadata, in the place of earlier ones."""
    packed = binascii.b2a_base64(statistics.frequent.astype(_TOKENS_TYPE).tobytes(), newline=False)
    Store(client, config).merge_metadata(
        {
            FREQUENT_TOKENS: api.Value(string_value=packed.decode("ascii")),
            LARGEST_FREQUENCY: api.Value(integer_value=statistics.over),
            SURVEYED_POINTS: api.Value(integer_value=statistics.num_points),
            SAMPLED_POINTS: api.Value(integer_value=statistics.num_sampled),
        }
    )


def read(client: Client, config: StoreConfig) -> TermStatistics:
    """The published statistics; UNPUBLISHED where there are none."""
    return unpack(Store(client, config).metadata())


def metadata_request(collection: str) -> api.GetCollectionInfoRequest:
    """A request whose answer carries the collection's metadata."""
    return api.GetCollectionInfoRequest(collection_name=collection)


def unpack(metadata: Mapping[str, Any]) -> TermStatistics:
    """The statistics in a collection's metadata; UNPUBLISHED where there are none."""
    if FREQUENT_TOKENS not in metadata:
        return UNPUBLISHED
    packed = binascii.a2b_base64(metadata[FREQUENT_TOKENS].string_value)
    return TermStatistics(
        np.frombuffer(packed, _TOKENS_TYPE),
        metadata[LARGEST_FREQUENCY].integer_value,
        metadata[SURVEYED_POINTS].integer_value,
        metadata[SAMPLED_POINTS].integer_value,
    )
