"""The inference service of one replica: limits, the queue, its students, and their replacement, for every protocol.

Takes neither HTTP requests nor gRPC calls itself: `api` and `grpc_calls` do, and call this module. Needs no running Ray.
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
from jobs.memory.student_memory import open_reader, served_run
from jobs.service import tracing
from jobs.service.batch_queue import BatchQueue
from jobs.service.errors import InvalidInput, NotReady, UnknownModel
from jobs.service.inputs import TextInput, checked_inputs
from jobs.service.keys import Keys
from jobs.service.metrics import MemoryState, Metrics
from jobs.service.schema import EmbeddingPooling, MemoryReadiness, Model, ModelType, Readiness, ServiceInfo
from jobs.service.student import ServedStudent, TextResult
from refbert.correction import check_dimensions, shorten
from refbert.errors import InputError
from refbert.memory.reader import Reader
from refbert.passages import Text

log = logging.getLogger(__name__)

BADNESS: dict[MemoryState, int] = {"ok": 0, "none": 0, "away": 1, "refused": 2}
"""Of a memory's states; over 0 they cost quality."""


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
def input_errors(config: RunConfig, name: str, student: str | None) -> Iterator[None]:
    """Make an InputError of whatever fails with a student's folder: a damaged one breaks in more places than can be listed.

    Of one of serve.models the error says which.
    """
    where = "" if name == config.name else f"serve.models.{name}: "
    try:
        yield
    except InputError as error:
        if not where:
            raise
        raise InputError(f"{where}{error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}the student {student or name} cannot be used ({type(error).__name__}: {reason}); copy the whole "
            "student/ folder"
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


def check_students(config: RunConfig, student: str | None = None) -> None:
    """Load the students of a service one by one, as a replica will, but without their memories.

    `student` is in the place of the run's own. Raises InputError as `load` does.
    """
    for name, given in folders_of(config, student).items():
        with input_errors(config, name, given):
            run, folder = served_run(config, name, given)
            check_answers(open_reader(run, folder, None, torch.device("cpu")), folder)


def folders_of(config: RunConfig, student: str | None = None) -> dict[str, str | None]:
    """Return the student/ folders of a service by name, the run's own first; None is the folder in the run's directory."""
    return {config.name: student or config.serve.student, **config.serve.models}


class InferenceService:
    """One replica's service. `load` its students, then `start` on the event loop that serves requests.

    Raises InputError where the deployer `wants_keys` and there are none here.
    """

    def __init__(self, config: RunConfig, device: torch.device, replica: str = "", *, wants_keys: bool = False) -> None:
        self.config = config
        self.limits = config.serve
        self.metrics = Metrics(replica)
        self.keys = Keys(config.serve.api_keys_env, config.serve.api_keys_file, are_wanted=wants_keys)
        self.students: dict[str, ServedStudent] = {}
        """By the name that requests ask for, the run's own first."""
        self.refused: str | None = None
        self.queue = BatchQueue(lambda name: self.students[name], config.serve, self.metrics)
        self._device = device
        if config.serve.tracing:
            tracing.enable()

    @property
    def student(self) -> ServedStudent | None:
        """The run's own student; None until it is loaded."""
        return self.students.get(self.config.name)

    def load(self, student: str | Path | None = None) -> None:
        """Load a student in the place of the run's own, which is the default, and use it from the next batch on.

        The first time those of serve.models are loaded too. Blocks; any thread may call it. Batches in flight end with the
        student that began them. Raises InputError for a folder without a student that answers; the present ones then stay.
        """
        own = self.config.name
        loaded: dict[str, ServedStudent] = {}
        with contextlib.ExitStack() as undo:
            for name, folder in folders_of(self.config, None if student is None else str(student)).items():
                if name == own or name not in self.students:
                    loaded[name] = self._load(name, folder)
                    undo.callback(loaded[name].memory.close)
            undo.pop_all()
        before, self.students = self.student, {**self.students, **loaded}
        self.settle()
        if before:
            self.metrics.switches.inc()
            log.info("student %s replaces %s", loaded[own].fingerprint, before.fingerprint)
            before.memory.retire()

    def settle(self) -> None:
        """Note that the student that answers is the one that is wanted."""
        self.refused = None
        self.metrics.refused.set(0)

    def _load(self, name: str, student: str | None) -> ServedStudent:
        with input_errors(self.config, name, student):
            config, folder = served_run(self.config, name, student)
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
        if student := self.student:
            log.error("student %s stays: %s", student.fingerprint, reason)
            student.metrics.set_student(student.fingerprint)
            student.metrics.set_memory_state(student.memory.status.state)

    def start(self) -> None:
        """Start answering, on the running event loop."""
        self.queue.start()

    async def stop(self) -> None:
        """Stop answering; requests that still wait are refused."""
        await self.queue.stop()
        for student in self.students.values():
            student.memory.close()

    # ------------------------------------------------------------ requests

    async def infer(
        self,
        inputs: Sequence[TextInput],
        deadline: float,
        explain: bool = False,
        dimensions: int | None = None,
        model: str | None = None,
    ) -> InferenceResult:
        """Run texts through the student that `model` asks for.

        Raises UnknownModel where other models are refused, InvalidInput for what exceeds a limit, and what the queue raises.
        """
        student = self._asked(model)
        checked = checked_inputs(inputs, self.limits, student.vocabulary)
        shorter = None if dimensions == student.dim else dimensions
        if shorter is not None:  # before anything is computed
            with _invalid_input():
                check_dimensions(shorter, student.dim, student.memory.reader.correction)
        texts = await self.queue.submit(student.name, checked, explain, deadline)
        if shorter is not None:
            with _invalid_input():
                texts = shortened(texts, shorter)
        result = InferenceResult(texts, student.name, student.labels)
        student.metrics.texts.inc(len(result.texts))
        student.metrics.tokens.inc(result.tokens)
        tracing.record_stages(len(result.texts), **result.timing_ms)
        return result

    async def classify(
        self, inputs: Sequence[TextInput], deadline: float, explain: bool = False, model: str | None = None
    ) -> InferenceResult:
        """Label texts. Raises InvalidInput for a student without a head, and what `infer` raises."""
        if self._asked(model).labels is None:
            labelling = [name for name, student in self.students.items() if student.labels is not None]
            remedy = (
                f"ask for the model {' or '.join(labelling)}" if labelling else "serve a student of a labelled task"
            )
            raise InvalidInput(f"this student has no head and cannot label texts: use /v1/embeddings, or {remedy}")
        return await self.infer(inputs, deadline, explain, model=model)

    async def explain(self, text: Text, deadline: float, model: str | None = None) -> dict[str, Any]:
        """Explain one text, and compare it with the stored texts that its memory finds first, by cosine."""
        asked = self._asked(model)
        checked_inputs([text], self.limits, asked.vocabulary)
        explanation: Any = await self.queue.call_student(asked.name, lambda student: student.explain(text), deadline)
        nearest, without = explanation["nearest"], explanation.pop("vector_without")
        stored = [read["text"] if isinstance(read["text"], str) else tuple(read["text"]) for read in nearest]
        result = await self.infer([text, *stored], deadline, model=asked.name)
        own, *others = (computed.vector for computed in result.texts)
        for read, other in zip(nearest, others, strict=True):
            read["cosine"], read["cosine_without"] = float(own @ other), float(without @ other)
        nearest.sort(key=lambda read: -read["cosine"])
        return {**explanation, "model": result.model, "timing_ms": result.timing_ms}

    # ------------------------------------------------------------ state

    def check_truncation(self, tokens: int | None, model: str | None) -> None:
        """Raise InvalidInput where a text is to be cut at fewer tokens than its student reads; -1 is as many as it reads."""
        most = self._asked(model).reader.max_tokens
        if tokens is not None and tokens != -1 and tokens < most:
            raise InvalidInput(
                f"truncate_prompt_tokens={tokens}: this student's texts are cut at {most} tokens, never before; leave it out, "
                "or shorten the texts"
            )

    def info(self) -> ServiceInfo:
        """Describe the run's own student and the limits as TEI does. Raises NotReady before it is loaded."""
        student, limits = self._own(), self.limits
        return ServiceInfo(
            model_id=student.name,
            model_sha=student.fingerprint,
            model_dtype=str(student.reader.model.dtype).removeprefix("torch."),
            model_type=ModelType(embedding=EmbeddingPooling(pooling=student.reader.model.config.pooling)),
            max_concurrent_requests=limits.max_queued_texts,
            max_input_length=student.reader.max_tokens,
            max_batch_tokens=limits.batch_tokens,
            max_batch_requests=limits.max_batch,
            max_client_batch_size=limits.max_texts,
        )

    def models(self) -> list[Model]:
        """Describe the students, the run's own first. Raises NotReady before they are loaded."""
        self._own()
        return [self.model(name) for name in self.students]

    def model(self, asked: str | None = None) -> Model:
        """Describe the student of a name, the run's own by default. Raises NotReady before it is loaded, UnknownModel."""
        student = self._own() if asked is None else self._named(asked)
        return Model(
            id=student.name,
            created=student.created,
            dimensions=student.dim,
            max_tokens=student.reader.max_tokens,
            labels=student.labels,
            reads_references=student.memory.is_read,
        )

    def readiness(self) -> Readiness:
        """Return whether requests are taken, and whether they read their memories. Raises NotReady before students are loaded.

        The service's state is that of the student whose memory is worst off, of equal ones that of the first.
        """
        own = self._own()
        states = {name: _memory_readiness(student) for name, student in self.students.items()}
        worst = max(states, key=lambda name: BADNESS[states[name].memory])
        found = states[worst].model_dump()
        if worst != own.name:
            found["reason"] = f"{worst}: {found['reason']}"
        return Readiness(**found, model=own.name, refused=self.refused, models=states)

    def deadline(self, timeout_ms: str | None) -> float:
        """Return the deadline, in the event loop's time, of a request that arrives now. Raises InvalidInput."""
        most_s = self.limits.deadline_s
        if timeout_ms is not None:
            if not timeout_ms.isascii() or not timeout_ms.isdigit() or not int(timeout_ms[:9]):
                raise InvalidInput("X-Timeout-Ms must be a positive whole number")
            most_s = min(most_s, int(timeout_ms[:9]) / 1000)
        return asyncio.get_running_loop().time() + most_s

    def _own(self) -> ServedStudent:
        if self.student is None:
            raise NotReady("the student is still being loaded; try again in a moment")
        return self.student

    def _named(self, model: str) -> ServedStudent:
        self._own()
        if model not in self.students:
            names = list(self.students)
            raise UnknownModel(
                f"there is no model of this name; this service has the model{'s' * (len(names) > 1)} {', '.join(names)}"
            )
        return self.students[model]

    def _asked(self, model: str | None) -> ServedStudent:
        """Return the student that a request's `model` asks for; where it names none, the run's own or UnknownModel."""
        if model is None or not (model in self.students or self.limits.refuse_other_models):
            return self._own()
        return self._named(model)


def _memory_readiness(student: ServedStudent) -> MemoryReadiness:
    state, reason = student.memory.status
    return MemoryReadiness(status="degraded" if BADNESS[state] else "ready", memory=state, reason=reason)
