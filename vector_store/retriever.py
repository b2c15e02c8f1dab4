"""Find the best neighbours of each query, and never fail for a store that is slow or gone.

Reads one collection. A look-up is two round trips, however many neighbours a query wants: one batch of searches that brings
ids and scores of a few candidates, then one fetch of those chosen points that are not kept from before, each once however
many queries chose it.
One trip with a single candidate and its payload takes 11 ms against 12 ms for 32 queries, but leaves equal scores in any
order, and needs the second trip anyway where the queries' own points are wanted. Choices made earlier (a plan) need the
second trip only.
The ladder: a live answer; else the neighbours this query had before; else none. Knows nothing of what asks.
"""

import heapq
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from qdrant_client import grpc as api

from vector_store import term_statistics
from vector_store.breaker import Breaker
from vector_store.cache import NeighbourCache
from vector_store.client import Client
from vector_store.codec import DOCUMENT, SPLIT, decode_states, empty_neighbours, fill_row, sparse_message
from vector_store.config import StoreConfig
from vector_store.errors import InvalidPoint, StoreError, StoreUnavailable
from vector_store.schema import KEYWORDS, SENTENCE, Choice, Criterion, Manifest, Neighbours, Query, StoredPoint
from vector_store.store import get_points, payload_fields, state_fields
from vector_store.term_statistics import TermStatistics

TIES = 4
"""Candidates of a query that wants one neighbour: enough to order equal scores by id, the same on every machine."""

MANY_TIES = 128
"""Candidates, at least, of a query whose deciding ones are all equal, asked for again."""

FUSION_OFFSET = 2
"""Reciprocal rank fusion, 1 / (2 + rank) as Qdrant's."""

FUSED_MARGIN = 11
"""Candidates of a fused list after those that decide, so that these are seldom cut off among equals."""

Send: TypeAlias = Callable[[Any, Sequence[Any]], list[Any]]
"""Sends several requests by one stub method and returns their responses: patiently, or within a look-up's deadline."""


class Retriever:
    """Up to `count` neighbours per query of one collection by one criterion. Threads may share it; each process opens its own.

    A store that is away is waited for, up to `patience_s` from the first look-up that failed, before look-ups degrade.
    `exact` leaves out every shortcut (HNSW, the cut of frequent tokens), to measure what they cost in quality.
    `counts` says how many queries each rung of the ladder has answered (`live`, `cached`, `null`), how many points were not
    fetched again because they were kept (`cache_hits`), and how many chosen points the store did not have any more
    (`missing`). `lookup_ms` is how long the last look-up took.
    """

    def __init__(
        self,
        client: Client,
        config: StoreConfig,
        manifest: Manifest,
        criterion: Criterion,
        exclude_splits: Sequence[str] = (),
        with_text: bool = False,
        seed: int = 0,
        exact: bool = False,
        count: int = 1,
        patience_s: float = 0.0,
    ) -> None:
        if criterion in ("dense", "hybrid") and not manifest.dense_index:
            raise StoreError(
                f"criterion {criterion!r} needs a dense index, collection {config.collection!r} was written without one; "
                "use `keywords`, or ingest again with the dense index"
            )
        self.counts = dict.fromkeys(("live", "cached", "null", "cache_hits", "missing"), 0)
        self.lookup_ms = 0.0
        self._client = client
        self._collection = config.collection
        self._deadline_s = config.lookup_deadline_ms / 1000
        self._plan_patience_s = config.write_deadline_s
        self._patience_s = patience_s
        self._away_since_s: float | None = None
        self._manifest = manifest
        self._criterion = criterion
        self._exclude_splits = tuple(exclude_splits)
        self._with_text = with_text
        self._seed = seed
        self._exact = exact
        self._term_statistics = term_statistics.UNPUBLISHED if exact or criterion in ("dense", "random") else None
        self._count = count
        self._points_per_message = max(1, config.message_bytes // 4 // manifest.bytes_per_point())
        self._cache = NeighbourCache(config.cache_bytes, count)
        self._breaker = Breaker()
        self._lock = threading.Lock()

    def neighbours(self, queries: Sequence[Query]) -> Neighbours:
        """The best other points for each query."""
        return self._search_and_read(queries, ())[0]

    def rest_no_longer(self) -> None:
        """Ask the store with the next look-up, even if it did not answer a moment ago: it was seen to be back."""
        self._breaker.reset()

    def neighbours_and_points(self, queries: Sequence[Query]) -> tuple[Neighbours, Neighbours]:
        """The neighbours, and the points stored under the queries' own ids, in the same two round trips.

        Where the store is away, the rung of own points is null: they are asked once an epoch, so keeping them is no use.
        """
        return self._search_and_read(queries, [query.id for query in queries])

    def planned(
        self, choices: Sequence[Sequence[Choice]], own_ids: Sequence[str] = ()
    ) -> tuple[Neighbours, Neighbours]:
        """The neighbours that were chosen earlier, and the points stored under `own_ids`, in one round trip or none.

        Equal to the look-up that made the choices, unless a point has been deleted since: its row has one less.
        """
        return self._read(len(choices), own_ids, lambda _: choices, lambda: choices)

    def choices(self, queries: Sequence[Query]) -> list[list[Choice]]:
        """Which points are the best for each query, without reading them: what a plan keeps.

        Waits for a store that is away and tries again; StoreUnavailable after store.write_deadline_s.
        """

        def send(stub_method: Any, requests: Sequence[Any]) -> list[Any]:
            return [self._client.call(stub_method, request, self._plan_patience_s) for request in requests]

        return self._choose(queries, send)

    # ------------------------------------------------------------ reading

    def _search_and_read(self, queries: Sequence[Query], own_ids: Sequence[str]) -> tuple[Neighbours, Neighbours]:
        def choose(send: Send) -> list[list[Choice]]:
            chosen = self._choose(queries, send)
            self._cache.keep_answers(
                (query.id, choices) for query, choices in zip(queries, chosen, strict=True) if choices
            )
            return chosen

        return self._read(len(queries), own_ids, choose, lambda: [self._cache.answer(query.id) for query in queries])

    def _read(
        self,
        batch: int,
        own_ids: Sequence[str],
        choose: Callable[[Send], Sequence[Sequence[Choice]]],
        remember: Callable[[], Sequence[Sequence[Choice]]],
    ) -> tuple[Neighbours, Neighbours]:
        """Read the points that `choose` names and those of `own_ids`; where the store is away, what is kept of `remember`."""
        started = time.monotonic()
        found, own = (
            empty_neighbours(batch, self._manifest, self._count),
            empty_neighbours(len(own_ids), self._manifest),
        )
        missing = hits = 0
        if (batch and self._criterion != "none") or own_ids:
            live = self._fetch(own_ids, choose, started + self._deadline_s)
            if live:
                chosen, points, hits = live
                if self._criterion != "none":
                    found.rungs[:] = ["live"] * batch
                own.rungs[:] = ["live"] * len(own_ids)
                missing = sum(choice.id not in points for choices in chosen for choice in choices)
                for row, own_id in enumerate(own_ids):
                    if own_id in points:
                        fill_row(row, own, [points[own_id]])
            else:
                chosen = remember()
                points = self._cache.points(_ids(chosen))
            for row, choices in enumerate(chosen):
                if there := [choice for choice in choices if choice.id in points]:
                    fill_row(row, found, [points[choice.id] for choice in there], [choice.score for choice in there])
                    found.rungs[row] = "live" if live else "cached"
        with self._lock:
            for rung in found.rungs:
                self.counts[rung] += 1
            self.counts["cache_hits"] += hits
            self.counts["missing"] += missing
            self.lookup_ms = (time.monotonic() - started) * 1000
        return found, own

    def _fetch(
        self, own_ids: Sequence[str], choose: Callable[[Send], Sequence[Sequence[Choice]]], deadline: float
    ) -> tuple[Sequence[Sequence[Choice]], dict[str, StoredPoint], int] | None:
        """The choices, every point wanted that the store has, and how many were kept; None where the store is away."""

        def send(stub_method: Any, requests: Sequence[Any]) -> list[Any]:
            try:
                return self._client.ask(stub_method, requests, deadline - time.monotonic())
            except StoreUnavailable:
                if (patience_s := self._patience_left_s()) <= 0:
                    raise
            return [self._client.call(stub_method, request, patience_s) for request in requests]

        if not self._breaker.lets_through():
            return None
        try:
            chosen = choose(send)
            chosen_ids = _ids(chosen)
            points = self._cache.points(chosen_ids.union(own_ids))
            hits = len(points)
            absent = sorted(chosen_ids.union(own_ids).difference(points))
            if absent:
                fields, most = state_fields(self._with_text), self._points_per_message
                requests = [
                    get_points(self._collection, absent[start : start + most], fields)
                    for start in range(0, len(absent), most)
                ]
                shape = self._manifest.tokens, self._manifest.dim, self._manifest.datatype
                fetched = {
                    point.id.uuid: decode_states(point, *shape)
                    for response in send(self._client.points.Get, requests)
                    for point in response.result
                }
                self._cache.keep_points(point for point in fetched.values() if point.id in chosen_ids)
                points |= fetched
            self._breaker.succeeded()
            self._away_since_s = None
        except StoreUnavailable as error:
            self._breaker.failed(error)
            return None
        return chosen, points, hits

    def _patience_left_s(self) -> float:
        """How much longer to wait for a store that has just failed to answer."""
        now = time.monotonic()
        with self._lock:
            self._away_since_s = self._away_since_s or now
        return self._away_since_s + self._patience_s - now

    # ------------------------------------------------------------ choosing

    def _choose(self, queries: Sequence[Query], send: Send) -> list[list[Choice]]:
        """The best points for each query; equal queries are asked once (an id is a hash of the text that asks)."""
        if self._criterion == "none" or not queries:
            return [[] for _ in queries]
        places = {(query.id, query.document): row for row, query in enumerate(queries)}
        asked = [queries[row] for row in places.values()]
        choose = {"random": self._choose_random, "hybrid": self._choose_fused}.get(
            self._criterion, self._choose_nearest
        )
        chosen = dict(zip(places, choose(asked, send), strict=True))
        return [chosen[query.id, query.document] for query in queries]

    def _choose_nearest(self, queries: Sequence[Query], send: Send) -> list[list[Choice]]:
        using = SENTENCE if self._criterion == "dense" else KEYWORDS
        ranked = self._ranked([(query, using) for query in queries], self._count, TIES - 1, send)
        return [candidates[: self._count] for candidates in ranked]

    def _choose_fused(self, queries: Sequence[Query], send: Send) -> list[list[Choice]]:
        """Reciprocal rank fusion of both criteria, here and not in the store: which of several equals a store ranks first
        depends on the order in which they were written, and would decide which of them is chosen.

        With k wanted, the first k of either list have at least 1 / (1 + k), and who is first in neither has that only among
        the first (k + 1)(k + 2) - 1 of both: those decide (5 for k = 1, 11 for 2, 29 for 4), and longer lists would only
        separate firsts of one list that the other ranks last.
        """
        searches = [(query, using) for query in queries for using in (KEYWORDS, SENTENCE)]
        deciding = (self._count + 1) * (self._count + 2) - 1
        ranked = self._ranked(searches, deciding, FUSED_MARGIN, send)
        return [_fused(ranked[row : row + 2], self._count) for row in range(0, len(ranked), 2)]

    def _ranked(
        self, searches: Sequence[tuple[Query, str]], deciding: int, margin: int, send: Send
    ) -> list[list[Choice]]:
        """The best `deciding` candidates of each search and up to `margin` more, equal scores by id.

        Which of several equals a store leaves out of a full list is its own affair. Where the last of those that decide
        equals the last of all, the search is repeated with a higher limit; what equals the last of a list that is still full
        is dropped, unless fewer than are wanted would be left.
        """
        limit = deciding + margin
        ranked = self._candidates(searches, limit, send)
        limits = [limit] * len(searches)
        tied = [
            row
            for row, found in enumerate(ranked)
            if len(found) == limit and found[deciding - 1].score == found[-1].score
        ]
        if tied:
            higher = max(MANY_TIES, 2 * limit)
            again = self._candidates([searches[row] for row in tied], higher, send)
            for row, found in zip(tied, again, strict=True):
                ranked[row], limits[row] = found, higher
        return [
            _settled(found, self._count) if len(found) == full else found
            for found, full in zip(ranked, limits, strict=True)
        ]

    def _candidates(self, searches: Sequence[tuple[Query, str]], limit: int, send: Send) -> list[list[Choice]]:
        statistics = self._statistics(send)
        request = api.QueryBatchPoints(
            collection_name=self._collection,
            query_points=[self._search(query, using, limit, statistics) for query, using in searches],
        )
        (response,) = send(self._client.points.QueryBatch, [request])
        return [
            sorted(
                (Choice(point.id.uuid, point.score) for point in result.result),
                key=lambda choice: (-choice.score, choice.id),
            )
            for result in response.result
        ]

    def _statistics(self, send: Send) -> TermStatistics:
        """Read with the first look-up, so that a store that is away then costs no more than that look-up."""
        if self._term_statistics is None:
            request = term_statistics.metadata_request(self._collection)
            (response,) = send(self._client.collections.Get, [request])
            self._term_statistics = term_statistics.unpack(response.result.config.metadata)
        return self._term_statistics

    def _search(self, query: Query, using: str, limit: int, statistics: TermStatistics) -> api.QueryPoints:
        request = api.QueryPoints(
            collection_name=self._collection,
            using=using,
            filter=self._allowed(query),
            limit=limit,
            with_payload=payload_fields(()),
        )
        if using == KEYWORDS:
            request.query.nearest.sparse.CopyFrom(sparse_message(statistics.cut(query.keywords)))
        elif query.sentence is None:
            raise InvalidPoint(f"query {query.id} has no sentence vector, criterion {self._criterion!r} needs one")
        else:
            request.query.nearest.dense.data.extend(query.sentence.tolist())
            if self._exact:
                request.params.exact = True
        return request

    def _choose_random(self, queries: Sequence[Query], send: Send) -> list[list[Choice]]:
        """The first allowed points from a random place in the order of ids, and on from the start where that ends.

        Ids are hashes, so places are spread evenly, each point's share is the gap before it, and points side by side have
        nothing in common.
        """
        pages = send(self._client.points.Scroll, [self._scroll(query, self._place(query)) for query in queries])
        drawn = [[point.id.uuid for point in page.result] for page in pages]
        ends = [row for row, ids in enumerate(drawn) if len(ids) < self._count]
        if ends:
            again = send(self._client.points.Scroll, [self._scroll(queries[row], None) for row in ends])
            for row, page in zip(ends, again, strict=True):
                drawn[row] = list(dict.fromkeys([*drawn[row], *(point.id.uuid for point in page.result)]))
        return [[Choice(drawn_id, 0.0) for drawn_id in ids[: self._count]] for ids in drawn]

    def _place(self, query: Query) -> str:
        return str(uuid.uuid5(uuid.UUID(int=self._seed % 2**128), query.id))

    def _scroll(self, query: Query, place: str | None) -> api.ScrollPoints:
        return api.ScrollPoints(
            collection_name=self._collection,
            filter=self._allowed(query),
            offset=api.PointId(uuid=place) if place else None,
            limit=self._count,
            with_payload=payload_fields(()),
        )

    def _allowed(self, query: Query) -> api.Filter:
        """Everything but the query itself, its document and the excluded splits."""
        allowed = api.Filter()
        allowed.must_not.add().has_id.has_id.add().uuid = query.id
        if query.document is not None:
            field = allowed.must_not.add().field
            field.key = DOCUMENT
            field.match.keyword = query.document
        if self._exclude_splits:
            field = allowed.must_not.add().field
            field.key = SPLIT
            field.match.keywords.strings.extend(self._exclude_splits)
        return allowed


def _ids(chosen: Sequence[Sequence[Choice]]) -> set[str]:
    return {choice.id for choices in chosen for choice in choices}


def _settled(ranking: list[Choice], count: int) -> list[Choice]:
    above = [choice for choice in ranking if choice.score > ranking[-1].score]
    return above if len(above) >= count else ranking


def _fused(rankings: Sequence[Sequence[Choice]], count: int) -> list[Choice]:
    """The best sums of reciprocal ranks; candidates of equal score share a rank, and equal sums go by id."""
    sums: defaultdict[str, float] = defaultdict(float)
    for ranking in rankings:
        first: dict[float, int] = {}
        for rank, choice in enumerate(ranking):
            sums[choice.id] += 1 / (FUSION_OFFSET + first.setdefault(choice.score, rank))
    return [Choice(*best) for best in heapq.nsmallest(count, sums.items(), key=lambda item: (-item[1], item[0]))]
