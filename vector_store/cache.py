"""Cache of a retriever's look-ups: the points that were chosen last, and the last choices of each query, while there is room.

A point's id is a hash of encoder and text, so a cached point differs from the store's only after a deletion, or where other
states or residuals were written under the same id. Knows nothing of how points are chosen or fetched.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from vector_store.schema import Choice, StoredPoint

POINT_OVERHEAD_BYTES = 700
"""Python's objects for one point: two arrays, two bytes objects, the id, the tuple, the dictionary's entry."""

ANSWER_BYTES = 400
"""One cached answer: two ids, a float, two tuples and the dictionary's entry (372 by tracemalloc)."""

CHOICE_BYTES = 175
"""Each further choice of an answer: an id, a float and a tuple."""

ANSWERS_SHARE = 0.1
"""Share of the budget for answers; a point takes tens of times as many bytes as an answer."""


class NeighbourCache:
    """Two least-recently-used caches in one budget of bytes: points by id, and the last answer by query id.

    An answer is up to `count` choices, which name points; it is useless once those have been evicted. Threads may share it.
    """

    def __init__(self, budget_bytes: int, count: int = 1) -> None:
        answer_bytes = ANSWER_BYTES + (count - 1) * CHOICE_BYTES
        self._most_answers = int(ANSWERS_SHARE * budget_bytes / answer_bytes)
        self._points_budget_bytes = budget_bytes - self._most_answers * answer_bytes
        self._points: OrderedDict[str, StoredPoint] = OrderedDict()
        self._answers: OrderedDict[str, tuple[Choice, ...]] = OrderedDict()
        self._points_bytes = 0
        self._lock = threading.Lock()

    def points(self, ids: Iterable[str]) -> dict[str, StoredPoint]:
        """The cached ones of these points, by id."""
        found = {}
        with self._lock:
            for point_id in ids:
                if (point := self._points.get(point_id)) is not None:
                    self._points.move_to_end(point_id)
                    found[point_id] = point
        return found

    def keep_points(self, points: Iterable[StoredPoint]) -> None:
        """Add points; the least recently used are evicted where not all fit."""
        with self._lock:
            for point in points:
                replaced = self._points.pop(point.id, None)
                self._points[point.id] = point
                self._points_bytes += _num_bytes(point) - (_num_bytes(replaced) if replaced else 0)
            while self._points_bytes > self._points_budget_bytes:
                self._points_bytes -= _num_bytes(self._points.popitem(last=False)[1])

    def answer(self, query_id: str) -> Sequence[Choice]:
        """The last answer of this query; empty where there is none."""
        with self._lock:
            if choices := self._answers.get(query_id, ()):
                self._answers.move_to_end(query_id)
            return choices

    def keep_answers(self, answers: Iterable[tuple[str, Sequence[Choice]]]) -> None:
        """Add answers by query id; the least recently used are evicted where there are too many."""
        with self._lock:
            for query_id, choices in answers:
                self._answers[query_id] = tuple(choices)
                self._answers.move_to_end(query_id)
            while len(self._answers) > self._most_answers:
                self._answers.popitem(last=False)


def _num_bytes(point: StoredPoint) -> int:
    arrays = (point.states, point.token_ids, point.vector, point.residual, point.key)
    in_arrays = sum(array.nbytes for array in arrays if array is not None)
    return in_arrays + len("".join(point.text or "")) + POINT_OVERHEAD_BYTES
