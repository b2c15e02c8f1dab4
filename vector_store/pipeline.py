"""Run several calls to the store at once, and return their results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(executor.submit(call, item))
                if len(ahead) > in_flight:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
