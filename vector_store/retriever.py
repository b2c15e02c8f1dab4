"""Find the best neighbours of each query, and degrade instead of failing where the store is slow or gone.

A look-up is nearly always two round trips, however many neighbours a query wants: a batch of searches returns ids and scores of
a few candidates, then one fetch reads the chosen points that are not kept from before, each once. With that fetch come, on
request, the points stored under the queries' own ids (the targets of training). Neighbours that were chosen earlier, by a plan,
need the second trip only. A single trip that returns one candidate with its payload is no faster (11 ms against 12 for 32
queries), and leaves equal scores in any order.

A look-up reads one collection. Where the name is an alias, that is the version that the look-up found, and look-ups follow the
alias within FOLLOW_S of a switch.

The rungs of the degrade ladder: live neighbours; else those of this query's last look-up, or of its plan, that are in the cache
(cached); else none (null). `choices`, which makes plans, has no ladder: it retries, then raises. Writes nothing.
"""

import heapq
import math
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from vector_store import term_statistics
from vector_store.blobs import read_parts
from vector_store.breaker import CircuitBreaker
from vector_store.cache import NeighbourCache
from vector_store.client import Client
from vector_store.codec import (
    DOCUMENT,
    FIRST_POINT,
    SPLIT,
    decode_parts,
    empty_neighbours,
    fill,
    payload_of,
    sparse_message,
    unit,
)
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMissing, InvalidPoint, StoreError, StoreUnavailable
from vector_store.protocol import api
from vector_store.schema import (
    KEYWORDS,
    SENTENCE,
    STATES_ALONE,
    Choice,
    Criterion,
    Manifest,
    Neighbours,
    Parts,
    PointKeys,
    Query,
    StoredPoint,
)
from vector_store.store import get_points, payload_fields
from vector_store.term_statistics import TERM_STATISTICS, TermStatistics

TIES = 4
"""Candidates of a query that wants one neighbour: enough to order equal scores by id, so that every machine chooses alike."""

MANY_TIES = 128
"""Fewest candidates of a second search, where the first returned only ties."""

SEARCHED = 96
"""Candidates that a dense search considers (Qdrant's `hnsw_ef`). Of the 16 nearest of 20,000 Wikipedia sentences it finds 95 %
in 10 ms for 32 searches, 64 candidates 92 % in 7 ms, 200 candidates and no 8-bit vectors 98 % in 37 ms."""

FUSION_OFFSET = 2
"""Constant of reciprocal rank fusion, 1 / (2 + rank), as in Qdrant."""

FUSED_MARGIN = 11
"""Candidates of a fused list beyond the deciding ones, so that the limit seldom cuts between ties."""

FOLLOW_S = 1.0
"""How long a retriever goes on reading the collection that an alias named."""

Send: TypeAlias = Callable[[Any, Sequence[Any]], list[Any]]
"""Sends several requests by one stub method and returns the responses: with retries, or within a look-up's deadline."""


class _Read(NamedTuple):
    """What the store has said: the choices, those of them that it has, likewise of the own ids, and how many were cached."""

    chosen: Sequence[Sequence[Choice]]
    points: dict[str, StoredPoint]
    own: dict[str, StoredPoint]
    hits: int


class _Version:
    """The collection that a retriever's name stood for, and what was read of it: a look-up uses one from begin to end."""

    def __init__(self, collection: str, cache: NeighbourCache, statistics: TermStatistics | None) -> None:
        self.collection = collection
        self.cache = cache
        self.statistics = statistics  # None until the first look-up that weighs by them


class Retriever:
    """Up to `count` neighbours per query of one collection by one criterion. Threads may share it; each process opens its own.

    Look-ups wait for a store that is away for `patience_s` after the first failed look-up, then degrade.
    `exact` searches without approximations (HNSW, leaving out frequent tokens), to measure what they cost in quality.
    `counts` has the number of queries that each rung of the ladder has answered (`live`, `cached`, `null`), of points that were
    read from the cache (`cache_hits`), and of chosen points that the store no longer has (`missing`). `lookup_ms` is the
    duration of the last look-up. With `keys` neighbours bring these in the place of their tokens and vectors.
    """

    def __init__(
        self,
        client: Client,
        config: StoreConfig,
        manifest: Manifest,
        criterion: Criterion,
        exclude_splits: Sequence[str] = (),
        read: Parts = STATES_ALONE,
        seed: int = 0,
        exact: bool = False,
        count: int = 1,
        patience_s: float = 0.0,
        keys: PointKeys | None = None,
    ) -> None:
        if criterion in ("dense", "hybrid") and not manifest.dense_index:
            raise StoreError(
                f"criterion {criterion!r} needs a dense index, collection {config.collection!r} was written without one; "
                "use `keywords`, or ingest again with the dense index"
            )
        if read.states and not manifest.tokens:
            raise StoreError(
                f"token states are to be read, collection {config.collection!r} was written without any; ingest again with "
                "references.states=true, or let the student read none"
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
        self._read_parts = read
        self._seed = seed
        self._exact = exact
        self._count = count
        self._keys = keys
        self._points_per_message = max(1, config.message_bytes // 4 // manifest.bytes_per_point())
        self._cache_bytes = config.cache_bytes
        self._version = self._version_of(config.collection)
        self._follow_at_s = -math.inf  # monotonic time at which to ask again what the name stands for
        self._breaker = CircuitBreaker()
        self._lock = threading.Lock()

    def neighbours(self, queries: Sequence[Query]) -> Neighbours:
        """Find the best other points for each query."""
        return self._search_and_read(queries, ())[0]

    def reset_breaker(self) -> None:
        """Call the store again with the next look-up: another caller has had an answer from it."""
        self._breaker.reset()

    def neighbours_and_points(self, queries: Sequence[Query]) -> tuple[Neighbours, Neighbours]:
        """Find the neighbours, and read the points stored under the queries' own ids, in the same two round trips.

        Where the store is away, the rung of own points is null: each is read once an epoch, so caching them is no use.
        """
        return self._search_and_read(queries, [query.id for query in queries])

    def planned(
        self, choices: Sequence[Sequence[Choice]], own_ids: Sequence[str] = ()
    ) -> tuple[Neighbours, Neighbours]:
        """Read precomputed neighbours, and the points stored under `own_ids`, in at most one round trip.

        The result equals that of the look-up that made the choices, without the points that have been deleted since.
        """
        return self._read(len(choices), own_ids, lambda *_: choices, lambda _: choices)

    def choices(self, queries: Sequence[Query]) -> list[list[Choice]]:
        """Choose the best points for each query without reading them, to precompute neighbours.

        Retries while the store is away; StoreUnavailable after store.write_deadline_s.
        """

        self._check(queries)

        def send(stub_method: Any, requests: Sequence[Any]) -> list[Any]:
            return [self._client.call(stub_method, request, self._plan_patience_s) for request in requests]

        return self._choose(queries, self._current_version(send), send)

    def _check(self, queries: Sequence[Query]) -> None:
        """InvalidPoint where the criterion needs more than a query has; before anything is sent."""
        if self._criterion in ("dense", "hybrid"):
            for query in queries:
                if query.sentence is None:
                    raise InvalidPoint(
                        f"query {query.id} has no sentence vector, criterion {self._criterion!r} needs one"
                    )

    # ------------------------------------------------------------ versions

    def _version_of(self, collection: str) -> _Version:
        weighs = self._criterion not in ("dense", "random")
        cache = NeighbourCache(self._cache_bytes, self._count)
        return _Version(collection, cache, None if weighs else term_statistics.UNPUBLISHED)

    def _current_version(self, send: Send) -> _Version:
        """The version for one look-up. Asks what the name stands for on the first one, and of an alias every FOLLOW_S."""
        with self._lock:
            if time.monotonic() < self._follow_at_s:
                return self._version
        (answer,) = send(self._client.collections.ListAliases, [api.ListAliasesRequest()])
        targets = {found.alias_name: found.collection_name for found in answer.aliases}
        collection = targets.get(self._collection, self._collection)
        with self._lock:
            # A name that is no alias cannot become one while its collection is there.
            self._follow_at_s = time.monotonic() + FOLLOW_S if self._collection in targets else math.inf
            if collection != self._version.collection:
                self._version = self._version_of(collection)
            return self._version

    # ------------------------------------------------------------ reading

    def _search_and_read(self, queries: Sequence[Query], own_ids: Sequence[str]) -> tuple[Neighbours, Neighbours]:
        self._check(queries)

        def choose(version: _Version, send: Send) -> list[list[Choice]]:
            chosen = self._choose(queries, version, send)
            version.cache.keep_answers(
                (query.id, choices) for query, choices in zip(queries, chosen, strict=True) if choices
            )
            return chosen

        def remember(version: _Version) -> list[Sequence[Choice]]:
            return [version.cache.answer(query.id) for query in queries]

        return self._read(len(queries), own_ids, choose, remember)

    def _read(
        self,
        batch: int,
        own_ids: Sequence[str],
        choose: Callable[[_Version, Send], Sequence[Sequence[Choice]]],
        remember: Callable[[_Version], Sequence[Sequence[Choice]]],
    ) -> tuple[Neighbours, Neighbours]:
        """Read the chosen points and those of `own_ids`; where the store is away, the cached ones of `remember`'s choices."""
        started = time.monotonic()
        found, own = (
            empty_neighbours(
                batch, self._manifest, self._count, self._read_parts, self._keys.dim if self._keys else None
            ),
            empty_neighbours(len(own_ids), self._manifest, read=self._read_parts),
        )
        missing = hits = 0
        if (batch and self._criterion != "none") or own_ids:
            live = self._fetch(own_ids, choose, started + self._deadline_s)
            if live:
                chosen, points, own_points, hits = live
                if self._criterion != "none":
                    found.rungs[:] = ["live"] * batch
                own.rungs[:] = ["live"] * len(own_ids)
                missing = sum(choice.id not in points for choices in chosen for choice in choices)
                fill(own, {row: [own_points[one]] for row, one in enumerate(own_ids) if one in own_points})
            else:
                version = self._version
                chosen = remember(version)
                points = version.cache.points(_ids(chosen))
            there = {row: [each for each in choices if each.id in points] for row, choices in enumerate(chosen)}
            fill(
                found,
                {row: [points[choice.id] for choice in choices] for row, choices in there.items()},
                {row: [choice.score for choice in choices] for row, choices in there.items()},
            )
            for row, choices in there.items():
                if choices:
                    found.rungs[row] = "live" if live else "cached"
        with self._lock:
            for rung in found.rungs:
                self.counts[rung] += 1
            self.counts["cache_hits"] += hits
            self.counts["missing"] += missing
            self.lookup_ms = (time.monotonic() - started) * 1000
        return found, own

    def _fetch(
        self,
        own_ids: Sequence[str],
        choose: Callable[[_Version, Send], Sequence[Sequence[Choice]]],
        deadline: float,
    ) -> _Read | None:
        """Choose and read; None where the store is away."""

        def send(stub_method: Any, requests: Sequence[Any]) -> list[Any]:
            try:
                return self._client.ask(stub_method, requests, deadline - time.monotonic())
            except StoreUnavailable:
                if (patience_s := self._patience_left_s()) <= 0:
                    raise
            return [self._client.call(stub_method, request, patience_s) for request in requests]

        if self._breaker.is_open():
            return None
        try:
            try:
                found = self._fetch_from(self._current_version(send), own_ids, choose, send)
            except CollectionMissing:  # deleted once the alias named another
                with self._lock:
                    self._follow_at_s = -math.inf
                found = self._fetch_from(self._current_version(send), own_ids, choose, send)
            self._breaker.succeeded()
            self._away_since_s = None
        except StoreUnavailable as error:
            self._breaker.failed(error)
            return None
        return found

    def _fetch_from(
        self,
        version: _Version,
        own_ids: Sequence[str],
        choose: Callable[[_Version, Send], Sequence[Sequence[Choice]]],
        send: Send,
    ) -> _Read:
        """Choose and read in one version of the memory."""
        chosen = choose(version, send)
        chosen_ids = _ids(chosen)
        # One that is kept with its key has no vector any more.
        points = version.cache.points(chosen_ids if self._keys else chosen_ids.union(own_ids))
        own_points = {} if self._keys else points
        hits = len(points)
        absent = sorted((chosen_ids - points.keys()).union(own_id for own_id in own_ids if own_id not in own_points))
        if absent:
            fields, most = payload_of(self._read_parts), self._points_per_message
            requests = [
                get_points(version.collection, absent[start : start + most], fields)
                for start in range(0, len(absent), most)
            ]
            fetched = {
                point.id: point
                for response in send(self._client.points.Get, requests)
                for point in decode_parts(response.result, self._manifest, self._read_parts)
            }
            new = [point for point in fetched.values() if point.id in chosen_ids]
            kept = keyed(new, self._keys) if self._keys and new else new
            version.cache.keep_points(kept)
            points = points | {point.id: point for point in kept}
            own_points = own_points | fetched
        return _Read(chosen, points, own_points, hits)

    def _patience_left_s(self) -> float:
        """Seconds for which to go on waiting for a store that has just failed to answer."""
        now = time.monotonic()
        with self._lock:
            self._away_since_s = self._away_since_s or now
        return self._away_since_s + self._patience_s - now

    # ------------------------------------------------------------ choosing

    def _choose(self, queries: Sequence[Query], version: _Version, send: Send) -> list[list[Choice]]:
        """The best points for each query; equal queries are sent once (a query's id is a hash of its text)."""
        if self._criterion == "none" or not queries:
            return [[] for _ in queries]
        rows = {(query.id, query.document): row for row, query in enumerate(queries)}
        asked = [queries[row] for row in rows.values()]
        choose = {
            "keywords": self._choose_nearest,
            "dense": self._choose_nearest,
            "hybrid": self._choose_fused,
            "random": self._choose_random,
        }[self._criterion]
        chosen = dict(zip(rows, choose(asked, version, send), strict=True))
        return [chosen[query.id, query.document] for query in queries]

    def _choose_nearest(self, queries: Sequence[Query], version: _Version, send: Send) -> list[list[Choice]]:
        using = SENTENCE if self._criterion == "dense" else KEYWORDS
        ranked = self._ranked([(query, using) for query in queries], self._count, TIES - 1, version, send)
        return [candidates[: self._count] for candidates in ranked]

    def _choose_fused(self, queries: Sequence[Query], version: _Version, send: Send) -> list[list[Choice]]:
        """Reciprocal rank fusion of both criteria. Not done in the store, whose order of ties depends on the order of writing.

        With k neighbours wanted, the first k of either list score at least 1 / (1 + k). A point that is not among them reaches
        that only within the first (k + 1)(k + 2) - 1 of both lists, so those are the deciding candidates (5 for k = 1, 11
        for 2, 29 for 4). Longer lists would only separate points that are first in one list and last in the other.
        """
        searches = [(query, using) for query in queries for using in (KEYWORDS, SENTENCE)]
        deciding = (self._count + 1) * (self._count + 2) - 1
        ranked = self._ranked(searches, deciding, FUSED_MARGIN, version, send)
        return [_fused(ranked[row : row + 2], self._count) for row in range(0, len(ranked), 2)]

    def _ranked(
        self, searches: Sequence[tuple[Query, str]], deciding: int, margin: int, version: _Version, send: Send
    ) -> list[list[Choice]]:
        """The best `deciding` candidates of each search and up to `margin` more, ties ordered by id.

        The order in which a store cuts ties off at the limit is undefined. Where the last deciding candidate ties with the last
        of all, the search is repeated with a higher limit. If that list is full, too, its last candidate's ties are dropped,
        unless fewer candidates than wanted would be left.
        """
        limit = deciding + margin
        ranked = self._candidates(searches, limit, version, send)
        limits = [limit] * len(searches)
        tied = [
            row
            for row, found in enumerate(ranked)
            if len(found) == limit and found[deciding - 1].score == found[-1].score
        ]
        if tied:
            higher = max(MANY_TIES, 2 * limit)
            again = self._candidates([searches[row] for row in tied], higher, version, send)
            for row, found in zip(tied, again, strict=True):
                ranked[row], limits[row] = found, higher
        return [
            _without_last_ties(found, self._count) if len(found) == full else found
            for found, full in zip(ranked, limits, strict=True)
        ]

    def _candidates(
        self, searches: Sequence[tuple[Query, str]], limit: int, version: _Version, send: Send
    ) -> list[list[Choice]]:
        statistics = self._statistics(version, send)
        # One more than wanted: a query's own point is left out here, since a filter doubles the time of a search (15 to 25 ms
        # instead of 13 to 17 for 32 searches among 20,000 vectors).
        request = api.QueryBatchPoints(
            collection_name=version.collection,
            query_points=[
                self._search(query, using, limit + 1, version.collection, statistics) for query, using in searches
            ],
        )
        (response,) = send(self._client.points.QueryBatch, [request])
        ranked = []
        for (query, _), result in zip(searches, response.result, strict=True):
            found = (Choice(point.id.uuid, point.score) for point in result.result)
            others = [choice for choice in found if choice.id != query.id]
            ranked.append(sorted(others, key=lambda choice: (-choice.score, choice.id))[:limit])
        return ranked

    def _statistics(self, version: _Version, send: Send) -> TermStatistics:
        """Read on the first look-up, not in the constructor, so that a store that is away only degrades that look-up."""
        if version.statistics is None:
            packed = read_parts(
                lambda request: send(self._client.points.Get, [request])[0], version.collection, TERM_STATISTICS
            )
            version.statistics = term_statistics.unpack(packed)
        return version.statistics

    def _search(
        self, query: Query, using: str, limit: int, collection: str, statistics: TermStatistics
    ) -> api.QueryPoints:
        request = api.QueryPoints(
            collection_name=collection,
            using=using,
            filter=self._others(query),
            limit=limit,
            with_payload=payload_fields(()),
        )
        if using == KEYWORDS:
            request.query.nearest.sparse.CopyFrom(
                sparse_message(statistics.weighted(query.keywords, leave_out=not self._exact))
            )
        else:
            assert query.sentence is not None
            request.query.nearest.dense.data.extend(unit(query.sentence).tolist())
            request.params.hnsw_ef = SEARCHED
            request.params.quantization.rescore = True
            if self._exact:
                request.params.exact = request.params.quantization.ignore = True
        return request

    def _choose_random(self, queries: Sequence[Query], version: _Version, send: Send) -> list[list[Choice]]:
        """The first allowed points after a random id in the order of ids, continued from the start at the end.

        Ids are hashes, so random ids are spread evenly: a point's probability is the gap before it, and adjacent points are
        unrelated.
        """
        pages = send(
            self._client.points.Scroll, [self._scroll(query, self._random_id(query), version) for query in queries]
        )
        drawn = [[point.id.uuid for point in page.result] for page in pages]
        ends = [row for row, ids in enumerate(drawn) if len(ids) < self._count]
        if ends:
            again = send(self._client.points.Scroll, [self._scroll(queries[row], None, version) for row in ends])
            for row, page in zip(ends, again, strict=True):
                drawn[row] = list(dict.fromkeys([*drawn[row], *(point.id.uuid for point in page.result)]))
        return [[Choice(drawn_id, 0.0) for drawn_id in ids[: self._count]] for ids in drawn]

    def _random_id(self, query: Query) -> str:
        return str(uuid.uuid5(uuid.UUID(int=self._seed % 2**128), query.id))

    def _scroll(self, query: Query, start: str | None, version: _Version) -> api.ScrollPoints:
        return api.ScrollPoints(
            collection_name=version.collection,
            filter=self._allowed(query),
            offset=api.PointId(uuid=start or FIRST_POINT),
            limit=self._count,
            with_payload=payload_fields(()),
        )

    def _allowed(self, query: Query) -> api.Filter:
        """Filter for every point except the query itself, its document and the excluded splits."""
        allowed = self._others(query) or api.Filter()
        allowed.must_not.add().has_id.has_id.add().uuid = query.id
        return allowed

    def _others(self, query: Query) -> api.Filter | None:
        """Filter for every point except those of the query's document and the excluded splits; None where all are wanted."""
        allowed = api.Filter()
        if query.document is not None:
            field = allowed.must_not.add().field
            field.key = DOCUMENT
            field.match.keyword = query.document
        if self._exclude_splits:
            field = allowed.must_not.add().field
            field.key = SPLIT
            field.match.keywords.strings.extend(self._exclude_splits)
        return allowed if allowed.must_not else None


def keyed(points: Sequence[StoredPoint], keys: PointKeys) -> list[StoredPoint]:
    """Points with their keys, and without what these are made of."""
    no_states, no_tokens = np.empty((0, 0), np.float16), np.empty(0, np.int32)
    return [
        StoredPoint(point.id, no_states, no_tokens, point.text, None, point.residual, key.copy())
        for point, key in zip(points, keys(points), strict=True)
    ]


def _ids(chosen: Sequence[Sequence[Choice]]) -> set[str]:
    return {choice.id for choices in chosen for choice in choices}


def _without_last_ties(ranking: list[Choice], count: int) -> list[Choice]:
    above = [choice for choice in ranking if choice.score > ranking[-1].score]
    return above if len(above) >= count else ranking


def _fused(rankings: Sequence[Sequence[Choice]], count: int) -> list[Choice]:
    """The best sums of reciprocal ranks; candidates of equal score share a rank, and equal sums are ordered by id."""
    sums: defaultdict[str, float] = defaultdict(float)
    for ranking in rankings:
        first: dict[float, int] = {}
        for rank, choice in enumerate(ranking):
            sums[choice.id] += 1 / (FUSION_OFFSET + first.setdefault(choice.score, rank))
    return [Choice(*best) for best in heapq.nsmallest(count, sums.items(), key=lambda item: (-item[1], item[0]))]
