"""What a process keeps of its look-ups: the points that are chosen often, and what each query was last answered.

A point's id is a hash of who encoded which text, so a kept point is never stale: only deleting it, or writing other states
under the same id, makes it differ from the store's. Knows nothing of how points are chosen or fetched.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable

from vector_store.schema import Choice, StoredPoint

POINT_OVERHEAD_BYTES = 700
"""Python's objects around one point: two arrays, two bytes, the id, the tuple, the slot of the dictionary."""

ANSWER_BYTES = 400
"""One remembered answer: two ids, a float, a tuple and the slot of the dictionary."""

ANSWERS_SHARE = 0.1
"""Part of the budget that goes to remembered answers; a point takes tens of times as much as an answer."""


class NeighbourCache:
    """Points by id and the last answer by query id, each least recently used out first, in one budget of bytes.

    An answer points at its point: where that has been dropped, the answer is of no use any more. Threads may share it.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._most_answers = int(ANSWERS_SHARE * budget_bytes / ANSWER_BYTES)
        self._points_budget_bytes = budget_bytes - self._most_answers * ANSWER_BYTES
        self._points: OrderedDict[str, StoredPoint] = OrderedDict()
        self._answers: OrderedDict[str, Choice] = OrderedDict()
        self._points_bytes = 0
        self._lock = threading.Lock()

    def points(self, ids: Iterable[str]) -> dict[str, StoredPoint]:
        """Those of the points that are kept, by id."""
        found = {}
        with self._lock:
            for point_id in ids:
                if (point := self._points.get(point_id)) is not None:
                    self._points.move_to_end(point_id)
                    found[point_id] = point
        return found

    def keep_points(self, points: Iterable[StoredPoint]) -> None:
        """Keep points, and drop the longest unused where they do not all fit."""
        with self._lock:
            for point in points:
                replaced = self._points.pop(point.id, None)
                self._points[point.id] = point
                self._points_bytes += _num_bytes(point) - (_num_bytes(replaced) if replaced else 0)
            while self._points_bytes > self._points_budget_bytes:
                self._points_bytes -= _num_bytes(self._points.popitem(last=False)[1])

    def answer(self, query_id: str) -> Choice | None:
        """What this query was last answered."""
        with self._lock:
            if (choice := self._answers.get(query_id)) is not None:
                self._answers.move_to_end(query_id)
            return choice

    def keep_answers(self, answers: Iterable[tuple[str, Choice]]) -> None:
        """Remember answers by query id, and forget the longest unused where there are too many."""
        with self._lock:
            for query_id, choice in answers:
                self._answers[query_id] = choice
                self._answers.move_to_end(query_id)
            while len(self._answers) > self._most_answers:
                self._answers.popitem(last=False)


def _num_bytes(point: StoredPoint) -> int:
    return point.states.nbytes + point.token_ids.nbytes + len("".join(point.text or "")) + POINT_OVERHEAD_BYTES
