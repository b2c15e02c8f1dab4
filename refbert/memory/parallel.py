"""Run several batches at once on a CPU, each with its own share of torch's threads; on a GPU one after another.

The operations of a small model are too short for several cores: its threads wait for each other at every one of them, and as
long as the slowest where the machine has other work. A batch for each core, of up to 8 at once, has nothing to wait for.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from vector_store.pipeline import in_order

MOST_AT_ONCE = 8
"""Python itself is on one core at a time, for a tenth of a small model's forward."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(num_batches: int, device: torch.device) -> int:
    """Return how many batches run at once on this device: on a CPU one for each of torch's threads, else 1."""
    if device.type != "cpu":
        return 1
    return max(1, min(num_batches, torch.get_num_threads(), MOST_AT_ONCE))


def in_parallel(call: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Yield `call(item)` of each item, in their order, from `workers` threads that share torch's threads between them.

    Up to twice as many items as `workers` are taken ahead of the one that is yielded. The first error is raised after the calls
    that have begun have ended.
    """
    with _threads(workers) as executor:
        yield from in_order(executor, call, items, 2 * workers)


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool whose threads have torch's threads among them."""
    with _SETTING:
        threads = torch.get_num_threads()
        started = threading.Barrier(workers)
        executor = ThreadPoolExecutor(workers, "forward", initializer=_set_threads, initargs=(threads // workers,))
        for begun in [executor.submit(started.wait) for _ in range(workers)]:
            begun.result()
        # It sets the calling thread's number, and that of threads to come: the pool's keep their own.
        torch.set_num_threads(threads)
    with executor:
        yield executor


def _set_threads(threads: int) -> None:
    torch.set_num_threads(max(1, threads))
    torch.get_num_threads()  # a thread takes the number on its first use of it, whatever was set in it before


_SETTING = threading.Lock()
