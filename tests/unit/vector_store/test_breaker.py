"""The circuit breaker opens after a failure, for longer each time, however many look-ups failed together."""

import pytest

from vector_store import breaker
from vector_store.breaker import LONGEST_OPEN_S, SHORTEST_OPEN_S, CircuitBreaker
from vector_store.errors import StoreUnavailable

GONE = StoreUnavailable("gone")


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(breaker.time, "monotonic", lambda: now[0])
    return now


def test_look_ups_that_fail_together_count_as_one_failure(clock):
    tested = CircuitBreaker()
    for _ in range(3):
        tested.failed(GONE)
    assert tested.is_open()
    clock[0] += SHORTEST_OPEN_S
    assert not tested.is_open()


def test_the_breaker_opens_for_longer_each_time_up_to_a_limit_until_a_success(clock):
    tested = CircuitBreaker()
    for _ in range(10):
        tested.failed(GONE)
        clock[0] += LONGEST_OPEN_S
    tested.failed(GONE)
    clock[0] += LONGEST_OPEN_S - 0.1
    assert tested.is_open()
    clock[0] += 0.1
    assert not tested.is_open()
    tested.succeeded()
    tested.failed(GONE)
    clock[0] += SHORTEST_OPEN_S
    assert not tested.is_open()


def test_a_reset_closes_the_breaker_at_once(clock):
    tested = CircuitBreaker()
    tested.failed(GONE)
    assert tested.is_open()
    tested.reset()
    assert not tested.is_open()
