import pytest

from vector_store.server import index_schedule
from vector_store.server.index_schedule import PATIENCE_S, QUIET_S, IndexSchedule


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(index_schedule, "time", clock)
    return clock


@pytest.fixture
def schedule(clock):
    schedule = IndexSchedule()
    assert not schedule.is_due(True, wrote_at=clock.now)
    return schedule


def test_a_build_starts_once_writes_pause(schedule, clock):
    wrote_at = clock.now
    clock.now += QUIET_S - 1
    assert not schedule.is_due(True, wrote_at)
    clock.now += 2
    assert schedule.is_due(True, wrote_at)
    assert not schedule.is_due(False, wrote_at)


def test_constant_writes_delay_a_build_for_a_limited_time(schedule, clock):
    clock.now += PATIENCE_S - 1
    assert not schedule.is_due(True, wrote_at=clock.now)
    clock.now += 2
    assert schedule.is_due(True, wrote_at=clock.now)


def test_a_build_that_somebody_waits_for_starts_at_once(schedule, clock):
    schedule.hurry()
    assert schedule.is_due(True, wrote_at=clock.now)
    schedule.succeeded()
    assert not schedule.is_due(True, wrote_at=clock.now)


def test_after_too_many_writes_a_build_waits_for_a_pause(schedule, clock):
    schedule.failed()
    clock.now += 10 * PATIENCE_S
    assert not schedule.is_due(True, wrote_at=clock.now)
    assert schedule.is_due(True, wrote_at=clock.now - QUIET_S - 1)


def test_after_an_error_a_build_waits_and_the_error_stays_until_no_index_is_wanted(schedule, clock):
    schedule.failed("no room")
    wrote_at = clock.now
    clock.now += PATIENCE_S - 1
    assert not schedule.is_due(True, wrote_at)
    assert schedule.error == "no room"
    clock.now += 2
    assert schedule.is_due(True, wrote_at)
    schedule.is_due(False, wrote_at)
    assert schedule.error == ""
