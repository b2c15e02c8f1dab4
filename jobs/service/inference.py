"""The inference service of one replica: limits, the queue, the student, and its replacement, for every protocol.

Knows neither HTTP nor gRPC nor Ray.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.config import RunConfig
from jobs.memory.student_memory import open_reader, student_run
from jobs.service import tracing
from jobs.service.batch_queue import BatchQueue
from jobs.service.errors import InvalidInput, NotReady, UnknownModel
from jobs.service.keys import Keys
from jobs.service.metrics import Metrics
from jobs.service.schema import Model, Readiness, ServiceInfo, TextInput, checked_inputs
from jobs.service.student import ServedStudent, TextResult
from refbert.correction import check_dimensions, shorten
from refbert.errors import InputError
from refbert.memory.reader import Reader
from refbert.passages import Text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceResult:
    """Results of a request's texts, in their order, and the name and labels of the student that computed them."""

    texts: list[TextResult]
    model: str
    labels: list[str] | None

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(text.tokens for text in self.texts)

    @property
    def timing_ms(self) -> dict[str, float]:
        """The slowest batch's time in the queue, look-up and forward."""
        return {
            "queue": max(text.queue_ms for text in self.texts),
            "lookup": max(text.lookup_ms for text in self.texts),
            "student": max(text.student_ms for text in self.texts),
        }


@contextlib.contextmanager
def input_errors(student: str) -> Iterator[None]:
    """Make an InputError of whatever fails with a student's folder: a damaged one breaks in more places than can be listed."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the student {student} cannot be used ({type(error).__name__}: {reason}); copy the whole student/ folder"
        ) from error


@contextlib.contextmanager
def _invalid_input() -> Iterator[None]:
    """Answer 422 to what the library refuses of a request."""
    try:
        yield
    except InputError as error:
        raise InvalidInput(str(error)) from None


def shortened(texts: Sequence[TextResult], dimensions: int) -> list[TextResult]:
    """Return the same with shorter vectors, each by the components of the version that answered it. Raises InputError."""
    found: list[TextResult] = list(texts)
    for correction in {id(text.correction): text.correction for text in texts}.values():
        rows = [row for row, text in enumerate(texts) if text.correction is correction]
        vectors = torch.from_numpy(np.stack([texts[row].vector for row in rows]))
        for row, vector in zip(rows, shorten(vectors, dimensions, correction).numpy(), strict=True):
            found[row] = replace(found[row], vector=vector)
    return found


def check_answers(reader: Reader, folder: Path) -> None:
    """Embed one text. Raises InputError for a student whose vector has numbers that are not finite."""
    if not np.isfinite(reader.encode(["a text"])).all():
        raise InputError(f"the student in {folder} answers with numbers that are not finite; distil it again")


def check_student(config: RunConfig, student: str | None = None) -> None:
    """Load a student, the run's own by default, as a replica will, but without its memory. Raises InputError as `load` does."""
    with input_errors(student or config.name):
        own, folder = student_run(config, student)
        check_answers(open_reader(own, folder, None, torch.device("cpu")), folder)


class InferenceService:
    """One replica's service. `load` a student, then `start` on the event loop that serves requests.

    Raises InputError where the deployer `wants_keys` and there are none here.
    """

    def __init__(self, config: RunConfig, device: torch.device, replica: str = "", *, wants_keys: bool = False) -> None:
        self.config = config
        self.limits = config.serve
        self.metrics = Metrics(replica)
        self.keys = Keys(config.serve.api_keys_env, config.serve.api_keys_file, are_wanted=wants_keys)
        self.student: ServedStudent | None = None
        self.refused: str | None = None
        self.queue = BatchQueue(self._loaded, config.serve, self.metrics)
        self._device = device
        if config.serve.tracing:
            tracing.enable()

    def load(self, student: str | Path | None = None) -> None:
        """Load a student, the run's own by default, and use it from the next batch on. Blocks; any thread may call it.

        Batches in flight end with the student that began them. Raises InputError for a folder without a student that answers;
        the present one then stays.
        """
        loaded = self._load(None if student is None else str(student))
        before, self.student = self.student, loaded
        self.settle()
        if before:
            self.metrics.switches.inc()
            log.info("student %s replaces %s", loaded.fingerprint, before.fingerprint)
            before.memory.retire()

    def settle(self) -> None:
        """Note that the student that answers is the one that is wanted."""
        self.refused = None
        self.metrics.refused.set(0)

    def _load(self, student: str | None) -> ServedStudent:
        with input_errors(student or self.config.name):
            config, folder = student_run(self.config, student)
            loaded = ServedStudent(config, folder, self._device, self.metrics)
            try:
                check_answers(loaded.reader, folder)
            except BaseException:
                loaded.memory.close()
                raise
        return loaded

    def refuse(self, reason: str) -> None:
        """Note why the student that is wanted is not loaded: `readiness` and a metric say so, and the present one answers."""
        self.refused = reason
        self.metrics.refused.set(1)
        if self.student:
            log.error("student %s stays: %s", self.student.fingerprint, reason)
            self.metrics.set_student(self.student.name, self.student.fingerprint)
            self.metrics.set_memory_state(self.student.memory.status.state)

    def start(self) -> None:
        """Start answering, on the running event loop."""
        self.queue.start()

    async def stop(self) -> None:
        """Stop answering; requests that still wait are refused."""
        await self.queue.stop()
        if self.student:
            self.student.memory.close()

    # ------------------------------------------------------------ requests

    async def infer(
        self, inputs: Sequence[TextInput], deadline: float, explain: bool = False, dimensions: int | None = None
    ) -> InferenceResult:
        """Run texts through the student. Raises InvalidInput for what exceeds a limit, and what the queue raises."""
        student = self._loaded()
        checked = checked_inputs(inputs, self.limits, student.vocabulary)
        shorter = None if dimensions == student.dim else dimensions
        if shorter is not None:  # before anything is computed
            with _invalid_input():
                check_dimensions(shorter, student.dim, student.memory.reader.correction)
        texts = await self.queue.submit(checked, explain, deadline)
        if shorter is not None:
            with _invalid_input():
                texts = shortened(texts, shorter)
        result = InferenceResult(texts, student.name, student.labels)
        self.metrics.texts.inc(len(result.texts))
        self.metrics.tokens.inc(result.tokens)
        tracing.record_stages(len(result.texts), **result.timing_ms)
        return result

    async def classify(self, inputs: Sequence[TextInput], deadline: float, explain: bool = False) -> InferenceResult:
        """Label texts. Raises InvalidInput for a student without a head."""
        if self._loaded().labels is None:
            raise InvalidInput(
                "this student has no head and cannot label texts: use /v1/embeddings, or serve a student of a labelled task"
            )
        return await self.infer(inputs, deadline, explain)

    async def explain(self, text: Text, deadline: float) -> dict[str, Any]:
        """Explain one text, and compare it with the stored texts that its memory finds first, by cosine."""
        checked_inputs([text], self.limits, self._loaded().vocabulary)
        explanation: Any = await self.queue.call_student(lambda student: student.explain(text), deadline)
        nearest, without = explanation["nearest"], explanation.pop("vector_without")
        stored = [read["text"] if isinstance(read["text"], str) else tuple(read["text"]) for read in nearest]
        result = await self.infer([text, *stored], deadline)
        own, *others = (computed.vector for computed in result.texts)
        for read, other in zip(nearest, others, strict=True):
            read["cosine"], read["cosine_without"] = float(own @ other), float(without @ other)
        nearest.sort(key=lambda read: -read["cosine"])
        return {**explanation, "model": result.model, "timing_ms": result.timing_ms}

    # ------------------------------------------------------------ state

    def check_model(self, asked: str | None) -> None:
        """Raise UnknownModel for a request that asks for another model, where serve.refuse_other_models is set."""
        if self.limits.refuse_other_models and asked is not None:
            self.model(asked)

    def check_truncation(self, tokens: int | None) -> None:
        """Raise InvalidInput where a text is to be cut at fewer tokens than this student reads; -1 is as many as it reads."""
        most = self._loaded().reader.max_tokens
        if tokens is not None and tokens != -1 and tokens < most:
            raise InvalidInput(
                f"truncate_prompt_tokens={tokens}: this student's texts are cut at {most} tokens, never before; leave it out, "
                "or shorten the texts"
            )

    def info(self) -> ServiceInfo:
        """Describe the student and the limits as TEI does. Raises NotReady before a student is loaded."""
        student, limits = self._loaded(), self.limits
        return ServiceInfo(
            model_id=student.name,
            model_sha=student.fingerprint,
            model_dtype=str(student.reader.model.dtype).removeprefix("torch."),
            max_concurrent_requests=limits.max_queued_texts,
            max_input_length=student.reader.max_tokens,
            max_batch_tokens=limits.batch_tokens,
            max_batch_requests=limits.max_batch,
            max_client_batch_size=limits.max_texts,
        )

    def model(self, asked: str | None = None) -> Model:
        """Describe the student. Raises NotReady before one is loaded, UnknownModel where another one is asked for."""
        student = self._loaded()
        if asked not in (None, student.name):
            raise UnknownModel(f"there is no model of this name; this service has the model {student.name}")
        return Model(
            id=student.name,
            created=student.created,
            dimensions=student.dim,
            max_tokens=student.reader.max_tokens,
            labels=student.labels,
            reads_references=student.memory.is_read,
        )

    def readiness(self) -> Readiness:
        """Return whether requests are taken, and whether they read the memory. Raises NotReady before a student is loaded."""
        student = self._loaded()
        state, reason = student.memory.status
        status = "degraded" if state in ("away", "refused") else "ready"
        return Readiness(status=status, model=student.name, memory=state, reason=reason, refused=self.refused)

    def deadline(self, timeout_ms: str | None) -> float:
        """Return the deadline, in the event loop's time, of a request that arrives now. Raises InvalidInput."""
        most_s = self.limits.deadline_s
        if timeout_ms is not None:
            if not timeout_ms.isascii() or not timeout_ms.isdigit() or not int(timeout_ms[:9]):
                raise InvalidInput("X-Timeout-Ms must be a positive whole number")
            most_s = min(most_s, int(timeout_ms[:9]) / 1000)
        return asyncio.get_running_loop().time() + most_s

    def _loaded(self) -> ServedStudent:
        if self.student is None:
            raise NotReady("the student is still being loaded; try again in a moment")
        return self.student
