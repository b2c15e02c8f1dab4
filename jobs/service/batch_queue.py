"""The queue of texts that wait for a student, and how they are batched.

At most two batches are under way, in two threads: while one is computed, references of the next are looked up. Texts that
arrive meanwhile make the next batch, up to serve.max_batch of them; the queue waits for more only if serve.batch_wait_ms says
so. Requests take turns: a single text need not wait for the two thousand of a request before it. A batch is of one student;
several students take turns as their requests do. An explanation runs between two forwards. The queue is bounded: what would not
fit raises Overloaded. A text that still waits when its request is cancelled or times out is not computed. HTTP and gRPC are
served elsewhere (`api`, `grpc_calls`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from jobs.sections import ServeConfig
from jobs.service.errors import DeadlineExceeded, NotReady, Overloaded
from jobs.service.inputs import TextInput
from jobs.service.metrics import Metrics
from jobs.service.student import ServedStudent, TextResult

Result = TypeVar("Result")

IN_FLIGHT = 2
"""Batches: one with the student, one whose references are being looked up."""

STUCK_S = 60.0
"""A batch that takes longer never ends: a look-up and a forward take a fraction of it."""

SMOOTHING = 0.1
"""Weight of the newest batch in the rate that `Retry-After` is estimated from."""


@dataclass
class PendingRequest:
    """One request's texts, and their results as batches bring them."""

    model: str
    """The name of the student that is asked."""
    inputs: Sequence[TextInput]
    explain: bool
    done: asyncio.Future[list[TextResult]]
    arrived_s: float
    taken: int = 0
    """Texts that are in a batch, or were."""
    results: dict[int, TextResult] = field(default_factory=dict)

    def put(self, position: int, result: TextResult) -> None:
        """Take the result of one text; the last one completes the request."""
        self.results[position] = result
        if len(self.results) == len(self.inputs) and not self.done.done():
            self.done.set_result([self.results[position] for position in range(len(self.inputs))])

    def fail(self, error: Exception) -> None:
        """Complete the request with an error."""
        if not self.done.done():
            self.done.set_exception(error)


class QueuedText(NamedTuple):
    """One text of a request, by its position there."""

    request: PendingRequest
    position: int


class BatchQueue:
    """The queue of one replica. Lives on one event loop.

    `student` gives the student of a name, and may give another one for each batch.
    """

    def __init__(self, student: Callable[[str], ServedStudent], config: ServeConfig, metrics: Metrics) -> None:
        self._student = student
        self._config = config
        self._metrics = metrics
        self._queued: deque[PendingRequest] = deque()
        self._num_waiting = 0
        self._arrived = asyncio.Event()
        self._texts_per_s = 100.0
        self._calls, self._call_s = 0, 0.1
        self._lookup_thread = ThreadPoolExecutor(1, "look-up")
        self._student_thread = ThreadPoolExecutor(1, "student")
        self._loop_task: asyncio.Task[None] | None = None
        self._batches: dict[asyncio.Task[None], float] = {}  # since when

    def start(self) -> None:
        """Start computing batches, on the running event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Refuse the requests that still wait, and end."""
        if self._loop_task:
            self._loop_task.cancel()
        for request in self._queued:
            request.fail(NotReady("this replica is shutting down; send the request again"))
        await asyncio.gather(*self._batches, return_exceptions=True)
        for thread in (self._lookup_thread, self._student_thread):
            thread.shutdown(wait=False)

    async def submit(self, model: str, inputs: Sequence[TextInput], explain: bool, deadline: float) -> list[TextResult]:
        """Return what the student `model` says of the texts, in their order. `deadline` is in the event loop's time.

        Raises Overloaded where the texts would not fit, DeadlineExceeded where the deadline passes first.
        """
        waiting = self._num_waiting
        if waiting + len(inputs) > self._config.max_queued_texts:
            raise Overloaded(
                f"{waiting} texts wait, {len(inputs)} more would exceed {self._config.max_queued_texts}; try again later",
                retry_after_s=waiting / self._texts_per_s,
            )
        done = asyncio.get_running_loop().create_future()
        request = PendingRequest(model, inputs, explain, done, time.perf_counter())
        self._queued.append(request)
        self._num_waiting += len(inputs)
        self._metrics.queued_texts.set(self._num_waiting)
        self._arrived.set()
        return await _before(deadline, request.done)  # a cancelled request's future is done: its texts are left out

    async def call_student(self, model: str, call: Callable[[ServedStudent], object], deadline: float) -> object:
        """Call a function that needs the student `model` to itself, between two batches. A call that timed out is not made.

        Raises Overloaded where serve.max_explanations wait or are made, DeadlineExceeded where the deadline passes first.
        """
        student, most = self._student(model), self._config.max_explanations
        if self._calls >= most:
            raise Overloaded(f"{most} explanations wait; try again later", retry_after_s=self._calls * self._call_s)
        self._calls += 1
        started_s = time.perf_counter()
        try:
            result = asyncio.get_running_loop().run_in_executor(self._student_thread, call, student)
            return await _before(deadline, result)
        finally:
            took_s = (time.perf_counter() - started_s) / self._calls
            self._call_s += SMOOTHING * (took_s - self._call_s)
            self._calls -= 1

    def check(self) -> None:
        """Raise RuntimeError where no text will be answered any more: this replica should be replaced."""
        if self._loop_task is None or self._loop_task.done():
            raise RuntimeError("the queue has ended")
        if self._batches and time.monotonic() - min(self._batches.values()) > STUCK_S:
            raise RuntimeError(f"a batch has not ended for {STUCK_S:g} s")

    async def _run(self) -> None:
        free = asyncio.Semaphore(IN_FLIGHT)
        while True:
            await free.acquire()
            batch = await self._take()
            task = asyncio.get_running_loop().create_task(self._complete(batch, free))
            self._batches[task] = time.monotonic()  # held: a task that nobody holds may be collected
            task.add_done_callback(self._batches.pop)

    async def _take(self) -> list[QueuedText]:
        """Wait for texts, and take as many as fit into a batch: one of each request that still waits, in turns.

        The first request says which student's batch it is; those of other students stay before the ones that had their turn.
        """
        batch: list[QueuedText] = []
        others: list[PendingRequest] = []
        while not batch:
            while not self._queued:
                self._arrived.clear()
                await self._arrived.wait()
            if self._config.batch_wait_ms and self._num_waiting < self._config.max_batch:
                await asyncio.sleep(self._config.batch_wait_ms / 1000)
            while self._queued and len(batch) < self._config.max_batch:
                request = self._queued.popleft()
                if request.done.done():
                    self._num_waiting -= len(request.inputs) - request.taken
                    continue
                if batch and request.model != batch[0].request.model:
                    others.append(request)
                    continue
                batch.append(QueuedText(request, request.taken))
                request.taken += 1
                self._num_waiting -= 1
                if request.taken < len(request.inputs):
                    self._queued.append(request)
            self._queued.extendleft(reversed(others))
            self._metrics.queued_texts.set(self._num_waiting)
        return batch

    async def _complete(self, batch: list[QueuedText], free: asyncio.Semaphore) -> None:
        try:
            await self._compute(batch)
        except Exception as error:  # an edge: whatever it is, each request gets an answer and the queue goes on
            requests = {id(request): request for request, _ in batch}
            for request in requests.values():
                if len(requests) == 1:
                    request.fail(error)
                    continue
                # One request's text that cannot be computed must not cost the others their answer.
                try:
                    await self._compute([text for text in batch if text.request is request])
                except Exception as own:
                    request.fail(own)
        finally:
            free.release()

    async def _compute(self, batch: list[QueuedText]) -> None:
        loop, student = asyncio.get_running_loop(), self._student(batch[0].request.model)
        started_s = time.perf_counter()
        self._metrics.queue_s.observe(started_s - min(request.arrived_s for request, _ in batch))
        inputs = [request.inputs[position] for request, position in batch]
        explain = [request.explain for request, _ in batch]
        for prepared in await loop.run_in_executor(self._lookup_thread, student.prepare, inputs, explain):
            results = await loop.run_in_executor(self._student_thread, student.forward, prepared)
            for row, result in zip(prepared.rows, results, strict=True):
                request, position = batch[row]
                request.put(position, replace(result, queue_ms=1000 * (started_s - request.arrived_s)))
        rate = len(batch) / max(time.perf_counter() - started_s, 1e-6)
        self._texts_per_s += SMOOTHING * (rate - self._texts_per_s)


async def _before(deadline: float, result: asyncio.Future[Result]) -> Result:
    """Wait for a result until the event loop's time is `deadline`. Raises DeadlineExceeded after that."""
    try:
        async with asyncio.timeout_at(deadline):
            return await result
    except TimeoutError:
        raise DeadlineExceeded("the request's deadline passed before the student came to it; try again later") from None
