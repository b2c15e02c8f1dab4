"""Batches at once: in order, on threads of their own, and nothing left behind."""

import threading

import pytest
import torch

from refbert.memory.parallel import MOST_AT_ONCE, at_once, in_parallel


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_the_order_of_the_items_from_as_many_threads_as_were_asked_for():
    both_run = threading.Barrier(2)

    def call(number):
        both_run.wait(10)  # breaks, if a second thread does not come
        return number, threading.get_ident()

    found = list(in_parallel(call, range(20), 2))
    assert [number for number, _ in found] == list(range(20))
    assert len({thread for _, thread in found}) == 2
    assert threading.get_ident() not in {thread for _, thread in found}


@pytest.mark.usefixtures("four_threads")
def test_torchs_threads_are_shared_between_the_calls_and_the_caller_keeps_its_own():
    assert set(in_parallel(lambda _: torch.get_num_threads(), range(6), 2)) == {2}
    assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


def test_the_first_error_is_raised_and_no_item_is_begun_after_it():
    begun = []

    def call(number):
        begun.append(number)
        if number == 3:
            raise ValueError("of the fourth")
        return number

    found = in_parallel(call, range(1000), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="of the fourth"):
        next(found)
    assert len(begun) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("forward")]


def test_whoever_stops_early_leaves_no_thread_behind():
    found = in_parallel(lambda number: number, range(1000), 2)
    next(found)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("forward")]


@pytest.mark.usefixtures("four_threads")
def test_a_cpu_runs_a_batch_for_each_thread_another_device_one():
    assert [at_once(batches, torch.device("cpu")) for batches in (0, 1, 3, 100)] == [1, 1, 3, 4]
    assert at_once(100, torch.device("meta")) == 1
    torch.set_num_threads(MOST_AT_ONCE + 8)
    assert at_once(100, torch.device("cpu")) == MOST_AT_ONCE
