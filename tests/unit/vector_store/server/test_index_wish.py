import pytest

from vector_store.server import index_wish
from vector_store.server.index_wish import PATIENCE_S, QUIET_S, IndexWish


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(index_wish, "time", clock)
    return clock


@pytest.fixture
def wish(clock):
    wish = IndexWish()
    assert not wish.is_time(True, wrote_at=clock.now)
    return wish


def test_a_build_starts_once_writes_pause(wish, clock):
    wrote_at = clock.now
    clock.now += QUIET_S - 1
    assert not wish.is_time(True, wrote_at)
    clock.now += 2
    assert wish.is_time(True, wrote_at)
    assert not wish.is_time(False, wrote_at)


def test_constant_writes_put_it_off_only_so_long(wish, clock):
    clock.now += PATIENCE_S - 1
    assert not wish.is_time(True, wrote_at=clock.now)
    clock.now += 2
    assert wish.is_time(True, wrote_at=clock.now)


def test_somebody_who_waits_gets_it_at_once(wish, clock):
    wish.hurry()
    assert wish.is_time(True, wrote_at=clock.now)
    wish.succeeded()
    assert not wish.is_time(True, wrote_at=clock.now)


def test_after_too_many_writes_only_a_pause_will_do(wish, clock):
    wish.failed()
    clock.now += 10 * PATIENCE_S
    assert not wish.is_time(True, wrote_at=clock.now)
    assert wish.is_time(True, wrote_at=clock.now - QUIET_S - 1)


def test_after_an_error_it_rests_and_says_why_until_nothing_is_wanted(wish, clock):
    wish.failed("no room")
    wrote_at = clock.now
    clock.now += PATIENCE_S - 1
    assert not wish.is_time(True, wrote_at)
    assert wish.error == "no room"
    clock.now += 2
    assert wish.is_time(True, wrote_at)
    wish.is_time(False, wrote_at)
    assert wish.error == ""
