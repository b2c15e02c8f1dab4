"""What a worker process sets up before it runs a model: quiet libraries, its share of the cores, its device.

Without train.threads_per_worker a training follows what other processes leave of its share, looking every few seconds.
"""

import logging
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""How often a worker looks at what others leave it."""


def per_node(workers: int) -> int:
    """How many of so many workers share a node, where they are spread evenly."""
    import ray  # here: `--show` waits for no Ray

    return math.ceil(workers / max(1, sum(node["Alive"] for node in ray.nodes())))


def set_up_worker(workers_per_node: int, num_gpus: float, threads: int | None = None) -> torch.device:
    """Quiet the libraries, take this worker's share of the node's CPU threads, and return its device."""
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Ray sets OMP_NUM_THREADS to the CPUs it reserved, which are bookkeeping here: one per worker.
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // workers_per_node))
    return torch.device("cuda" if num_gpus else "cpu")


class ThreadShare:
    """How many threads this worker computes with: its share of the node's cores, less what other processes use of it.

    The threads of one operation wait for each other: one that finds no core makes all of them wait.
    """

    def __init__(self, workers_per_node: int, fixed: int | None = None, cores: int | None = None) -> None:
        self._cores = cores or os.cpu_count() or 1
        self._workers = workers_per_node
        self._is_fixed = fixed is not None
        self.threads = fixed or max(1, self._cores // workers_per_node)
        self._seen, self._seen_s = processor_seconds(), time.monotonic()

    def follow(self) -> None:
        """Set the threads to what was free since the last look, and say so where they change; looks every few seconds."""
        since_s = time.monotonic() - self._seen_s
        if self._is_fixed or since_s < LOOK_S:
            return
        before, self._seen, self._seen_s = self._seen, processor_seconds(), time.monotonic()
        busy = used_between(before, self._seen) / since_s
        free = max(1, min(self._cores // self._workers, round((self._cores - busy) / self._workers)))
        if free != self.threads:
            log.info(
                "other processes use %.1f of %d cores: each worker computes with %d threads, not %d",
                busy, self._cores, free, self.threads,
            )  # fmt: skip
            self.threads = free
            torch.set_num_threads(free)


def used_between(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Return the processor seconds that processes used between two of `processor_seconds`."""
    return sum(max(0.0, seconds - before.get(pid, 0.0)) for pid, seconds in after.items())


def processor_seconds() -> dict[int, float]:
    """Return the processor time, by process id, of this machine's processes outside this one's process group.

    Ray's workers and their raylet are in one group, with the job where that has started Ray.
    """
    tick_s, ours, found = 1 / os.sysconf("SC_CLK_TCK"), os.getpgrp(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) != ours:
            found[int(entry.name)] = (int(fields[11]) + int(fields[12])) * tick_s
    return found


def quiet_libraries() -> None:
    """Silence noise: progress bars over one file, advice about a library's next version, what faiss tries at its import."""
    logging.getLogger("faiss").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
