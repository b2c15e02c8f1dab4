"""A task's teacher, fine-tuned once per task, base encoder, options and seed, and its logits for every example.

A teacher that already has a trained head (teacher.head=classification) is taken as it is. Runs on one worker of the cluster; a
killed fine-tuning resumes after its last epoch.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from filelock import FileLock
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from jobs.config import RunConfig
from jobs.run.worker import set_up_worker
from jobs.sections import TrainConfig
from jobs.tasks.corpus import TaskCorpus
from refbert.atomic import digest, whole_file, whole_folder
from refbert.config import TeacherConfig
from refbert.errors import InputError
from refbert.fine_tuning import train_epochs
from refbert.hub import loading_options
from refbert.losses import label_loss
from refbert.memory.progress import progress
from refbert.packaged import local_path
from refbert.passages import Text, by_length, text_length
from refbert.pooling import pooling_of
from refbert.precision import autocasts
from refbert.sampler import BucketSampler
from refbert.scores import score
from refbert.tasks import TaskData
from refbert.teacher import (
    Teacher,
    check_encoder,
    load_teacher,
    load_tokenizer,
    refuse_head_on_decoder,
    segment_inputs,
    tokenize,
)

log = logging.getLogger(__name__)

LOGITS = "logits.npz"


@dataclass(frozen=True)
class TaskTeacher:
    """A teacher with a head for the task: `logits` (rows, labels) and, of development splits, `scores`, by split."""

    config: TeacherConfig
    logits: dict[str, NDArray[np.float32]]
    scores: dict[str, dict[str, float]]
    seconds: float
    directory: Path


def task_teacher(config: RunConfig, corpus: TaskCorpus) -> TaskTeacher:
    """Fine-tune the run's teacher on the task and let it answer every split, or find that done."""
    directory = config.home / "teachers" / f"{corpus.data.task.name}-{_teacher_digest(config, corpus)}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        if not (directory / "manifest.json").exists():
            gpus = config.train.gpus_per_worker
            stream: Any = ray.remote(num_cpus=1, num_gpus=gpus)(make_teacher).options(num_returns="streaming")
            with progress("teacher", unit="step") as update:
                for item in stream.remote(config, corpus, directory):
                    steps, figures = ray.get(item)
                    update(steps, **figures)
    manifest = json.loads((directory / "manifest.json").read_text())
    with np.load(directory / LOGITS) as saved:
        logits = {name: saved[name] for name in saved.files}
    scores = {
        name: score(corpus.data.task.metrics, corpus.labels(name), predictions(corpus.data, logits[name]))
        for name in corpus.data.dev_splits
    }
    checkpoint = config.teacher.model if config.teacher.head == "classification" else str(directory / "teacher")
    pooling = pooling_of(config.teacher)  # the copy's folder says nothing of it
    fine_tuned = config.teacher.model_copy(update={"model": checkpoint, "head": "classification", "pooling": pooling})
    return TaskTeacher(fine_tuned, logits, scores, manifest["seconds"], directory)


def with_answers_to_copies(train: TrainConfig, corpus: TaskCorpus, teacher: TaskTeacher) -> TaskTeacher:
    """Let the teacher answer the copies among the training rows too, or find that done."""
    answered = teacher.directory / f"{corpus.prepared.directory.name}.npy"
    with FileLock(teacher.directory.with_suffix(".lock")):
        if not answered.exists():
            work: Any = ray.remote(num_cpus=1, num_gpus=train.gpus_per_worker)(answer_copies)
            ray.get(work.remote(train, corpus, teacher.config, answered))
    logits = {**teacher.logits, "train": np.concatenate([teacher.logits["train"], np.load(answered)])}
    return replace(teacher, logits=logits)


def answer_copies(train: TrainConfig, corpus: TaskCorpus, teacher: TeacherConfig, answered: Path) -> None:
    """Write the logits (copies, labels) of the training rows that are copies."""
    device = set_up_worker(1, train.gpus_per_worker, train.threads_per_worker)
    logits = answers(load_teacher(teacher, device), corpus.texts("train")[corpus.num_labelled :])
    with whole_file(answered) as scratch, scratch.open("wb") as file:
        np.save(file, logits)


def predictions(data: TaskData, logits: NDArray[np.float32]) -> NDArray[Any]:
    """Turn (rows, labels) logits into what metrics take: numbers of classes, or scores of a regression."""
    return logits[:, 0] if data.task.regression else logits.argmax(1)


def make_teacher(config: RunConfig, corpus: TaskCorpus, directory: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Write the teacher's directory, its manifest last; yields steps done with their figures."""
    started_s = time.monotonic()
    device = set_up_worker(1, config.train.gpus_per_worker, config.train.threads_per_worker)
    with whole_folder(directory, resume=True) as scratch:
        if config.teacher.head == "classification":
            teacher = load_teacher(config.teacher, device)
        else:
            yield from _fine_tune(config, corpus, scratch, device)
            given = {"model": str(scratch / "teacher"), "head": "classification"}
            teacher = load_teacher(config.teacher.model_copy(update=given), device)
        logits = {name: answers(teacher, corpus.texts(name)) for name in corpus.data.splits}
        np.savez(scratch / LOGITS, allow_pickle=False, **logits)
        (scratch / "manifest.json").write_text(json.dumps({"seconds": round(time.monotonic() - started_s, 1)}))


def answers(teacher: Teacher, texts: Sequence[Text]) -> NDArray[np.float32]:
    """Return the teacher's logits (rows, labels) of texts or pairs, in their order."""
    found: list[Any] = [None] * len(texts)
    for rows in by_length(texts, teacher.config.batch):
        ids, mask, segments = tokenize(teacher.tokenizer, [texts[row] for row in rows], teacher.config.tokens)
        logits = teacher.encode(ids, mask, token_type_ids=segments).logits
        assert logits is not None
        for row, values in zip(rows, logits.float().cpu().numpy(), strict=True):
            found[row] = values
    return np.stack(found)


def _fine_tune(
    config: RunConfig, corpus: TaskCorpus, scratch: Path, device: torch.device
) -> Iterator[tuple[int, dict[str, float]]]:
    """Teach the base encoder the training split's labels and write it to scratch/teacher, unless it is there."""
    folder = scratch / "teacher"
    if folder.exists():
        return
    task, tuning, base = corpus.data.task, config.task_stage.teacher, config.teacher
    texts, labels = corpus.texts("train"), torch.from_numpy(corpus.labels("train"))
    sampler = BucketSampler(list(map(text_length, texts)), tuning.batch, config.seed)
    tokenizer = load_tokenizer(base.model)
    torch.manual_seed(config.seed)
    autocast = autocasts(tuning.precision, device)
    # torch 2.13's fused attention has a slow backward in bfloat16 on a CPU: a step of 32 x 60 tokens 1.8 s against 1.5 s.
    slow = device.type == "cpu" and autocast
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            local_path(base.model),
            dtype=torch.float32,
            num_labels=1 if task.regression else len(task.labels),
            attn_implementation="eager" if slow else None,
            **loading_options(base.model),
        )
    except (OSError, ValueError) as error:
        raise InputError(f"teacher.model={base.model} cannot get a head: {str(error).splitlines()[0]}") from None
    refuse_head_on_decoder(base.model, getattr(model.config, "is_encoder_decoder", False))
    check_encoder(model, tokenizer, base)
    model.to(device)

    def loss_of(number: int) -> torch.Tensor:
        rows = sampler.rows(number)
        ids, mask, segments = tokenize(tokenizer, [texts[row] for row in rows], base.tokens)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), **segment_inputs(model, segments)
            ).logits
        return label_loss(logits.float(), labels[rows].to(device))

    before = 0
    for step, loss in train_epochs(
        model, loss_of, sampler.per_epoch, tuning, config.seed, scratch / "checkpoint.pt", device
    ):
        if step % 10 == 0 or step == tuning.epochs * sampler.per_epoch:
            yield step - before, {"loss": loss}
            before = step
    with whole_folder(folder) as saved:
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)


def _teacher_digest(config: RunConfig, corpus: TaskCorpus) -> str:
    """12 hex digits of everything that the teacher and its answers depend on."""
    evaluated = [[name, corpus.texts(name)] for name in corpus.data.splits if name != "train"]
    return digest(
        corpus.prepared.directory.name,
        digest(*evaluated, digits=64),
        config.teacher.model_dump(mode="json", exclude={"batch", "pooling"}),
        config.task_stage.teacher.model_dump(mode="json"),
        config.seed,
        digits=12,
    )
