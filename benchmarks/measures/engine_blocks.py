"""Contenders that feed one DeepSpeed engine in one process, in blocks of a few steps that take turns; no Ray meanwhile.

Over blocks of twelve steps this machine's own drift was as large as what is asked of them.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any

import torch

from jobs.config import RunConfig
from jobs.corpus.prepared import PreparedCorpus
from jobs.memory.store import MemoryAddress
from jobs.training.engine import build_engine
from jobs.training.loop import DistillJob, open_stream, teacher_targets
from jobs.training.stream import BatchAndTargets, DistillStream
from measures.collection import process_cpu_s, server_pid
from refbert.distillation import Distiller, new_student
from refbert.memory.manifest import manifest_of
from refbert.teacher import Teacher

PHASES = ("data", "teacher", "forward", "backward", "optimizer")
IDLE_S = 0.5
"""Between blocks, so that no look-up of a live block runs on in the other's time."""

STEP_NOTE = (
    "Milliseconds per step, medians over steps. Phases: data is what `next` waited; teacher, forward, backward, optimizer. "
    "CPU: of this process with its look-up threads, and of the embedded server, mean per step."
)

Feed = Callable[[int], Iterator[BatchAndTargets]]
"""From the number of a block's first micro-batch to the block's micro-batches; called before the block is timed."""


class EngineBlocks:
    """One engine's steps, by contender and phase, and the CPU they took here and in the server."""

    def __init__(self, engine: Any, teacher: Teacher, config: RunConfig, names: Sequence[str]) -> None:
        self.engine, self.teacher, self.config, self.names = engine, teacher, config, names
        self.pid = server_pid(config.store_directory)
        self.made = 0
        self._forget()

    def _forget(self) -> None:
        self.phases: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in self.names}
        self.blocks: dict[str, list[float]] = {name: [] for name in self.names}
        self.cpu_s: dict[str, list[float]] = {name: [0.0, 0.0] for name in self.names}

    def run(self, feeds: Mapping[str, Feed], steps: int, rounds: int) -> None:
        """Let the contenders take turns on the same micro-batches; what was timed before is forgotten: it warmed up."""
        self._forget()
        for turn in range(rounds):
            batches = {name: feed(self.made) for name, feed in feeds.items()}
            for name in self.names if turn % 2 == 0 else reversed(self.names):
                self._block(name, batches[name], steps)
            self.made += steps

    def row(self, name: str) -> dict[str, Any]:
        """The contender's figures per step."""
        own_s, server_s = self.cpu_s[name]
        steps = len(self.phases[name][PHASES[0]])
        return {
            "step_ms": 1000 * statistics.median(self.blocks[name]),
            **{f"{phase}_ms": 1000 * statistics.median(self.phases[name][phase]) for phase in PHASES},
            "own_cpu_ms": 1000 * own_s / steps,
            "server_cpu_ms": 1000 * server_s / steps,
        }

    def _block(self, name: str, batches: Iterator[BatchAndTargets], steps: int) -> None:
        time.sleep(IDLE_S)
        own_s, server_s, started_s = time.process_time(), process_cpu_s(self.pid), time.perf_counter()
        for _ in range(steps):
            self._step(name, batches)
        self.blocks[name].append((time.perf_counter() - started_s) / steps)
        self.cpu_s[name][0] += time.process_time() - own_s
        self.cpu_s[name][1] += process_cpu_s(self.pid) - server_s

    def _step(self, name: str, batches: Iterator[BatchAndTargets]) -> None:
        times = [time.perf_counter()]

        def passed(result: Any) -> Any:
            times.append(time.perf_counter())
            return result

        batch, stored = passed(next(batches))
        loss_config, layers = self.config.loss, self.config.student.num_hidden_layers
        targets = passed(stored or teacher_targets(self.teacher, batch, loss_config, layers))
        loss, _ = passed(self.engine(batch, targets))
        passed(self.engine.backward(loss))
        passed(self.engine.step())
        for phase, (before, after) in zip(PHASES, pairwise(times), strict=True):
            self.phases[name][phase].append(after - before)


def engine_blocks(config: RunConfig, teacher: Teacher, names: Sequence[str]) -> EngineBlocks:
    """The config's student under DeepSpeed, within `alone`; the config's embedded server runs already."""
    torch.set_num_threads(os.cpu_count() or 1)
    distiller = Distiller(new_student(config.student, teacher, config.seed), config.loss)
    return EngineBlocks(build_engine(distiller, config.train), teacher, config, names)


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process only, which DeepSpeed asks for; it takes no second one."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def single_worker_stream(
    config: RunConfig, url: str, corpus: PreparedCorpus, teacher: Teacher
) -> AbstractContextManager[DistillStream]:
    """The job's own stream of a single worker, with a client and a cache of its own."""
    address = MemoryAddress(url, manifest_of(teacher, config.references))
    job = DistillJob(config, address, corpus, None, config.run_directory)
    return open_stream(job, teacher, rank=0, world_size=1)
