"""Whether look-ups hide behind the step: the same student trained on live look-ups, and on the same references from RAM.

Both contenders train one DeepSpeed engine in one process, in blocks of two steps that take turns, on the same micro-batches:
over blocks of twelve, the machine's own drift was as large as what is asked. Live: the jobs' own stream over gRPC from an
embedded server, prefetching in its threads, with the default cache. RAM: finished micro-batches, tokens and references in
tensors. No Ray runs meanwhile, but in the last row, which is a whole job.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cluster.session import ray_session
from jobs import distill
from jobs.config import RunConfig
from jobs.distill import DistillJob, targets_of
from jobs.engine import build_engine
from jobs.ingest import fill_memory
from jobs.memory import MemoryAddress, manifest_of, running_store
from jobs.prepared import PreparedCorpus, prepare
from jobs.stream import DistillStream
from measures.collection import process_cpu_s, server_pid
from measures.distilling import BATCH, TOKENS, run_job, training_config
from measures.goals import Goal, Part, Rows
from refbert.distillation import DistillBatch, Distiller, new_student
from refbert.teacher import Teacher, load_teacher
from vector_store.server.process import embedded_server

LIVE, RAM = "live", "RAM"
PHASES = ("data", "teacher", "forward", "backward", "optimizer")
IDLE_S = 0.5
"""Between blocks, so that no look-up of a live block runs on in the other's time."""

NOTE = (
    f"One engine, micro-batches of {BATCH} texts of {TOKENS} tokens, one reference each, teacher targets; milliseconds per "
    "step, medians over steps. Phases: data is what `next` waited; teacher, forward, backward, optimizer. CPU: of this process "
    "with its look-up threads, and of the embedded server, mean per step. The goal on steps takes the median over rounds of "
    "the blocks' ratio; the job's row is `jobs/distill.py`, whose own `data_wait_fraction` is the other goal."
)


class Timed:
    """One engine's steps, by phase, and the CPU they took here and in the server."""

    def __init__(self, engine: Any, teacher: Teacher, config: RunConfig, pid: int) -> None:
        self.engine, self.teacher, self.config, self.pid = engine, teacher, config, pid
        self.forget()

    def forget(self) -> None:
        """Start to count anew."""
        self.phases: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in (LIVE, RAM)}
        self.blocks: dict[str, list[float]] = {LIVE: [], RAM: []}
        self.cpu_s: dict[str, list[float]] = {LIVE: [0.0, 0.0], RAM: [0.0, 0.0]}

    def block(self, name: str, batches: Iterator[DistillBatch], steps: int) -> None:
        """Train so many steps."""
        time.sleep(IDLE_S)
        own_s, server_s, started_s = time.process_time(), process_cpu_s(self.pid), time.perf_counter()
        for _ in range(steps):
            self._step(name, batches)
        self.blocks[name].append((time.perf_counter() - started_s) / steps)
        self.cpu_s[name][0] += time.process_time() - own_s
        self.cpu_s[name][1] += process_cpu_s(self.pid) - server_s

    def _step(self, name: str, batches: Iterator[DistillBatch]) -> None:
        times = [time.perf_counter()]

        def passed(result: Any) -> Any:
            times.append(time.perf_counter())
            return result

        batch = passed(next(batches))
        targets = passed(targets_of(batch, self.teacher, self.config))
        loss, _ = passed(self.engine(batch, targets))
        passed(self.engine.backward(loss))
        passed(self.engine.step())
        for phase, (before, after) in zip(PHASES, pairwise(times), strict=True):
            self.phases[name][phase].append(after - before)

    def row(self, name: str, steps: int) -> dict[str, Any]:
        """The contender's figures per step."""
        own_s, server_s = self.cpu_s[name]
        return {
            "references": name,
            "step_ms": 1000 * statistics.median(self.blocks[name]),
            **{f"{phase}_ms": 1000 * statistics.median(self.phases[name][phase]) for phase in PHASES},
            "own_cpu_ms": 1000 * own_s / steps,
            "server_cpu_ms": 1000 * server_s / steps,
        }


def measure(quick: bool, folder: Path) -> Part:
    """Fill a memory, let both take turns, then run the whole job."""
    steps, rounds = 2, 3 if quick else 48
    os.environ["REFBERT_HOME"] = str(folder)
    options = [f"corpus.max_texts={200 if quick else 3000}"]
    config = training_config(folder, "live", 12 if quick else 60, options)
    teacher = load_teacher(config.teacher)
    with ray_session():
        corpus = prepare(config)
        with running_store(config) as url:
            fill_memory(config, url, corpus, teacher)
    timed, wait_fraction = in_blocks(config, corpus, teacher, steps, rounds)
    rows: Rows = [timed.row(name, steps * rounds) for name in (RAM, LIVE)]
    ratio = statistics.median(live / ram for live, ram in zip(timed.blocks[LIVE], timed.blocks[RAM], strict=True))
    cpu_ratio = sum(timed.cpu_s[LIVE]) / sum(timed.cpu_s[RAM])
    job = run_job(config, folder)
    rows += [
        {"references": "live over RAM", "step_ms": ratio, "own_cpu_ms": cpu_ratio},
        {
            "references": "live, whole job",
            "step_ms": 1000 * statistics.median(job.seconds),
            "wait_fraction": job.wait_fraction,
        },
    ]
    rows[1]["wait_fraction"] = wait_fraction
    goals = [
        Goal("live_references_step_over_ram", ratio, 1.05, "<="),
        Goal("data_wait_fraction", job.wait_fraction, 0.02, "<="),
    ]
    return Part(rows, goals, NOTE, config.model_dump(mode="json"))


def in_blocks(
    config: RunConfig, corpus: PreparedCorpus, teacher: Teacher, steps: int, rounds: int
) -> tuple[Timed, float]:
    """Train blocks in turns after one of each to warm up; also the share of the live blocks that data was waited for."""
    torch.set_num_threads(os.cpu_count() or 1)
    with embedded_server(config.store_directory) as url, ExitStack() as stack:
        live = stack.enter_context(opened_stream(config, url, corpus, teacher))
        copied = stack.enter_context(opened_stream(config, url, corpus, teacher))
        with alone():
            distiller = Distiller(new_student(config.student, teacher, config.seed), config.loss)
            timed = Timed(build_engine(distiller, config), teacher, config, server_pid(config.store_directory))
            waited_s = 0.0
            for turn in range(-1, rounds):
                if turn == 0:
                    timed.forget()
                    waited_s = -live.wait_s
                first = (turn + 1) * steps
                ready = iter([copied.make(number) for number in range(first, first + steps)])
                for name in (LIVE, RAM) if turn % 2 == 0 else (RAM, LIVE):
                    timed.block(name, live if name == LIVE else ready, steps)
            waited_s += live.wait_s
    return timed, waited_s / (steps * sum(timed.blocks[LIVE]))


def opened_stream(
    config: RunConfig, url: str, corpus: PreparedCorpus, teacher: Teacher
) -> AbstractContextManager[DistillStream]:
    """The job's own stream of a single worker, with a client and a cache of its own."""
    address = MemoryAddress(url, manifest_of(teacher, config.references))
    job = DistillJob(config, address, corpus, None, config.run_directory)
    return distill.opened_stream(job, teacher, rank=0, world_size=1)


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process only, which DeepSpeed asks for."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
