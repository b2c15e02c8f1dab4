"""Find one neighbour per query, and never fail for a store that is slow or gone.

Reads one collection. A look-up is two round trips: one batch of searches that brings ids and scores of a few
candidates, then one fetch of the chosen points, each once however many queries chose it. One trip with a single
candidate and its payload takes 11 ms against 12 ms for 32 queries, but leaves equal scores in any order, and needs the
second trip anyway where the queries' own points are wanted.
The ladder: a live answer; else the neighbour this query had before; else none. Knows nothing of what asks.
"""

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from qdrant_client import grpc as api

from vector_store.client import Client
from vector_store.codec import DOCUMENT, SPLIT, decode_into, empty_neighbours, sparse_message
from vector_store.config import StoreConfig
from vector_store.errors import InvalidPoint, StoreError, StoreUnavailable
from vector_store.schema import KEYWORDS, SENTENCE, Criterion, LadderStep, Manifest, Neighbours, Query
from vector_store.store import get_points, payload_fields, state_fields

log = logging.getLogger(__name__)

TIES = 4
"""Candidates per query: enough to order equal scores by id, the same on every machine."""

FUSED_CANDIDATES = 32
"""Candidates of each criterion that the hybrid fuses."""

SHORTEST_REST_S = 1.0
LONGEST_REST_S = 5.0


class Retriever:
    """Neighbours of one collection by one criterion. Threads may share it; each process opens its own.

    `counts` says how many queries each step of the ladder has answered, `lookup_ms` how long the last look-up took.
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
    ) -> None:
        if criterion in ("dense", "hybrid") and not manifest.dense_index:
            raise StoreError(
                f"criterion {criterion!r} needs a dense index, collection {config.collection!r} was written without one; "
                "use `keywords`, or ingest again with the dense index"
            )
        self.counts: dict[LadderStep, int] = {"live": 0, "cached": 0, "null": 0}
        self.lookup_ms = 0.0
        self._client = client
        self._collection = config.collection
        self._deadline_s = config.lookup_deadline_ms / 1000
        self._manifest = manifest
        self._criterion = criterion
        self._exclude_splits = tuple(exclude_splits)
        self._with_text = with_text
        self._seed = seed
        self._cache = _Cache(config.cache_bytes)
        self._breaker = _Breaker()
        self._lock = threading.Lock()

    def neighbours(self, queries: Sequence[Query]) -> Neighbours:
        """The best other point for each query."""
        return self._look_up(queries, with_own=False)[0]

    def neighbours_and_points(self, queries: Sequence[Query]) -> tuple[Neighbours, Neighbours]:
        """The neighbours, and the points stored under the queries' own ids, in the same two round trips.

        Own points are not cached: where the store is away their step is null.
        """
        return self._look_up(queries, with_own=True)

    def _look_up(self, queries: Sequence[Query], with_own: bool) -> tuple[Neighbours, Neighbours]:
        started = time.monotonic()
        found = empty_neighbours(len(queries), self._manifest)
        own = empty_neighbours(len(queries) if with_own else 0, self._manifest)
        wants_store = with_own or self._criterion != "none"
        if queries and wants_store and self._breaker.lets_through():
            try:
                self._fill_live(queries, found, own if with_own else None, started + self._deadline_s)
                self._breaker.succeeded()
            except StoreUnavailable as error:
                self._breaker.failed(error)
                # A failure half way leaves nothing half filled: both are decoded after the last answer.
                self._fill_cached(queries, found)
        elif queries and wants_store:
            self._fill_cached(queries, found)
        with self._lock:
            for step in found.steps:
                self.counts[step] += 1
            self.lookup_ms = (time.monotonic() - started) * 1000
        return found, own

    def _fill_live(self, queries: Sequence[Query], found: Neighbours, own: Neighbours | None, deadline: float) -> None:
        chosen = self._choose(queries, deadline)
        ids = {choice.id for choice in chosen if choice}
        if own is not None:
            ids.update(query.id for query in queries)
        points: dict[str, Any] = {}
        if ids:
            request = get_points(self._collection, sorted(ids), state_fields(self._with_text))
            (response,) = self._client.ask(self._client.points.Get, [request], deadline - time.monotonic())
            points = {point.id.uuid: point for point in response.result}
        for row, (query, choice) in enumerate(zip(queries, chosen, strict=True)):
            if self._criterion != "none":
                found.steps[row] = "live"
            if choice and choice.id in points:
                decode_into(row, found, points[choice.id], self._manifest.datatype)
                found.scores[row] = choice.score
                self._cache.keep(query.id, found, row)
            if own is not None:
                own.steps[row] = "live"
                if query.id in points:
                    decode_into(row, own, points[query.id], self._manifest.datatype)

    def _fill_cached(self, queries: Sequence[Query], found: Neighbours) -> None:
        for row, query in enumerate(queries):
            self._cache.fill(query.id, found, row)

    def _choose(self, queries: Sequence[Query], deadline: float) -> list["_Choice | None"]:
        if self._criterion == "none":
            return [None] * len(queries)
        if self._criterion == "random":
            return self._choose_random(queries, deadline)
        request = api.QueryBatchPoints(
            collection_name=self._collection, query_points=[self._search(query) for query in queries]
        )
        (response,) = self._client.ask(self._client.points.QueryBatch, [request], deadline - time.monotonic())
        return [_best(result.result) for result in response.result]

    def _choose_random(self, queries: Sequence[Query], deadline: float) -> list["_Choice | None"]:
        """The first allowed point from a random place in the order of ids, and from the start where that is the end.

        Ids are hashes, so places are spread evenly and each point's share is the gap before it.
        """
        requests = [self._scroll(query, self._place(query)) for query in queries]
        pages = self._client.ask(self._client.points.Scroll, requests, deadline - time.monotonic())
        ends = [row for row, page in enumerate(pages) if not page.result]
        if ends:
            wrapped = [self._scroll(queries[row], None) for row in ends]
            again = self._client.ask(self._client.points.Scroll, wrapped, deadline - time.monotonic())
            for row, page in zip(ends, again, strict=True):
                pages[row] = page
        return [_Choice(page.result[0].id.uuid, 0.0) if page.result else None for page in pages]

    def _place(self, query: Query) -> str:
        return str(uuid.uuid5(uuid.UUID(int=self._seed % 2**128), query.id))

    def _scroll(self, query: Query, place: str | None) -> api.ScrollPoints:
        return api.ScrollPoints(
            collection_name=self._collection,
            filter=self._allowed(query),
            offset=api.PointId(uuid=place) if place else None,
            limit=1,
            with_payload=payload_fields(()),
        )

    def _search(self, query: Query) -> api.QueryPoints:
        request = api.QueryPoints(
            collection_name=self._collection,
            filter=self._allowed(query),
            limit=TIES,
            with_payload=payload_fields(()),
        )
        if self._criterion == "hybrid":
            for using, vector in ((KEYWORDS, self._keywords(query)), (SENTENCE, self._sentence(query))):
                request.prefetch.append(
                    api.PrefetchQuery(
                        using=using,
                        query=api.Query(nearest=vector),
                        filter=request.filter,
                        limit=FUSED_CANDIDATES,
                    )
                )
            request.query.fusion = api.Fusion.RRF
        elif self._criterion == "dense":
            request.using = SENTENCE
            request.query.nearest.CopyFrom(self._sentence(query))
        else:
            request.using = KEYWORDS
            request.query.nearest.CopyFrom(self._keywords(query))
        return request

    def _keywords(self, query: Query) -> api.VectorInput:
        return api.VectorInput(sparse=sparse_message(query.keywords))

    def _sentence(self, query: Query) -> api.VectorInput:
        if query.sentence is None:
            raise InvalidPoint(f"query {query.id} has no sentence vector, criterion {self._criterion!r} needs one")
        return api.VectorInput(dense=api.DenseVector(data=query.sentence))

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


class _Choice(NamedTuple):
    id: str
    score: float


def _best(points: Sequence[api.ScoredPoint]) -> _Choice | None:
    choices = [_Choice(point.id.uuid, point.score) for point in points]
    return min(choices, key=lambda choice: (-choice.score, choice.id), default=None)


class _Breaker:
    """Lets a dead store rest, for longer each time it fails again, so that it costs no deadline per look-up."""

    def __init__(self) -> None:
        self._rest_s = SHORTEST_REST_S
        self._rests_until = 0.0

    def lets_through(self) -> bool:
        return time.monotonic() >= self._rests_until

    def failed(self, error: StoreUnavailable) -> None:
        log.warning("look-ups rest for %g s: %s", self._rest_s, error)
        self._rests_until = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)

    def succeeded(self) -> None:
        self._rest_s = SHORTEST_REST_S


@dataclass(frozen=True, slots=True)
class _Kept:
    """A neighbour without its padding."""

    id: str | None
    text: str | None
    score: float
    states: NDArray[np.float16]
    token_ids: NDArray[np.int32]

    @property
    def num_bytes(self) -> int:
        # 400 covers the objects around the arrays and the dictionary slot.
        return self.states.nbytes + self.token_ids.nbytes + len(self.text or "") + 400


class _Cache:
    """The last neighbours by query id, least recently used out first, within a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, query_id: str, found: Neighbours, row: int) -> None:
        length = int(found.mask[row].sum())
        kept = _Kept(
            found.ids[row],
            found.texts[row],
            float(found.scores[row]),
            found.states[row, :length].copy(),
            found.token_ids[row, :length].copy(),
        )
        with self._lock:
            replaced = self._kept.pop(query_id, None)
            self._kept[query_id] = kept
            self._used_bytes += kept.num_bytes - (replaced.num_bytes if replaced else 0)
            while self._used_bytes > self._budget_bytes:
                self._used_bytes -= self._kept.popitem(last=False)[1].num_bytes

    def fill(self, query_id: str, found: Neighbours, row: int) -> None:
        with self._lock:
            kept = self._kept.get(query_id)
            if kept is None:
                return
            self._kept.move_to_end(query_id)
        length = len(kept.states)
        found.ids[row], found.texts[row], found.scores[row] = kept.id, kept.text, kept.score
        found.states[row, :length] = kept.states
        found.token_ids[row, :length] = kept.token_ids
        found.mask[row, :length] = True
        found.steps[row] = "cached"
