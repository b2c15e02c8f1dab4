"""One student of a labelled task: trained phase by phase, reading the task's memory where its arm does, then scored.

Runs on one worker of the cluster: tasks are small, and what is spread is the students. References and targets come from the
memory, the teacher's logits from `teacher`. The teacher is loaded here, for its tokenizer and its weights, and never run. A
killed training resumes after its last epoch.
"""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from jobs.config import RunConfig
from jobs.memory.neighbour_plan import NeighbourPlan
from jobs.memory.store import MemoryAddress, patient_store
from jobs.memory.student_memory import student_memory_options
from jobs.run.worker import per_node, set_up_worker
from jobs.sections import PhaseConfig
from jobs.tasks.corpus import TaskCorpus
from jobs.tasks.teacher import TaskTeacher, predictions
from jobs.training.stream import DistillStream
from refbert.answers import ANSWERS, Mixing
from refbert.atomic import whole_file, write_whole
from refbert.batch import moved
from refbert.distillation import Distiller, new_student
from refbert.fine_tuning import train_epochs
from refbert.folder import save_student, start_from
from refbert.memory.reader import Reader
from refbert.memory.retrieval import open_retriever
from refbert.memory.texts import ReferenceTexts, reference_texts
from refbert.passages import Text, text_length
from refbert.precision import autocasts
from refbert.sampler import BucketSampler
from refbert.scores import score
from refbert.student import RefBertForSequenceClassification
from refbert.teacher import Teacher, load_teacher
from vector_store.client import Client, connect
from vector_store.schema import STATES_ALONE, Parts
from vector_store.store import Store

log = logging.getLogger(__name__)

RESULT = "result.json"


class Asked(NamedTuple):
    """A way in which a trained student is asked: by which criterion it reads references, which splits are left out, and how
    its answers are mixed with the references', if they are."""

    criterion: str
    left_out: tuple[str, ...]
    mixing: Mixing | None = None


@dataclass(frozen=True)
class TaskStudentJob:
    """What one worker needs for one student. `start` is the folder of the general stage's student, None for a new one.

    `evaluations` names the ways in which the trained student is asked.
    """

    config: RunConfig
    address: MemoryAddress
    corpus: TaskCorpus
    teacher: TaskTeacher
    plan: Path | None
    start: Path | None
    directory: Path
    evaluations: dict[str, Asked]


def train_and_score(job: TaskStudentJob) -> dict[str, Any]:
    """Train the student and score it on the development splits; writes student/ and, last, result.json."""
    started_s = time.monotonic()
    config = job.config
    device = set_up_worker(
        students_per_node(config.train.gpus_per_worker), config.train.gpus_per_worker, config.train.threads_per_worker
    )
    teacher = load_teacher(job.teacher.config, device)
    student: Any = starting_student(job, teacher)
    student.to(device)
    with ExitStack() as stack:
        client = stack.enter_context(connect(config.store, job.address.url))
        texts = reference_texts(teacher, job.address.manifest, config.references)
        losses = [
            train_phase(job, number, student, texts, client, device) for number in range(len(config.task_stage.phases))
        ]
        student.eval()
        scores: dict[str, Any] = {}
        for name, way in job.evaluations.items():
            reader = reader_for(job, student, teacher, client, way)
            scores[name] = {
                split: _scored(job, split, answers(reader, job.corpus.texts(split)))
                for split in job.corpus.data.dev_splits
            }
    options = reading_options(job)
    save_student(job.directory / "student", student.cpu(), texts.tokenizer, texts.table, **options)
    result = {"scores": scores, "losses": losses, "seconds": round(time.monotonic() - started_s, 1)}
    write_whole(job.directory / RESULT, json.dumps(result, indent=2))
    return result


def reader_for(job: TaskStudentJob, student: Any, teacher: Teacher, client: Client, way: Asked) -> Reader:
    """Return the student beside its task's memory, to be asked in one way."""
    update: dict[str, Any] = {"exclude_splits": way.left_out, "criterion": way.criterion}
    read = STATES_ALONE
    if way.mixing:
        update["count"], read = way.mixing.count, Parts(states=False, residual_of=ANSWERS)
    texts = reference_texts(teacher, job.address.manifest, job.config.references.model_copy(update=update))
    source = None
    if way.criterion != "none" and (way.mixing or job.config.reads_references):
        store = patient_store(job.address.of(job.config.store))
        source = open_retriever(client, store, texts, way.criterion, read)
    return Reader(student, texts.tokenizer, texts.manifest.text_tokens, texts, source, mixing=way.mixing, strict=True)


def reading_options(job: TaskStudentJob) -> dict[str, Any]:
    """Return what the student's folder says of its reading: the first way of mixing in which it was asked, if any."""
    for way in job.evaluations.values():
        if way.mixing:
            asked = {"criterion": way.criterion, "count": way.mixing.count}
            config = job.config.model_copy(update={"references": job.config.references.model_copy(update=asked)})
            return {**student_memory_options(config, job.address.manifest), "answers": way.mixing.to_dict()}
    return student_memory_options(job.config, job.address.manifest)


def students_per_node(gpus: float) -> int:
    """How many students train on one node at once: each takes one CPU, or its `gpus`."""
    have = ray.cluster_resources()
    return per_node(int(have.get("GPU", 0) / gpus if gpus else have["CPU"]))


def starting_student(job: TaskStudentJob, teacher: Teacher) -> RefBertForSequenceClassification:
    """Take the general stage's encoder, or a new one, and give it a head for the task, which the seed decides."""
    config = job.config
    shape = (
        config.student.model_copy(update={"initial": "random"}) if job.start else config.student
    )  # the start replaces it
    fresh = new_student(shape, teacher, config.seed, job.address.manifest.dim)
    assert isinstance(fresh, RefBertForSequenceClassification)
    names = job.corpus.data.task.labels
    fresh.config.id2label = dict(enumerate(names)) if names else {0: "score"}
    fresh.config.label2id = {name: number for number, name in fresh.config.id2label.items()}
    if job.start is None:
        return fresh
    start_from(fresh.encoder, job.start)
    return fresh


def train_phase(
    job: TaskStudentJob,
    number: int,
    student: RefBertForSequenceClassification,
    texts: ReferenceTexts,
    client: Client,
    device: torch.device,
) -> float:
    """Train through one phase, unless a killed training has finished it; returns its last epoch's mean loss."""
    phase = job.config.task_stage.phases[number]
    finished = job.directory / f"phase{number}.pt"
    if finished.exists():
        state = torch.load(finished, map_location=device, weights_only=True)
        student.load_state_dict(state["student"])
        return float(state["loss"])
    distiller = Distiller(student, phase.loss, autocasts(phase.precision, device)).to(device)
    with ExitStack() as stack:
        rows = job.corpus.texts("train")
        if phase.loss.learns_labels_alone:
            rows = rows[: job.corpus.num_labelled]
        lengths = list(map(text_length, rows))
        sampler = BucketSampler(lengths, phase.batch, job.config.seed)
        stream = _open_stream(job, phase, sampler, texts, client)
        stack.callback(stream.close)

        def loss_of(step: int) -> torch.Tensor:
            if step != stream.number:  # the first step after a restore
                stream.load_state_dict({"micro_batches": step})
            batch, targets = (moved(part, device) for part in next(stream))
            loss, _ = distiller(batch, targets)
            return loss

        checkpoint = job.directory / "checkpoint.pt"
        seed = job.config.seed * 100 + number
        last_epoch = [
            loss
            for step, loss in train_epochs(distiller, loss_of, sampler.per_epoch, phase, seed, checkpoint, device)
            if step > (phase.epochs - 1) * sampler.per_epoch
        ]
    loss = float(np.mean(last_epoch))
    with whole_file(finished) as scratch:
        torch.save({"student": student.state_dict(), "loss": loss}, scratch)
    return loss


def answers(reader: Reader, examples: Sequence[Text]) -> NDArray[np.float32]:
    """Return the student's logits (rows, labels), each row reading its reference, in order."""
    found = np.empty((len(examples), reader.model.config.num_labels), np.float32)
    for forward in reader.forwards(examples):
        found[forward.rows] = forward.output.logits.float().cpu().numpy()
    return found


def _open_stream(
    job: TaskStudentJob, phase: PhaseConfig, sampler: BucketSampler, texts: ReferenceTexts, client: Client
) -> DistillStream:
    config = job.config
    criterion, store = config.references.criterion, job.address.of(config.store)
    source = open_retriever(client, patient_store(store), texts, criterion) if config.reads_references else None
    return DistillStream(
        job.corpus.prepared.table("train"),
        sampler,
        texts,
        source,
        Store(client, store) if phase.loss.needs_states else None,
        NeighbourPlan(job.plan) if job.plan and source else None,
        labels=job.corpus.labels("train"),
        logits=job.teacher.logits["train"],
        sentences_alone=not phase.loss.needs_token_states,
        rank=0,
        world_size=1,
        prefetch=config.train.prefetch,
        dropout=config.references.dropout,
    )


def _scored(job: TaskStudentJob, split: str, logits: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Scores over all rows, and over those that have no near-duplicate in training."""
    data, labels = job.corpus.data, job.corpus.labels(split)
    guess, alone = predictions(data, logits), ~job.corpus.repeated[split]
    return {
        "all": score(data.task.metrics, labels, guess),
        "no_near_duplicate": score(data.task.metrics, labels[alone], guess[alone]),
    }
