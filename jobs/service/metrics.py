"""The service's metrics in Prometheus' text format.

One registry per replica. What `StudentMetrics` has is of the students of one name, which follow each other: their samples have
the label `model`, the name that requests ask for. Where there are several replicas, `merged` joins what each of them reports,
and each sample names its replica.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from jobs.service.errors import KINDS
from vector_store.schema import Rung

disable_created_metrics()  # a series of its own on when each series began, which nobody asks for

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Buckets from a cached single text to the deadline, each about twice the one before."""

NEARNESS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Where the memory is thin, most answers fall into the low ones."""

MODEL = ("model",)

TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

MemoryState = Literal["ok", "away", "refused", "none"]


class Metrics:
    """A replica's counters, gauges and histograms. `of` gives those of one student."""

    def __init__(self, replica: str = "") -> None:
        self.registry = CollectorRegistry()
        self._replica = replica
        counter = partial(Counter, namespace="refbert", registry=self.registry)
        gauge = partial(Gauge, namespace="refbert", registry=self.registry)
        histogram = partial(Histogram, namespace="refbert", registry=self.registry, buckets=SECONDS)
        self.requests = counter("requests", "Requests answered, by route and status.", ("route", "status"))
        self.request_s = histogram("request_seconds", "From a request's head to its answer.", ("route",))
        self.errors = counter("errors", "Requests that got no result, by kind.", ("kind",))
        self.texts = counter("texts", "Texts answered.", MODEL)
        self.tokens = counter("tokens", "Tokens of the texts answered.", MODEL)
        # Two labels say the same: `step` is the old name of `rung`, kept for one release.
        self.references = counter(
            "references", "Texts by the rung of the degrade ladder that answered.", (*MODEL, "rung", "step")
        )
        self.cache_hits = counter("cache_hits", "References that were cached and not fetched.", MODEL)
        self.nearness = histogram(
            "nearness", "Of corrected answers, the cosine of the nearest reference's key.", MODEL, buckets=NEARNESS
        )
        self.queue_s = histogram("queue_seconds", "A batch's oldest text in the queue.")
        self.lookup_s = histogram("lookup_seconds", "One batch's look-up.", MODEL)
        self.student_s = histogram("student_seconds", "One batch's forward.", MODEL)
        self.batch_texts = histogram("batch_texts", "Texts of one forward.", MODEL, buckets=TEXTS)
        self.queued_texts = gauge("queued_texts", "Texts that wait in the queue.")
        self.memory = gauge("memory_state", "1 for the memory's state, 0 for the others.", (*MODEL, "state"))
        self.switches = counter("student_switches", "Students loaded while serving.")
        self.refused = gauge("student_refused", "1 while the student that was asked for last could not be loaded.")
        self.student = gauge("student_info", "1 for a student that answers.", (*MODEL, "fingerprint"))
        self._students: dict[str, StudentMetrics] = {}
        # From the start: a rate over a series that appears late is wrong.
        for kind in ("bug", *(error.__name__ for error in KINDS)):
            self.errors.labels(kind)

    def of(self, model: str) -> "StudentMetrics":
        """Return the metrics of one student, whose series are there from now on."""
        if model not in self._students:
            self._students[model] = StudentMetrics(self, model)
        return self._students[model]

    def count_request(self, route: str, status: str, took_s: float, error: str | None = None) -> None:
        """Count one request, and by kind the error that it got instead of a result."""
        self.requests.labels(route, status).inc()
        self.request_s.labels(route).observe(took_s)
        if error:
            self.errors.labels(error).inc()

    def text(self) -> str:
        """Return all metrics in Prometheus' text format; a replica with a name puts it on each sample."""
        return "\n".join(map(self._named, generate_latest(self.registry).decode().splitlines())) + "\n"

    def _named(self, line: str) -> str:
        if not self._replica or line.startswith("#"):
            return line
        label = f'replica="{self._replica}"'
        name, brace, rest = line.partition("{")
        if brace:
            return f"{name}{{{label},{rest}"
        name, _, value = line.partition(" ")
        return f"{name}{{{label}}} {value}"


class StudentMetrics:
    """What a replica counts of one student: the series of its `model` name. Students of one name follow each other."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self._fingerprint: str | None = None
        self.texts, self.tokens = metrics.texts.labels(model), metrics.tokens.labels(model)
        self.cache_hits, self.nearness = metrics.cache_hits.labels(model), metrics.nearness.labels(model)
        self.lookup_s, self.student_s = metrics.lookup_s.labels(model), metrics.student_s.labels(model)
        self.batch_texts = metrics.batch_texts.labels(model)
        self.count_rungs(dict.fromkeys(get_args(Rung), 0))
        self.set_memory_state("none")

    def count_rungs(self, rungs: Mapping[str, int]) -> None:
        """Count texts by the rung of the degrade ladder that answered them."""
        for rung, count in rungs.items():
            self._metrics.references.labels(self._model, rung, rung).inc(count)

    def count_nearness(self, nearness: Iterable[float]) -> None:
        """Count how near the nearest reference of each text was."""
        for one in nearness:
            self.nearness.observe(one)

    def set_memory_state(self, state: MemoryState) -> None:
        """Show the state that the memory is in."""
        for known in get_args(MemoryState):
            self._metrics.memory.labels(self._model, known).set(known == state)

    def set_student(self, fingerprint: str) -> None:
        """Show which student answers by this name."""
        if self._fingerprint not in (None, fingerprint):
            self._metrics.student.remove(self._model, self._fingerprint)
        self._fingerprint = fingerprint
        self._metrics.student.labels(self._model, fingerprint).set(1)


def merged(texts: Iterable[str]) -> str:
    """Join the texts of several replicas: each metric's head once, then the samples of all."""
    families: dict[str, list[str]] = {}
    for text in texts:
        family: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP"):
                family = families.setdefault(line, [])
            elif line not in family:  # the second line of a head
                family.append(line)
    return "\n".join(line for head, samples in families.items() for line in (head, *samples)) + "\n"
