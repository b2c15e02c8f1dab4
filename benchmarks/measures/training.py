"""What Ray Train and DeepSpeed cost, and what a second worker on the same cores costs or brings.

Every contender is a process of its own that trains from its start to its end; contenders take turns, and a round's ratio
compares neighbours in time. Nothing is read from a memory here: see `live_references` for that.
"""

import json
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml

from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from jobs.run.session import ray_session
from measures.distilling import BATCH, TOKENS, WINDOW, run_apart, run_job, training_config
from measures.goals import Goal, Part, Rows, median_ratio

PLAIN, RAY = "plain PyTorch loop", "Ray Train + DeepSpeed"
BESIDE_RAY = "plain PyTorch loop beside an idle Ray"
ONE, TWO = "1 worker x 2 threads", "2 workers x 1 thread"
READS_NOTHING = "references.criterion=none"
IDLE_ACTORS = 6
"""What Ray keeps beside the workers of a training: controller, coordinator, cleaner, data sets, synchronisation, a spare."""

OVERHEAD_NOTE = (
    f"Seconds per step: micro-batches of {BATCH} texts of {TOKENS} tokens, the packaged teacher beside a student of the "
    f"default shape, 2 threads. Median over windows of {WINDOW} steps, without the first. Ray: `jobs/distill.py` with its own "
    f"Ray, which logs every {WINDOW} steps. Plain: the same student, teacher, losses, AdamW and threads without either, texts "
    f"in random order. Beside an idle Ray: the plain loop while a Ray with {IDLE_ACTORS} actors runs that do nothing, as many "
    "as Ray Train keeps. Contenders in turns; the goal takes the median over rounds."
)
WORKERS_NOTE = (
    f"`jobs/distill.py` on 2 cores, {2 * BATCH} texts of {TOKENS} tokens per step in micro-batches of {BATCH}: accumulated by "
    "one worker with 2 threads, or one each by two workers with 1 thread, whose gradients gloo adds. Same micro-batches, same "
    "step."
)


def overhead(quick: bool, folder: Path) -> Part:
    """The real job against the plain loop."""
    steps, rounds = (3 * WINDOW, 1) if quick else (10 * WINDOW, 5)
    config = _prepared(folder, steps, ["train.threads_per_worker=2", READS_NOTHING])
    rows, medians = _rounds(
        {
            PLAIN: lambda turn: _plain(config, folder),
            BESIDE_RAY: lambda turn: _plain_beside_ray(config, folder),
            RAY: lambda turn: run_job(config.model_copy(update={"name": f"ray-{turn}"}), folder).seconds,
        },
        rounds,
        BATCH,
    )
    ratio = median_ratio(medians[RAY], medians[PLAIN])
    rows.append({"contender": "Ray over plain", "step_s": ratio})
    rows.append(
        {"contender": "beside an idle Ray over plain", "step_s": median_ratio(medians[BESIDE_RAY], medians[PLAIN])}
    )
    goal = Goal("ray_train_deepspeed_step_over_plain_loop", ratio, 1.1, "<=")
    return Part(rows, [goal], OVERHEAD_NOTE, config.model_dump(mode="json"))


def workers(quick: bool, folder: Path) -> Part:
    """Two workers with one thread each against one with two."""
    steps, rounds = (3 * WINDOW, 1) if quick else (6 * WINDOW, 5)
    config = _prepared(folder, steps, [f"train.global_batch={2 * BATCH}", READS_NOTHING])

    def train(name: str, num_workers: int, threads: int) -> list[float]:
        options = {"num_workers": num_workers, "threads_per_worker": threads}
        update = {"name": name, "train": config.train.model_copy(update=options)}
        return run_job(config.model_copy(update=update), folder).seconds

    rows, medians = _rounds(
        {
            ONE: lambda turn: train(f"one-{turn}", 1, 2),
            TWO: lambda turn: train(f"two-{turn}", 2, 1),
        },
        rounds,
        2 * BATCH,
    )
    rows.append({"contender": "throughput of two over one", "texts_per_s": median_ratio(medians[ONE], medians[TWO])})
    return Part(rows, [], WORKERS_NOTE, config.model_dump(mode="json"))


def _prepared(folder: Path, steps: int, options: list[str]) -> RunConfig:
    os.environ["REFBERT_HOME"] = str(folder)
    config = training_config(folder, "training", steps, options)
    with ray_session():
        prepare(config)
    return config


def _plain(config: RunConfig, folder: Path) -> list[float]:
    file = folder / "plain.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    printed = run_apart([str(Path(__file__).with_name("plain_loop.py")), str(file)], folder)
    return json.loads(printed.splitlines()[-1])


def _plain_beside_ray(config: RunConfig, folder: Path) -> list[float]:
    idle: Any = ray.remote(num_cpus=0)(_Idle)
    with ray_session():
        actors = [idle.remote() for _ in range(IDLE_ACTORS)]
        ray.get([actor.started.remote() for actor in actors])
        return _plain(config, folder)


class _Idle:
    """A process of Ray's that waits for work."""

    def started(self) -> bool:
        return True


def _rounds(
    contenders: Mapping[str, Callable[[int], list[float]]], rounds: int, texts: int
) -> tuple[Rows, dict[str, list[float]]]:
    """Let every contender train once per round, in an order that turns about; a row and the median seconds of each."""
    medians: dict[str, list[float]] = {name: [] for name in contenders}
    rows: Rows = []
    for turn in range(rounds):
        for name in list(contenders) if turn % 2 == 0 else reversed(list(contenders)):
            seconds = contenders[name](turn)
            medians[name].append(statistics.median(seconds))
            rows.append(
                {
                    "contender": name,
                    "round": turn,
                    "step_s": medians[name][-1],
                    "fastest_s": min(seconds),
                    "slowest_s": max(seconds),
                    "texts_per_s": texts / medians[name][-1],
                }
            )
    return rows, medians
