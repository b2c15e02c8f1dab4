"""A run's directory: claimed by what its student depends on, resumable under the same, complete when manifest.json is there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from jobs.config import RunConfig, load_config
from refbert.atomic import write_whole
from refbert.errors import InputError

IDENTITY = ("seed", "corpus", "teacher", "references", "student", "loss")
IDENTITY_OF_TRAINING = {
    "steps", "micro_batch", "global_batch", "learning_rate", "warmup_fraction", "weight_decay", "clip", "targets",
    "precision", "start",
}  # fmt: skip
"""What the trained student depends on: changing it under the same name is refused. The rest may change between submissions:
the number of workers, what they shard and how they wait. `micro_batch` may not: in-batch losses are over its rows."""


IDENTITY_OF_TASK = ("task", "task_stage")
"""What a labelled task's student depends on beside that."""


def training_identity(config: RunConfig, of_task: bool = False) -> dict[str, Any]:
    """Return the options, by name, that this run's student depends on, or a task's student of this run."""
    identity = config.model_dump(mode="json", include={*IDENTITY, *(IDENTITY_OF_TASK if of_task else ())})
    del identity["references"]["plan"]  # how neighbours are looked up, not which
    if config.needs_memory:  # under whichever address: jobs/memory/store.py compares the memory itself
        identity["store.collection"] = config.store.collection
    train = config.train.model_dump(mode="json", include=IDENTITY_OF_TRAINING)
    return identity | {f"train.{key}": value for key, value in train.items()}


def claim_directory(config: RunConfig, student: Path | None = None) -> None:
    """Make the run's directory, or that of a task's `student`, and save its config; refuse one that another has trained in."""
    directory, of_task = student or config.run_directory, student is not None
    directory.mkdir(parents=True, exist_ok=True)
    saved = directory / "config.yaml"
    if saved.exists():
        before, now = (training_identity(each, of_task) for each in (load_config(saved), config))
        differing = [key for key in before if before[key] != now.get(key)]
        if differing:
            raise InputError(
                f"{directory} holds a run with another {', '.join(differing)}; give another name=..., or delete it"
            )
    write_whole(saved, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def is_complete(config: RunConfig) -> bool:
    """Whether the run has been trained to its end. Refuses a directory that another configuration has trained in."""
    manifest = config.run_directory / "manifest.json"
    if not manifest.exists():
        return False
    claim_directory(config)
    return True


def require_trained(config: RunConfig) -> None:
    """Raise InputError where the run has not been trained to its end."""
    if not (config.run_directory / "manifest.json").exists():
        raise InputError(
            f"{config.run_directory} holds no complete run; train one first: `python jobs/distill.py name={config.name}`"
        )


def write_manifest(config: RunConfig, training: dict[str, float]) -> None:
    """Write manifest.json: the run is complete, and this is what training it took."""
    manifest = {"name": config.name, "student": "student", "training": training}
    write_whole(config.run_directory / "manifest.json", json.dumps(manifest, indent=2))


@contextmanager
def training_lock(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, or raise InputError: two trainings under one name would mix their checkpoints."""
    lock = FileLock(directory / "training.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another job is training in {directory}; wait for it, or give another name=...") from None
    try:
        yield
    finally:
        lock.release()
