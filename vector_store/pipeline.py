"""Run several calls at once, such as look-ups, and yield their results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 2
"""One batch is sent or in the server, while another is built or decoded here."""


def pipelined(call: Callable[[Item], Result], items: Iterable[Item], in_flight: int = IN_FLIGHT) -> Iterator[Result]:
    """Yield `call(item)` of each item, in their order, with up to `in_flight` calls running in threads.

    Items are read no further ahead than that. The first error is raised after the calls in flight have ended.
    """
    with ThreadPoolExecutor(in_flight, thread_name_prefix="pipeline") as executor:
        yield from in_order(executor, call, items, in_flight)


def in_order(executor: Executor, call: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield `call(item)` of each item, in their order, with up to `ahead` calls submitted beyond the one that is yielded.

    Whoever stops early cancels what has not begun.
    """
    submitted: deque[Future[Result]] = deque()
    try:
        for item in items:
            submitted.append(executor.submit(call, item))
            if len(submitted) > ahead:
                yield submitted.popleft().result()
        while submitted:
            yield submitted.popleft().result()
    finally:
        for future in submitted:
            future.cancel()
