"""A dead store rests: longer each time, however many look-ups were in flight when it failed."""

import pytest

from vector_store import breaker
from vector_store.breaker import LONGEST_REST_S, SHORTEST_REST_S, Breaker
from vector_store.errors import StoreUnavailable

GONE = StoreUnavailable("gone")


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(breaker.time, "monotonic", lambda: now[0])
    return now


def test_look_ups_that_fail_together_count_as_one_failure(clock):
    tested = Breaker()
    for _ in range(3):
        tested.failed(GONE)
    assert not tested.lets_through()
    clock[0] += SHORTEST_REST_S
    assert tested.lets_through()


def test_rests_grow_up_to_the_longest_and_shrink_after_a_success(clock):
    tested = Breaker()
    for _ in range(10):
        tested.failed(GONE)
        clock[0] += LONGEST_REST_S
    tested.failed(GONE)
    clock[0] += LONGEST_REST_S - 0.1
    assert not tested.lets_through()
    clock[0] += 0.1
    assert tested.lets_through()
    tested.succeeded()
    tested.failed(GONE)
    clock[0] += SHORTEST_REST_S
    assert tested.lets_through()


def test_a_store_that_somebody_saw_answer_is_asked_at_once(clock):
    tested = Breaker()
    tested.failed(GONE)
    assert not tested.lets_through()
    tested.reset()
    assert tested.lets_through()
