"""Calls overlap, results keep their order, and items are not read far ahead."""

import threading
import time

import pytest

from vector_store.pipeline import pipelined


def test_results_keep_their_order_while_calls_overlap():
    both = threading.Barrier(2)

    def call(item):
        both.wait(timeout=5)  # breaks unless two are in flight at once
        time.sleep(0.01 * (item % 2))
        return -item

    assert list(pipelined(call, range(8))) == [-item for item in range(8)]


def test_items_are_read_only_for_the_calls_in_flight():
    taken = []

    def items():
        for item in range(10):
            taken.append(item)
            yield item

    results = pipelined(lambda item: item, items(), in_flight=2)
    assert next(results) == 0
    assert taken == [0, 1, 2]
    results.close()


def test_the_first_error_is_raised():
    def call(item):
        if item == 1:
            raise ValueError("one")
        return item

    results = pipelined(call, range(5))
    assert next(results) == 0
    with pytest.raises(ValueError, match="one"):
        list(results)
