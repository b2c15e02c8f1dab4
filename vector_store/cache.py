"""What a process keeps of its look-ups: the points that are chosen often, and what each query was last answered.

A point's id is a hash of who encoded which text, so a kept point is never stale: only deleting it, or writing other states
under the same id, makes it differ from the store's. Knows nothing of how points are chosen or fetched.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from vector_store.schema import Choice, StoredPoint

POINT_OVERHEAD_BYTES = 700
"""Python's objects around one point: two arrays, two bytes, the id, the tuple, the slot of the dictionary."""

ANSWER_BYTES = 400
"""One remembered answer: two ids, a float, two tuples and the slot of the dictionary (372 by tracemalloc)."""

CHOICE_BYTES = 175
"""Each further choice of an answer: an id, a float and a tuple."""

ANSWERS_SHARE = 0.1
"""Part of the budget that goes to remembered answers; a point takes tens of times as much as an answer."""


class NeighbourCache:
    """Points by id and the last answer by query id, each least recently used out first, in one budget of bytes.

    An answer of up to `count` choices points at its points: of no use any more where they have been dropped. Threads may
    share it.
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

    def answer(self, query_id: str) -> Sequence[Choice]:
        """What this query was last answered; nothing where that is not known."""
        with self._lock:
            if choices := self._answers.get(query_id, ()):
                self._answers.move_to_end(query_id)
            return choices

    def keep_answers(self, answers: Iterable[tuple[str, Sequence[Choice]]]) -> None:
        """Remember answers by query id, and forget the longest unused where there are too many."""
        with self._lock:
            for query_id, choices in answers:
                self._answers[query_id] = tuple(choices)
                self._answers.move_to_end(query_id)
            while len(self._answers) > self._most_answers:
                self._answers.popitem(last=False)


def _num_bytes(point: StoredPoint) -> int:
    return point.states.nbytes + point.token_ids.nbytes + len("".join(point.text or "")) + POINT_OVERHEAD_BYTES
