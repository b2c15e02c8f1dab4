"""Where requests are answered, whatever protocol brought them: limits, the queue, the student, and its replacement.

Knows neither HTTP nor gRPC nor Ray.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.config import RunConfig
from jobs.memory.student_memory import student_run
from jobs.service import tracing
from jobs.service.batch_queue import BatchQueue
from jobs.service.errors import InvalidInput, NotReady
from jobs.service.keys import Keys
from jobs.service.metrics import MemoryState, Metrics
from jobs.service.schema import Asked, Model, Readiness, asked_texts
from jobs.service.student import Row, ServedStudent
from refbert.corpus import Text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """A request's rows, in the texts' order, by the student of this name."""

    rows: list[Row]
    model: str
    labels: list[str] | None

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(row.tokens for row in self.rows)

    @property
    def timing_ms(self) -> dict[str, float]:
        """The slowest batch's wait, look-up and forward."""
        return {
            "queue": max(row.queue_ms for row in self.rows),
            "lookup": max(row.lookup_ms for row in self.rows),
            "student": max(row.student_ms for row in self.rows),
        }


class Desk:
    """One replica's service. `open`, then `start` on the event loop that asks."""

    def __init__(self, config: RunConfig, device: torch.device, replica: str = "") -> None:
        self.config = config
        self.limits = config.serve
        self.metrics = Metrics(replica)
        self.keys = Keys(config.serve.api_keys_env, config.serve.api_keys_file)
        self.student: ServedStudent | None = None
        self.queue = BatchQueue(self._ready, config.serve, self.metrics)
        self._device = device
        if config.serve.tracing:
            tracing.turn_on()

    def open(self, student: str | Path | None = None) -> None:
        """Load a student, the run's own by default, and answer by it from the next batch on. Blocks; any thread may call it.

        Batches on their way end with the student that began them. Raises InputError where there is none; the one before then
        stays.
        """
        config, folder = student_run(self.config, None if student is None else str(student))
        opened = ServedStudent(config, folder, self._device, self.metrics)
        before, self.student = self.student, opened
        if before:
            self.metrics.switches.inc()
            log.info("student %s replaces %s", opened.fingerprint, before.fingerprint)
            before.retire()

    def start(self) -> None:
        """Begin to answer, on the running event loop."""
        self.queue.start()

    async def stop(self) -> None:
        """End: who waits is refused."""
        await self.queue.stop()
        if self.student:
            self.student.close()

    # ------------------------------------------------------------ questions

    async def ask(
        self, asked: Sequence[Asked], deadline: float, explain: bool = False, dimensions: int | None = None
    ) -> Answered:
        """Answer texts. Raises InvalidInput for what is over a limit, and what the queue raises."""
        student = self._ready()
        checked = asked_texts(asked, self.limits, student.vocabulary)
        if dimensions not in (None, student.dim):
            raise InvalidInput(f"this student's vectors have {student.dim} numbers and cannot be cut to {dimensions}")
        rows = await self.queue.ask(checked, explain, deadline)
        answered = Answered(rows, student.name, student.labels)
        self.metrics.texts.inc(len(rows))
        self.metrics.tokens.inc(answered.tokens)
        tracing.stages(len(rows), **answered.timing_ms)
        return answered

    async def classify(self, asked: Sequence[Asked], deadline: float, explain: bool = False) -> Answered:
        """Label texts. Raises InvalidInput for a student without a head."""
        if self._ready().labels is None:
            raise InvalidInput(
                "this student has no head, so it labels nothing: ask /v1/embeddings, or serve a student of a labelled task"
            )
        return await self.ask(asked, deadline, explain)

    async def explain(self, text: Text, deadline: float) -> dict[str, Any]:
        """Explain one text, and say how near the stored texts are that its memory finds first."""
        asked_texts([text], self.limits, self._ready().vocabulary)
        explanation: Any = await self.queue.call_student(lambda student: student.explain(text), deadline)
        nearest, without = explanation["nearest"], explanation.pop("vector_without")
        answered = await self.ask([text, *(_asked(read["text"]) for read in nearest)], deadline)
        own, *others = (row.vector for row in answered.rows)
        for read, other in zip(nearest, others, strict=True):
            read["cosine"], read["cosine_without"] = float(own @ other), float(without @ other)
        nearest.sort(key=lambda read: -read["cosine"])
        return {**explanation, "model": answered.model, "timing_ms": answered.timing_ms}

    # ------------------------------------------------------------ state

    def models(self) -> list[Model]:
        """The one student."""
        student = self._ready()
        return [
            Model(
                id=student.name,
                created=student.created,
                dimensions=student.dim,
                max_tokens=student.reader.max_tokens,
                labels=student.labels,
                reads_references=student.reads_references,
            )
        ]

    def readiness(self) -> Readiness:
        """Whether requests are taken, and whether they read the memory. Raises NotReady before a student is loaded."""
        student = self._ready()
        state: MemoryState = student.state
        return Readiness(
            status="degraded" if state in ("away", "refused") else "ready",
            model=student.name,
            memory=state,
            reason=student.reason,
        )

    def deadline(self, asked_ms: str | None) -> float:
        """When a request that arrives now must be answered, in the event loop's time. Raises InvalidInput."""
        most_s = self.limits.deadline_s
        if asked_ms is not None:
            if not asked_ms.isascii() or not asked_ms.isdigit() or not int(asked_ms[:9]):
                raise InvalidInput("X-Timeout-Ms is no positive whole number")
            most_s = min(most_s, int(asked_ms[:9]) / 1000)
        return asyncio.get_running_loop().time() + most_s

    def _ready(self) -> ServedStudent:
        if self.student is None:
            raise NotReady("the student is still being loaded; try again in a moment")
        return self.student


def _asked(text: Any) -> Asked:
    """A stored text or pair as one asks for it."""
    return text if isinstance(text, str) else tuple(text)
