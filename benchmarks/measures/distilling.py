"""What the training benchmarks train: the demo's snippets joined to long texts, the packaged teacher, and a student
of the default shape that reads one reference a text, found by its keywords, unless the options say otherwise.

A step is a micro-batch of 32 texts of 128 tokens, taught by a teacher that runs beside it. Times nothing itself:
`run_job` returns the step times that a job writes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from jobs.config import RunConfig, load_config
from jobs.training.metrics import METRICS
from measures.ingest import long_texts

BATCH, TOKENS = 32, 128
WINDOW = 4
"""Steps whose mean time is one measurement."""

SCRIPT = Path(__file__).parents[2] / "jobs" / "distill.py"


class StepTimes(NamedTuple):
    """Seconds per step, the mean of each window but the first, which warms up; the share of time that data was waited for."""

    seconds: list[float]
    wait_fraction: float


def training_config(folder: Path, name: str, steps: int, options: Sequence[str] = ()) -> RunConfig:
    """A training of so many steps on the long texts of a folder, which are made where they are not there."""
    corpus = folder / "long.jsonl"
    if not corpus.exists():
        folder.mkdir(parents=True, exist_ok=True)
        long_texts(corpus)
    return load_config(
        overrides=[
            f"name={name}",
            f"corpus={{path: {corpus}, long_texts: truncate}}",
            f"teacher.tokens={TOKENS}",
            "student={reference_mode: concat, token_embeddings: learned}",
            "references.criterion=keywords",
            f"train={{steps: {steps}, micro_batch: {BATCH}, global_batch: {BATCH}, log_every: {WINDOW}, save_every: {steps}}}",
            *options,
        ]
    )


def run_job(config: RunConfig, home: Path) -> StepTimes:
    """Train by `jobs/distill.py` in a process of its own, with its own Ray; RuntimeError with its last words where it fails."""
    file = home / f"{config.name}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_apart([str(SCRIPT), str(file)], home)
    directory = home / "runs" / config.name
    lines = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    seconds = [config.train.global_batch / line["train/examples_per_s"] for line in lines]
    made = json.loads((directory / "manifest.json").read_text())["training"]
    return StepTimes(seconds[1:], made["data_wait_fraction"])


def give_equal_priority() -> None:
    """Let Ray's workers run at this process's priority: by default they are nicer by 15, and lose to whatever else runs."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (Ray reads it so)


def run_apart(command: Sequence[str], home: Path) -> str:
    """Run a Python script with this home, outside any cluster, and return what it printed; its progress is kept back."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"REFBERT_HOME": str(home), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
