"""Measure a student beside its teacher: fidelity, a linear classifier, corrected answers, latency, one text explained.

`measure` runs in the driver: it starts the measurements on one worker of the cluster and shows their progress. Corrected
answers are those of a student that was adapted to a memory.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.config import RunConfig
from jobs.corpus.prepared import PassageRows, PreparedCorpus, chunked
from jobs.evaluation.corrected import CorrectedStudent, measure_corrected, open_corrected, size_of
from jobs.evaluation.provenance import hardware
from jobs.evaluation.report import REFERENCES
from jobs.memory.gain import ANSWERS, Answered, answered
from jobs.memory.store import MemoryAddress, patient_store
from jobs.run.worker import processor_seconds, set_up_worker, used_between
from jobs.sections import EvaluateConfig
from refbert.errors import InputError
from refbert.memory.explanation import explained
from refbert.memory.manifest import manifest_of, trained_manifest
from refbert.memory.progress import progress
from refbert.memory.reader import Reader
from refbert.memory.retrieval import open_retriever
from refbert.memory.texts import reference_id, reference_texts
from refbert.metrics import MUTUAL_INFORMATION_TEMPERATURE, fidelity
from refbert.passages import text_of
from refbert.probe import majority_accuracy, probe_accuracy
from refbert.student import RefBertModel, pooled
from refbert.teacher import Teacher, Tokens, load_teacher
from vector_store.client import connect
from vector_store.schema import STATES_ALONE, Parts
from vector_store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationJob:
    """What the evaluating worker needs. `adapted` is where the memory answers that the student was adapted to, if it was."""

    config: RunConfig
    address: MemoryAddress | None
    corpus: PreparedCorpus
    student: Path
    adapted: str | None = None


class Event(NamedTuple):
    """Progress of the evaluating worker: a stage, how many texts it has to do, and how many more are done."""

    stage: str
    total: int
    done: int


def measure(job: EvaluationJob) -> dict[str, Any]:
    """Run the measurements on a worker of the cluster and show their progress here; return the report without `run`."""
    gpus = job.config.train.gpus_per_worker
    stream: Any = ray.remote(num_cpus=1, num_gpus=gpus)(evaluate_student).options(num_returns="streaming").remote(job)
    report: dict[str, Any] = {}
    with stage_bars() as show:
        for item in stream:
            news = ray.get(item)
            if isinstance(news, Event):
                show(news)
            else:
                report = news
    report["distill"] = json.loads((job.student.parent / "manifest.json").read_text())["training"]
    return report


@contextmanager
def stage_bars() -> Iterator[Callable[[Event], None]]:
    """Show one bar per stage of the events that come in."""
    with ExitStack() as stack:
        running: dict[str, Any] = {}

        def show(event: Event) -> None:
            if event.stage not in running:
                stack.close()
                running.clear()
                running[event.stage] = stack.enter_context(progress(event.stage, event.total, "text"))
            running[event.stage](event.done)

        yield show


def evaluate_student(job: EvaluationJob) -> Iterator[Event | dict[str, Any]]:
    """Run every measurement on this worker; yields events, and last the report."""
    config = job.config
    device = set_up_worker(1, config.train.gpus_per_worker)
    teacher = load_teacher(config.teacher, device)
    student = RefBertModel.from_pretrained(job.student).eval().to(device)
    manifest = job.address.manifest if job.address else manifest_of(teacher, config.references)
    trained_with = trained_manifest(student.config.memory, job.student)
    if trained_with and (differing := trained_with.differing(manifest)):
        raise InputError(
            f"{job.student} was distilled with another memory than this run's ({', '.join(differing)} differ); distil again, "
            "or give the teacher, references and store that it was trained with"
        )
    texts = reference_texts(teacher, manifest, config.references)
    memory: dict[str, Any] = {}
    store = None

    def reader(criterion: str, read: Parts = STATES_ALONE) -> Reader:
        source = None
        if criterion != "none":
            assert job.address is not None
            source = open_retriever(client, patient_store(job.address.of(config.store)), texts, criterion, read)
        return Reader(
            student, texts.tokenizer, manifest.text_tokens, texts, source, batch=config.evaluate.batch, strict=True
        )

    if job.address:
        client = connect(config.store, job.address.url)
        store = Store(client, job.address.of(config.store))
        memory = {
            "points": store.count(),
            "bytes": store.bytes_estimate(),
            "criterion": config.references.criterion,
            "references_per_text": config.references.count,
            "tokens": manifest.tokens,
            "dim": manifest.dim,
            "datatype": manifest.datatype,
            "url_kind": "embedded" if config.store.url == "embedded" else "server",
        }
    criteria = {"nearest": config.references.criterion, "null": "none", "random": "random"}
    readers = {name: reader(criteria[name]) for name in (REFERENCES if config.reads_references else ("null",))}
    heldout = heldout_rows(job, teacher, store)
    parameters = student.num_stored
    report: dict[str, Any] = {
        "teacher": {
            "name": config.teacher.model,
            "params": teacher.num_parameters,
            "layers": teacher.num_layers,
            "dim": teacher.dim,
        },
        "student": {
            "params": parameters,
            "layers": student.config.num_hidden_layers,
            "dim": student.config.hidden_size,
            "compression": teacher.num_parameters / parameters,
            "bytes": student.stored_bytes,
            "bytes_compression": 4 * teacher.num_parameters / student.stored_bytes,
        },
        "memory": memory,
        "corpus": config.corpus.path.rstrip("/").rpartition("/")[
            2
        ],  # a card is published: no directories of this machine
        "run": {"hardware": hardware()},  # this worker's: it is the one that is timed
    }
    vectors = yield from measure_fidelity(teacher, readers, heldout, config.evaluate, report)
    if job.corpus.counts.labels:
        yield from measure_labelled(teacher, readers, job, heldout, vectors, report)
    corrected = None
    if job.adapted:
        corrected = open_corrected(config, job.student, student, teacher, connect(config.store, job.adapted))
        yield from report_corrected(corrected, teacher, job, heldout, report)
    yield from measure_speed(teacher, readers, heldout, config.evaluate, report, corrected)
    if config.reads_references:
        explanation = explained(reader(criteria["nearest"], Parts(text=True)), text_of(heldout[0]))
        report |= {"explanation": explanation} if explanation["layers"] else {}
    yield report


def heldout_rows(job: EvaluationJob, teacher: Teacher, store: Store | None) -> list[dict[str, Any]]:
    """Draw held-out passages; those that another run has stored in the same memory are left out, with a warning."""
    table = job.corpus.table("heldout")
    chosen = np.random.default_rng(job.config.seed).permutation(table.num_rows)[: job.config.evaluate.texts]
    rows = PassageRows(table).at(np.sort(chosen))
    if store is None:
        return rows
    ids = [reference_id(teacher.fingerprint, text_of(row)) for row in rows]
    stored = store.existing(ids)
    unseen = [row for row, id_ in zip(rows, ids, strict=True) if id_ not in stored]
    if stored:
        log.warning("%d of %d held-out texts are in the memory, from another run: left out", len(stored), len(rows))
    if not unseen:
        raise InputError(
            f"every held-out text is stored in {job.config.store.collection!r}; use another store.collection"
        )
    return unseen


def teacher_states(teacher: Teacher, tokens: Tokens) -> Tensor:
    """Return the teacher's states (batch, tokens, dim)."""
    return teacher.encode(tokens.input_ids, tokens.mask, token_type_ids=tokens.token_type_ids).states


class EncodedBatch(NamedTuple):
    """One batch as teacher and student see it: token weights (batch, tokens), and states (batch, tokens, dim) by reader."""

    weights: Tensor
    teacher: Tensor
    student: dict[str, Tensor]


def encoded_batches(teacher: Teacher, readers: dict[str, Reader], rows: list[dict[str, Any]]) -> Iterator[EncodedBatch]:
    """Yield batches of the rows, in order, through the teacher and through the student with each kind of reference."""
    texts, documents = [text_of(row) for row in rows], [row["document"] for row in rows]
    streams = [
        reader.forwards(texts, documents, in_order=True, output_projected_states=True) for reader in readers.values()
    ]
    for forwards in zip(*streams, strict=True):
        tokens = forwards[0].tokens
        states = teacher_states(teacher, tokens)
        ours = {name: forward.output.projected_states for name, forward in zip(readers, forwards, strict=True)}
        yield EncodedBatch(tokens.mask.to(states), states, ours)


Vectors = dict[str, Tensor]


def measure_fidelity(
    teacher: Teacher,
    readers: dict[str, Reader],
    rows: list[dict[str, Any]],
    options: EvaluateConfig,
    report: dict[str, Any],
) -> Generator[Event, None, Vectors]:
    """Compare states and sentence vectors on held-out text, the reference swapped; returns the (texts, dim) vectors."""
    errors = dict.fromkeys(readers, 0.0)
    num_tokens = 0.0
    sentences: dict[str, list[Tensor]] = {name: [] for name in ("teacher", *readers)}
    for weights, states, student in encoded_batches(teacher, readers, rows):
        num_tokens += float(weights.sum())
        sentences["teacher"].append(pooled(states, weights, teacher.pooling).cpu())
        for name, ours in student.items():
            errors[name] += float(((ours - states).square().mean(-1) * weights).sum())
            sentences[name].append(pooled(ours, weights, teacher.pooling).cpu())
        yield Event("fidelity", len(rows), len(weights))
    vectors = {name: torch.cat(parts) for name, parts in sentences.items()}
    report["fidelity"] = {
        name: fidelity(errors[name] / num_tokens, vectors[name], vectors["teacher"], options.pool)._asdict()
        for name in readers
    }
    report["fidelity"]["texts"] = len(rows)
    report["fidelity"]["mutual_information"] = {
        "pool": min(options.pool, len(rows)),
        "temperature": MUTUAL_INFORMATION_TEMPERATURE,
    }
    return vectors


def measure_labelled(
    teacher: Teacher,
    readers: dict[str, Reader],
    job: EvaluationJob,
    heldout: list[dict[str, Any]],
    vectors: Vectors,
    report: dict[str, Any],
) -> Iterator[Event]:
    """Fit the same linear classifier on each encoder's frozen vectors, and test it on held-out text."""
    rows = labelled_train_rows(job)
    features: dict[str, list[Tensor]] = {name: [] for name in vectors}
    for weights, states, student in encoded_batches(teacher, readers, rows):
        for name, ours in {"teacher": states, **student}.items():
            features[name].append(pooled(ours, weights, teacher.pooling).cpu())
        yield Event("labelled", len(rows), len(weights))
    labelled = [index for index, row in enumerate(heldout) if row["label"] is not None]
    train_labels, test_labels = [row["label"] for row in rows], [heldout[index]["label"] for index in labelled]
    if len(set(train_labels)) < 2 or not labelled:
        log.warning("no labelled task in the report: it needs two classes in training and a labelled held-out text")
        return
    report["labelled"] = {
        "labels": list(job.corpus.counts.labels),
        "train_texts": len(rows),
        "test_texts": len(labelled),
        "majority": {"accuracy": majority_accuracy(train_labels, test_labels)},
        **{
            name: {
                "accuracy": probe_accuracy(
                    torch.cat(features[name]).numpy(), train_labels, vectors[name][labelled].numpy(), test_labels
                )
            }
            for name in vectors
        },
    }


def labelled_train_rows(job: EvaluationJob) -> list[dict[str, Any]]:
    """Draw training passages that have labels."""
    table = job.corpus.table("train")
    chosen = np.random.default_rng(job.config.seed).permutation(table.num_rows)[: job.config.evaluate.labelled_train]
    return [row for row in PassageRows(table).at(np.sort(chosen)) if row["label"] is not None]


def report_corrected(
    student: CorrectedStudent,
    teacher: Teacher,
    job: EvaluationJob,
    heldout: list[dict[str, Any]],
    report: dict[str, Any],
) -> Iterator[Event]:
    """Put into the report how close the corrected answers are, and what a classifier makes of them where there are labels."""
    options = job.config.evaluate
    for part in measure_corrected(student, teacher, heldout, options):
        if isinstance(part, Answered):
            yield Event("corrected", len(heldout), len(part.rows))
        else:
            report["adapted"] = part
    reader = student.reading
    report["adapted"]["size"] = size_of(job.student, reader.model, student.version.correction, reader.words)
    if "labelled" not in report:
        return
    parts = {"train": labelled_train_rows(job), "test": [row for row in heldout if row["label"] is not None]}
    features: dict[str, dict[str, NDArray[np.float32]]] = {}
    for part_name, rows in parts.items():
        features[part_name] = {name: np.empty((len(rows), teacher.dim), np.float32) for name in ANSWERS}
        texts, documents = [text_of(row) for row in rows], [row["document"] for row in rows]
        for some in answered(reader, texts, documents):
            for name, of_part in features[part_name].items():
                of_part[some.rows] = some.vectors[name].numpy()
            yield Event(f"labelled {part_name}, corrected", len(rows), len(some.rows))
    labels = {name: [row["label"] for row in rows] for name, rows in parts.items()}
    report["labelled"] |= {
        name: {
            "accuracy": probe_accuracy(features["train"][name], labels["train"], features["test"][name], labels["test"])
        }
        for name in ("global", "references")
    }


def measure_speed(
    teacher: Teacher,
    readers: dict[str, Reader],
    rows: list[dict[str, Any]],
    options: EvaluateConfig,
    report: dict[str, Any],
    corrected: CorrectedStudent | None = None,
) -> Iterator[Event]:
    """Time the same batches through every contender in turns, tokenization left out on all sides, look-up counted."""
    size = options.batch
    batches = [(chunk, readers["null"].tokenize([text_of(row) for row in chunk])) for chunk in chunked(rows, size)]
    batches = [entry for entry in batches if len(entry[0]) == size] or batches

    def reads(reader: Reader) -> Callable[[list[dict[str, Any]], Tokens], Any]:
        def read(batch: list[dict[str, Any]], tokens: Tokens) -> Any:
            found = reader.look_up([text_of(row) for row in batch], tokens, [row["document"] for row in batch])
            return reader.forward(tokens, found).projected_states

        return read

    contenders = {"teacher": lambda _, tokens: teacher_states(teacher, tokens), "student": reads(readers["null"])}
    if "nearest" in readers:
        contenders["student_with_lookup"] = reads(readers["nearest"])
    if corrected:
        contenders["student_corrected"] = reads(corrected.without_store)
        contenders["student_with_references"] = reads(corrected.reading)
    taken_s: dict[str, list[float]] = {name: [] for name in contenders}
    warm_up = 3
    others_s = timed_s = 0.0
    for repeat in range(warm_up + options.speed_repeats):
        batch = batches[repeat % len(batches)]
        for name, encode in contenders.items():
            before = (
                (processor_seconds(), time.perf_counter()) if name == "teacher" else None
            )  # no store works meanwhile
            started_s = time.perf_counter()
            encode(*batch)
            if teacher.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started_s
            if before is not None:
                others_s += used_between(before[0], processor_seconds())
                timed_s += time.perf_counter() - before[1]
            if repeat >= warm_up:
                taken_s[name].append(seconds)
        yield Event("speed", (warm_up + options.speed_repeats) * len(batch[0]), len(batch[0]))
    report["run"]["timing"] = {"others_cores": others_s / timed_s, "cores": os.cpu_count() or 1}
    report["speed"] = {
        name: {
            "batch": len(batches[0][0]),
            "latency_ms_p50": 1000 * float(np.percentile(seconds, 50)),
            "latency_ms_p99": 1000 * float(np.percentile(seconds, 99)),
            "examples_per_s": len(batches[0][0]) / float(np.mean(seconds)),
        }
        for name, seconds in taken_s.items()
    }
