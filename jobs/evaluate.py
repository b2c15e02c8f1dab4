"""Measure a distilled student against its teacher, with controls, and write the report.

    python jobs/evaluate.py [RUN.yaml] [key=value ...]

On held-out text: fidelity of the same trained student when only the reference is swapped (nearest, null, random); a linear
classifier on frozen features where the corpus has labels; latency of teacher and student, with and without the look-up; what
one text read.
Writes report.json, report.md and plots into the run's directory.
"""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor

from jobs.config import RunConfig
from jobs.distill import needs_memory, reads_references
from jobs.explained import explained
from jobs.explanation_report import write_explanation
from jobs.launch import launch
from jobs.memory import (
    MemoryAddress,
    NeighbourSource,
    ReferenceTexts,
    connect_store,
    manifest_of,
    open_retriever,
    patient_store,
    reference_id,
    reference_texts,
    running_store,
    trained_manifest,
)
from jobs.prepared import PassageRows, PreparedCorpus, prepare
from jobs.progress import progress
from jobs.provenance import hardware, provenance
from jobs.reader import Reader
from jobs.report import REFERENCES, write_report
from jobs.stream import reference_batch
from jobs.worker import set_up_worker
from refbert.corpus import text_of
from refbert.errors import InputError
from refbert.metrics import MUTUAL_INFORMATION_TEMPERATURE, fidelity
from refbert.probe import majority_accuracy, probe_accuracy
from refbert.student import RefBertModel, masked_mean
from refbert.teacher import Teacher, Tokens, load_teacher
from vector_store.store import Store

log = logging.getLogger(__name__)

CONTINUES_RUN = True
"""Without a YAML, the options are those that the named run was trained with."""


@dataclass(frozen=True)
class EvaluationJob:
    """What the evaluating worker needs."""

    config: RunConfig
    address: MemoryAddress | None
    corpus: PreparedCorpus
    student: Path


class Event(NamedTuple):
    """News from the evaluating worker: a stage, how many texts it has to do, and how many more are done."""

    stage: str
    total: int
    done: int


def run(config: RunConfig) -> None:
    """Evaluate the run's student and write the report."""
    started_s = time.monotonic()
    if not (config.run_directory / "manifest.json").exists():
        raise InputError(f"{config.run_directory} holds no complete run; train one first: `python jobs/distill.py`")
    corpus = prepare(config)
    teacher = load_teacher(config.teacher)
    if not needs_memory(config):
        report = measure(EvaluationJob(config, None, corpus, config.run_directory / "student"))
    else:
        with running_store(config) as url:
            with connect_store(config, url) as client:
                manifest = Store(client, config.store).require(manifest_of(teacher, config.references))
            address = MemoryAddress(url, manifest)
            report = measure(EvaluationJob(config, address, corpus, config.run_directory / "student"))
    report["run"] |= provenance(started_s)
    if explanation := report.pop("explanation", None):
        report["explanation"] = write_explanation(explanation, config.run_directory, "example")
    write_report(report, config.run_directory)
    log.info("report: %s", config.run_directory / "report.md")


def measure(job: EvaluationJob) -> dict[str, Any]:
    """Run the measurements on a worker of the cluster and show their progress here; return the report without `run`."""
    gpus = job.config.train.gpus_per_worker
    stream: Any = ray.remote(num_cpus=1, num_gpus=gpus)(evaluate_student).options(num_returns="streaming").remote(job)
    report: dict[str, Any] = {}
    with stages() as show:
        for item in stream:
            news = ray.get(item)
            if isinstance(news, Event):
                show(news)
            else:
                report = news
    report["distill"] = json.loads((job.student.parent / "manifest.json").read_text())["training"]
    return report


@contextmanager
def stages() -> Iterator[Callable[[Event], None]]:
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
    reads = reads_references(config)
    sources: dict[str, NeighbourSource | None] = dict.fromkeys(REFERENCES if reads else ("null",))
    asked: NeighbourSource | None = None
    memory: dict[str, Any] = {}
    store = None
    if job.address:
        client = connect_store(config, job.address.url)
        patient = patient_store(config)
        nearest = config.references.criterion
        if reads:
            sources["nearest"] = open_retriever(client, patient, texts, nearest)
            sources["random"] = open_retriever(client, patient, texts, "random")
            asked = open_retriever(client, patient, texts, nearest, with_text=True)
        store = Store(client, config.store)
        memory = {
            "points": store.count(),
            "bytes": store.bytes_estimate(),
            "criterion": nearest,
            "references_per_text": config.references.count,
            "tokens": manifest.tokens,
            "dim": manifest.dim,
            "datatype": manifest.datatype,
            "url_kind": "embedded" if config.store.url == "embedded" else "server",
        }
    bench = Bench(teacher, student, texts, sources, config.evaluate.batch)
    heldout = heldout_rows(job, teacher, store)
    parameters = sum(p.numel() for p in student.parameters())
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
        },
        "memory": memory,
        "run": {"hardware": hardware()},  # this worker's: it is the one that is timed
    }
    vectors = yield from measure_fidelity(bench, heldout, config, report)
    if job.corpus.counts.labels:
        yield from measure_labelled(bench, job, heldout, vectors, report)
    yield from measure_speed(bench, heldout, config, report)
    if asked is not None:
        explanation = explained(
            Reader(student, texts.tokenizer, manifest.text_tokens, texts, asked), text_of(heldout[0])
        )
        report |= {"explanation": explanation} if explanation["layers"] else {}
    yield report


def heldout_rows(job: EvaluationJob, teacher: Teacher, store: Store | None) -> list[dict[str, Any]]:
    """Draw held-out passages; those that another run has stored in the same memory are left out, and said."""
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


class Bench:
    """The teacher and the student side by side, over the same batches of texts."""

    def __init__(
        self,
        teacher: Teacher,
        student: Any,
        texts: ReferenceTexts,
        sources: dict[str, NeighbourSource | None],
        batch: int,
    ) -> None:
        self.teacher, self.student, self.texts, self.sources = teacher, student, texts, sources
        self.batch = batch

    def batches(self, rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Cut rows into batches."""
        for start in range(0, len(rows), self.batch):
            yield rows[start : start + self.batch]

    def tokens(self, rows: list[dict[str, Any]]) -> Tokens:
        """Return what both encoders read."""
        return self.texts.tokenize([text_of(row) for row in rows])

    def teacher_states(self, tokens: Tokens) -> Tensor:
        """Return the teacher's states (batch, tokens, dim)."""
        return self.teacher.encode(tokens.input_ids, tokens.mask, token_type_ids=tokens.token_type_ids).states

    @torch.inference_mode()
    def student_states(self, rows: list[dict[str, Any]], tokens: Tokens, reference: str) -> Tensor:
        """Return the student's states in the teacher's space (batch, tokens, dim), reading one kind of reference."""
        source, found = self.sources[reference], None
        ids, mask, segments = tokens
        if source is not None:
            queries = self.texts.queries([text_of(row) for row in rows], ids, mask, [row["document"] for row in rows])
            found = source.neighbours(queries)
        batch = reference_batch(ids, mask, found, self.texts.manifest.dim, token_type_ids=segments)
        batch = batch.to(self.teacher.device)
        return self.student(**batch.student_inputs()).projected_states


Vectors = dict[str, Tensor]


def measure_fidelity(
    bench: Bench, rows: list[dict[str, Any]], config: RunConfig, report: dict[str, Any]
) -> Generator[Event, None, Vectors]:
    """Compare states and sentence vectors on held-out text, the reference swapped; returns the (texts, dim) vectors."""
    errors = dict.fromkeys(bench.sources, 0.0)
    num_tokens = 0.0
    sentences: dict[str, list[Tensor]] = {name: [] for name in ("teacher", *bench.sources)}
    for batch in bench.batches(rows):
        tokens = bench.tokens(batch)
        states = bench.teacher_states(tokens)
        weights = tokens.mask.to(states)
        num_tokens += float(weights.sum())
        sentences["teacher"].append(masked_mean(states, weights).cpu())
        for name in bench.sources:
            ours = bench.student_states(batch, tokens, name)
            errors[name] += float(((ours - states).square().mean(-1) * weights).sum())
            sentences[name].append(masked_mean(ours, weights).cpu())
        yield Event("fidelity", len(rows), len(batch))
    vectors = {name: torch.cat(parts) for name, parts in sentences.items()}
    report["fidelity"] = {
        name: fidelity(errors[name] / num_tokens, vectors[name], vectors["teacher"], config.evaluate.pool)._asdict()
        for name in bench.sources
    }
    report["fidelity"]["texts"] = len(rows)
    report["fidelity"]["mutual_information"] = {
        "pool": min(config.evaluate.pool, len(rows)),
        "temperature": MUTUAL_INFORMATION_TEMPERATURE,
    }
    return vectors


def measure_labelled(
    bench: Bench, job: EvaluationJob, heldout: list[dict[str, Any]], vectors: Vectors, report: dict[str, Any]
) -> Iterator[Event]:
    """Fit the same linear classifier on each encoder's frozen vectors, and test it on held-out text."""
    table = job.corpus.table("train")
    chosen = np.random.default_rng(job.config.seed).permutation(table.num_rows)[: job.config.evaluate.labelled_train]
    rows = [row for row in PassageRows(table).at(np.sort(chosen)) if row["label"] is not None]
    features: dict[str, list[Tensor]] = {name: [] for name in vectors}
    for batch in bench.batches(rows):
        tokens = bench.tokens(batch)
        device_mask = tokens.mask.to(bench.teacher.device)
        features["teacher"].append(masked_mean(bench.teacher_states(tokens), device_mask).cpu())
        for name in bench.sources:
            features[name].append(masked_mean(bench.student_states(batch, tokens, name), device_mask).cpu())
        yield Event("labelled", len(rows), len(batch))
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


def measure_speed(
    bench: Bench, rows: list[dict[str, Any]], config: RunConfig, report: dict[str, Any]
) -> Iterator[Event]:
    """Time the same batches through every contender in turns, tokenization left out on all sides, look-up counted."""
    batches = [(batch, bench.tokens(batch)) for batch in bench.batches(rows)]
    batches = [entry for entry in batches if len(entry[0]) == bench.batch] or batches
    contenders: dict[str, Callable[[list[dict[str, Any]], Tokens], Any]] = {
        "teacher": lambda _, tokens: bench.teacher_states(tokens),
        "student": lambda batch, tokens: bench.student_states(batch, tokens, "null"),
    }
    if "nearest" in bench.sources:
        contenders["student_with_lookup"] = lambda batch, tokens: bench.student_states(batch, tokens, "nearest")
    taken_s: dict[str, list[float]] = {name: [] for name in contenders}
    warm_up = 3
    for repeat in range(warm_up + config.evaluate.speed_repeats):
        batch = batches[repeat % len(batches)]
        for name, encode in contenders.items():
            started_s = time.perf_counter()
            encode(*batch)
            if bench.teacher.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= warm_up:
                taken_s[name].append(time.perf_counter() - started_s)
        yield Event("speed", (warm_up + config.evaluate.speed_repeats) * len(batch[0]), len(batch[0]))
    report["speed"] = {
        name: {
            "batch": len(batches[0][0]),
            "latency_ms_p50": 1000 * float(np.percentile(seconds, 50)),
            "latency_ms_p99": 1000 * float(np.percentile(seconds, 99)),
            "examples_per_s": len(batches[0][0]) / float(np.mean(seconds)),
        }
        for name, seconds in taken_s.items()
    }


if __name__ == "__main__":
    launch("jobs.evaluate")
