"""Points and answers are cached within one budget of bytes; the least recently used are evicted first."""

import numpy as np

from vector_store.cache import ANSWER_BYTES, ANSWERS_SHARE, POINT_OVERHEAD_BYTES, NeighbourCache
from vector_store.schema import Choice, StoredPoint

STATES_BYTES = 2 * 4 * 2 + 2 * 4


def point(name: str) -> StoredPoint:
    return StoredPoint(name, np.ones((2, 4), np.float16), np.ones(2, np.int32), None)


def budget(num_points: int) -> int:
    """Bytes for so many points beside the answers' share."""
    return int(num_points * (STATES_BYTES + POINT_OVERHEAD_BYTES) / (1 - ANSWERS_SHARE)) + ANSWER_BYTES


def test_the_least_recently_used_point_is_evicted_first():
    cache = NeighbourCache(budget(2))
    cache.keep_points([point("a"), point("b")])
    assert set(cache.points(["a", "b"])) == {"a", "b"}
    cache.points(["a"])
    cache.keep_points([point("c")])
    assert set(cache.points("abc")) == {"a", "c"}


def test_adding_a_point_again_takes_no_more_of_the_budget():
    cache = NeighbourCache(budget(2))
    cache.keep_points([point("a")])
    for _ in range(50):
        cache.keep_points([point("b")])
    assert set(cache.points("ab")) == {"a", "b"}


def test_a_point_larger_than_the_budget_is_not_cached():
    cache = NeighbourCache(1)
    cache.keep_points([point("a")])
    assert not cache.points(["a"])


def test_the_least_recently_used_answer_is_evicted_first():
    cache = NeighbourCache(int(2 * ANSWER_BYTES / ANSWERS_SHARE))
    cache.keep_answers([("p", [Choice("a", 1.0)]), ("q", [Choice("b", 2.0)])])
    cache.answer("p")
    cache.keep_answers([("r", [Choice("c", 3.0), Choice("d", 2.0)])])
    assert cache.answer("p") == (Choice("a", 1.0),)
    assert not cache.answer("q")
    assert cache.answer("r") == (Choice("c", 3.0), Choice("d", 2.0))
