"""Texts that wait for the student, and how they share its forwards.

Whatever arrived while the student was busy is its next batch: nobody waits for a timer. A batch is cut into forwards of like
length within a budget of tokens. Two threads work at once: while the student computes one batch, the next one's references are
looked up. The queue is bounded and refuses what would not fit; who gave up waiting is not computed for.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from jobs.config import ServeConfig
from jobs.service.errors import DeadlineExceeded, NotReady, Overloaded
from jobs.service.metrics import Metrics
from jobs.service.schema import Asked
from jobs.service.student import Row, ServedStudent

Result = TypeVar("Result")

IN_FLIGHT = 2
"""Batches: one with the student, one whose references are being looked up."""

STUCK_S = 60.0
"""A batch that takes longer never ends: no look-up and no forward takes a fraction of it."""

SMOOTHING = 0.1
"""Weight of the newest batch in the rate that a refused caller's wait is estimated from."""


@dataclass
class Ticket:
    """One request's texts, and where its rows are put as batches bring them."""

    asked: Sequence[Asked]
    explain: bool
    done: asyncio.Future[list[Row]]
    arrived_s: float
    rows: dict[int, Row] = field(default_factory=dict)

    def put(self, place: int, row: Row) -> None:
        """Take one text's row; the last one answers the request."""
        self.rows[place] = row
        if len(self.rows) == len(self.asked) and not self.done.done():
            self.done.set_result([self.rows[index] for index in range(len(self.asked))])

    def fail(self, error: Exception) -> None:
        """Answer the request with an error."""
        if not self.done.done():
            self.done.set_exception(error)


Waiting = tuple[Ticket, int]
"""A text: whose, and which of theirs."""


async def _in_time(result: asyncio.Future[Result], deadline: float) -> Result:
    """Wait for a result until the event loop's time is `deadline`; who waits longer gets DeadlineExceeded."""
    try:
        async with asyncio.timeout_at(deadline):
            return await result
    except TimeoutError:
        raise DeadlineExceeded("the request's time was over before the student came to it; try again later") from None


class BatchQueue:
    """The queue of one replica. Lives on one event loop.

    `student` may return another one for each batch, and raises NotReady where there is none yet.
    """

    def __init__(self, student: Callable[[], ServedStudent], config: ServeConfig, metrics: Metrics) -> None:
        self._student = student
        self._config = config
        self._metrics = metrics
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._texts_per_s = 100.0
        self._lookup_thread = ThreadPoolExecutor(1, "look-up")
        self._student_thread = ThreadPoolExecutor(1, "student")
        self._loop_task: asyncio.Task[None] | None = None
        self._batches: dict[asyncio.Task[None], float] = {}  # since when

    def start(self) -> None:
        """Begin to answer."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Refuse who still waits, and end."""
        if self._loop_task:
            self._loop_task.cancel()
        for ticket, _ in self._waiting:
            ticket.fail(NotReady("this replica is going; send the request again"))
        await asyncio.gather(*self._batches, return_exceptions=True)
        for thread in (self._lookup_thread, self._student_thread):
            thread.shutdown(wait=False)

    async def ask(self, asked: Sequence[Asked], explain: bool, deadline: float) -> list[Row]:
        """Answer texts in their order. `deadline` is the event loop's time.

        Raises Overloaded where they would not fit, DeadlineExceeded where their time is over first.
        """
        waiting = len(self._waiting)
        if waiting + len(asked) > self._config.max_queued_texts:
            raise Overloaded(
                f"{waiting} texts wait, {len(asked)} more would exceed {self._config.max_queued_texts}; try again later",
                retry_after_s=waiting / self._texts_per_s,
            )
        ticket = Ticket(asked, explain, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.extend((ticket, place) for place in range(len(asked)))
        self._metrics.queued_texts.set(len(self._waiting))
        self._arrived.set()
        return await _in_time(ticket.done, deadline)  # cancelled with its request: the texts are then left out

    async def call_student(self, call: Callable[[ServedStudent], object], deadline: float) -> object:
        """Call something that needs the student to itself, between two batches."""
        student = self._student()
        return await _in_time(asyncio.get_running_loop().run_in_executor(self._student_thread, call, student), deadline)

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
            task = asyncio.get_running_loop().create_task(self._answer(batch, free))
            self._batches[task] = time.monotonic()  # held: a task that nobody holds may be collected
            task.add_done_callback(self._batches.pop)

    async def _take(self) -> list[Waiting]:
        """Wait for texts, and take as many of those that somebody still wants as fit into a batch."""
        batch: list[Waiting] = []
        while not batch:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            if self._config.batch_wait_ms and len(self._waiting) < self._config.max_batch:
                await asyncio.sleep(self._config.batch_wait_ms / 1000)
            while self._waiting and len(batch) < self._config.max_batch:
                ticket, place = self._waiting.popleft()
                if not ticket.done.done():
                    batch.append((ticket, place))
            self._metrics.queued_texts.set(len(self._waiting))
        return batch

    async def _answer(self, batch: list[Waiting], free: asyncio.Semaphore) -> None:
        try:
            await self._compute(batch)
        except Exception as error:  # an edge: whatever it is, each request gets an answer and the queue goes on
            tickets = {id(ticket): ticket for ticket, _ in batch}
            for ticket in tickets.values():
                if len(tickets) == 1:
                    ticket.fail(error)
                    continue
                # One request's text that cannot be computed must not cost the others their answer.
                try:
                    await self._compute([waiting for waiting in batch if waiting[0] is ticket])
                except Exception as own:
                    ticket.fail(own)
        finally:
            free.release()

    async def _compute(self, batch: list[Waiting]) -> None:
        loop, student = asyncio.get_running_loop(), self._student()
        started_s = time.perf_counter()
        oldest_s = min(ticket.arrived_s for ticket, _ in batch)
        self._metrics.queue_s.observe(started_s - oldest_s)
        forwards = await loop.run_in_executor(
            self._lookup_thread,
            student.prepare,
            [ticket.asked[place] for ticket, place in batch],
            [ticket.explain for ticket, _ in batch],
        )
        for forward in forwards:
            rows = await loop.run_in_executor(self._student_thread, student.answer, forward)
            for index, row in zip(forward.places, rows, strict=True):
                ticket, place = batch[index]
                row.queue_ms = 1000 * (started_s - ticket.arrived_s)
                ticket.put(place, row)
        rate = len(batch) / max(time.perf_counter() - started_s, 1e-6)
        self._texts_per_s += SMOOTHING * (rate - self._texts_per_s)
