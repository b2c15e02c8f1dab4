"""The arms of an ablation on one task: what each arm's students read and learn from, their training, and their scores.

A task's teacher and memory are made once and shared by its students, a neighbour plan by the students of one arm. The tables
are made in `report`.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from jobs.config import RunConfig
from jobs.memory.fill import filled_memory
from jobs.memory.neighbour_plan import neighbour_plan
from jobs.memory.store import MemoryAddress
from jobs.run.directory import claim_directory
from jobs.sections import Arm, PhaseConfig
from jobs.tasks.corpus import AUGMENTED, NEAR_DUPLICATE, TaskCorpus, augmented, prepare_task
from jobs.tasks.report import MIXED, MIXED_RANDOM
from jobs.tasks.student import RESULT, Asked, TaskStudentJob, train_and_score
from jobs.tasks.teacher import TaskTeacher, task_teacher, with_answers_to_copies
from refbert.answers import ANSWERS, Mixing, stored_answers
from refbert.config import LossConfig, ReferenceConfig, TaskConfig
from refbert.memory.progress import progress
from refbert.memory.texts import ReferenceTexts, reference_texts
from refbert.passages import Text
from refbert.teacher import load_teacher
from vector_store.client import connect
from vector_store.store import Store

log = logging.getLogger(__name__)

VANILLA: tuple[Arm, ...] = ("vanilla", "vanilla_without_distillation")


def task_name(task: TaskConfig) -> str:
    """Name of a task in the report; a folder's where it is the user's own."""
    return Path(task.path or task.train or "custom").stem if task.name == "custom" else task.name


def ablate_task(config: RunConfig, url: str, starts: dict[str, Path]) -> dict[str, Any]:
    """Make the task's teacher and memory, train and score every arm; returns what the report says of it."""
    assert config.task is not None
    name = task_name(config.task)
    log.info("task %s", name)
    corpus = prepare_task(config.task, config.home)
    teacher = task_teacher(config, corpus)
    loaded, references = load_teacher(teacher.config), config.references
    memory, stored = name, corpus.prepared
    if config.task_stage.augment.copies:
        corpus = augmented(config, corpus, loaded)
        teacher = with_answers_to_copies(config.train, corpus, teacher)
        if config.task_stage.needs_states:  # then copies are stored, and nobody reads them; else answers are enough
            memory, stored = corpus.prepared.directory.name, corpus.prepared
            references = references.model_copy(update={"exclude_splits": (*references.exclude_splits, AUGMENTED)})
    config = config.model_copy(
        update={
            "references": references,
            "teacher": teacher.config,
            "store": config.store.model_copy(update={"collection": f"{memory}-{loaded.fingerprint[:12]}"}),
        }
    )
    address = filled_memory(config, url, stored, loaded)
    texts = reference_texts(loaded, address.manifest, config.references)
    if config.ablate.mixing:
        store_answers(config, address, texts, corpus.texts("train"), teacher.logits["train"])
    jobs = []
    for arm in config.ablate.arms:
        arm_run = arm_config(config, arm)
        plan = (
            neighbour_plan(config.store, arm_run.references, address, corpus.prepared, texts)
            if arm_run.reads_references
            else None
        )
        for seed in range(config.ablate.seeds_of.get(name, config.ablate.seeds)):
            jobs.append(
                TaskStudentJob(
                    arm_run.model_copy(update={"seed": config.seed + seed}),
                    address,
                    corpus,
                    teacher,
                    plan,
                    starts.get("vanilla" if arm in VANILLA else "references"),
                    config.run_directory / "tasks" / name / f"{arm}-{config.seed + seed}",
                    evaluations(config.references, arm, config.ablate.mixing),
                )
            )
    train_students(jobs, name)
    return task_report(corpus, teacher, jobs)


def arm_config(config: RunConfig, arm: Arm) -> RunConfig:
    """Return the run of one arm: what its student reads, and what it learns from."""
    references = config.references.model_copy(
        update={"plan": True, "exclude_splits": (*config.references.exclude_splits, NEAR_DUPLICATE)}
    )
    update: dict[str, Any] = {"references": references}
    if arm == "random":
        update["references"] = references.model_copy(update={"criterion": "random"})
    elif arm == "null":
        update["references"] = references.model_copy(update={"criterion": "none"})
    elif arm in VANILLA:
        update["student"] = config.student.model_copy(update={"reference_mode": "none"})
    if arm == "vanilla_without_distillation":
        update["task_stage"] = config.task_stage.model_copy(
            update={"phases": tuple(map(_by_labels, config.task_stage.phases))}
        )
    return config.model_copy(update=update)


def store_answers(
    config: RunConfig, address: MemoryAddress, texts: ReferenceTexts, rows: Sequence[Text], logits: NDArray[np.float32]
) -> None:
    """Keep the teacher's logits (rows, labels) of the stored rows beside them."""
    answers = stored_answers(logits, address.manifest.encoder_dim)
    with connect(config.store, address.url) as client:
        store = Store(client, address.of(config.store))
        by_id = dict(zip(map(texts.identifier, rows), answers, strict=True))
        stored = store.known(list(by_id)).stored  # some may have been refused
        store.set_residuals(
            ANSWERS, {identifier: answer for identifier, answer in by_id.items() if identifier in stored}
        )


def evaluations(references: ReferenceConfig, arm: Arm, mixing: bool = False) -> dict[str, Asked]:
    """Return how an arm's student is evaluated, by name: its own way first; the nearest's also with its reference swapped.

    With `mixing` the vanilla one's also with its answers mixed.
    """
    nearest, excluded = references.criterion, references.exclude_splits
    guarded = (*excluded, NEAR_DUPLICATE)
    if arm == "vanilla" and mixing:
        return {
            arm: Asked("none", guarded),
            MIXED: Asked("dense", guarded, Mixing()),
            MIXED_RANDOM: Asked("random", guarded, Mixing()),
        }
    if arm != "nearest":
        return {arm: Asked("random" if arm == "random" else "none", guarded)}
    return {
        "nearest": Asked(nearest, guarded),
        "random": Asked("random", guarded),
        "null": Asked("none", guarded),
        "nearest_unguarded": Asked(nearest, excluded),
    }


def train_students(jobs: list[TaskStudentJob], name: str) -> None:
    """Train and score the students that have no result yet, as many at once as the cluster has room for.

    Raises InputError where another config has trained in a student's directory.
    """
    for job in jobs:
        claim_directory(job.config, job.directory)
    gpus = jobs[0].config.train.gpus_per_worker
    work: Any = ray.remote(num_cpus=1, num_gpus=gpus)(train_and_score)
    missing = [job for job in jobs if not (job.directory / RESULT).exists()]
    running = [work.remote(job) for job in missing]
    with progress(name, len(jobs), "student") as update:
        update(len(jobs) - len(missing))
        for done in _as_finished(running):
            ray.get(done)
            update(1)


def task_report(corpus: TaskCorpus, teacher: TaskTeacher, jobs: list[TaskStudentJob]) -> dict[str, Any]:
    """Gather the scores of one task by arm and seed, of its teacher, and what the leak guard found."""
    arms: dict[str, dict[int, Any]] = {}
    for job in jobs:
        arm = job.directory.name.rpartition("-")[0]
        arms.setdefault(arm, {})[job.config.seed] = json.loads((job.directory / RESULT).read_text())
    data = corpus.data
    return {
        "metrics": data.task.metrics,
        "official": data.official,
        "note": data.note,
        "train": corpus.num_labelled,
        "copies": len(data.split("train")) - corpus.num_labelled,
        "dev": {split: len(data.split(split)) for split in data.dev_splits},
        "near_duplicates": {
            "train": int(corpus.leaked.sum()),
            "dev": {split: int(rows.sum()) for split, rows in corpus.repeated.items()},
        },
        "teacher": {"scores": teacher.scores, "seconds": teacher.seconds},
        "arms": arms,
    }


def _by_labels(phase: PhaseConfig) -> PhaseConfig:
    """Take the same epochs at the same rate, but learn the labels only."""
    nothing = dict.fromkeys(("hidden", "embedding", "relation", "contrastive", "prediction"), 0.0)
    return phase.model_copy(update={"loss": LossConfig(label=1.0, **nothing)})


def _as_finished(running: list[Any]) -> Iterator[Any]:
    while running:
        done, running = ray.wait(running, num_returns=1)
        yield from done
