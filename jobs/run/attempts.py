"""Work that kills its process: after three deaths a batch is set aside, its rows named; a start or a file's part ends the job.

Ray starts a dead actor or task anew with the same batch, as often as it takes, and says so only in a log that
jobs/run/session.py quiets. So workers note in a folder of the run, or of the corpus, what they are about to do (`Attempts`). A
process that finds a note of this job about its batch knows that another died at it. The driver judges what was set aside
(`SetAside`): a few batches are rejected rows; three one after another, or all that there were, are the machine's fault, and
end the job.
"""

import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Self, TypeVar

from refbert.errors import UnavailableError

log = logging.getLogger(__name__)

Piece = TypeVar("Piece")

DEATHS = 3
"""Processes that may die at one batch."""

IN_A_ROW = 3
"""Batches set aside one after another, with none finished between them, after which it is the machine."""


@dataclass(frozen=True)
class Attempts:
    """Notes of one job's workers, a file for each batch under way. A job started anew counts from zero."""

    folder: Path
    job: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of_run(cls, run_directory: Path) -> Self:
        """Those of a job that begins now."""
        return cls(run_directory / "attempts")

    @contextmanager
    def at(self, work: str) -> Iterator[int]:
        """Note that this process is at `work` meanwhile; yields how many processes of this job have died at it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / work
        died = file.read_text().split().count(self.job) if file.exists() else 0
        if 0 < died < DEATHS:
            log.warning("the process at %s died; trying again, %d of %d times", work, died, DEATHS - 1)
        file.write_text(f"{self.job}\n" * (died + 1))
        try:
            yield died
        finally:  # of an exception too: that is no death
            file.unlink(missing_ok=True)

    @contextmanager
    def at_start(self, what: str) -> Iterator[None]:
        """Note that this actor starts. Raises UnavailableError where its process has died at that too often."""
        import ray  # here: `--show` waits for no Ray

        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        with self.at(f"start-{actor}") as died:
            if died >= DEATHS:
                raise UnavailableError(
                    f"{what} died {died} times while it started: is the machine out of memory? See the end of `dmesg` there, "
                    "free some, and start the same command again"
                )
            yield

    def close(self) -> None:
        """Remove the folder where nobody has a note in it."""
        with suppress(OSError):
            self.folder.rmdir()


def watched(pieces: Iterable[Piece], attempts: Attempts, work: str, what: str, first: int = 0) -> Iterator[Piece]:
    """Yield what a reader makes piece by piece, each as an attempt of its own; `first` is the first one's number.

    Raises UnavailableError where too many processes have died at the same piece: a reader cannot leave one out.
    """
    source = iter(pieces)
    for number in count(first):
        with attempts.at(f"{work}-{number}") as died:
            if died >= DEATHS:
                raise UnavailableError(
                    f"{what}: {died} processes died while they read its part {number + 1}: is the machine out of memory, or "
                    "the file damaged? See the end of `dmesg`, and start the same command again: what is done is kept"
                )
            try:
                piece = next(source)
            except StopIteration:
                return
        yield piece


NONE_FINISHED = "no other batch was finished"


class SetAside:
    """The driver's account of batches that were set aside; `has_finished` says whether any batch was finished before."""

    def __init__(self, what: str, remedy: str, has_finished: bool) -> None:
        self._what, self._remedy = what, remedy
        self._has_finished = has_finished
        self._in_a_row: list[str] = []

    def finished(self) -> None:
        """Count a batch that was finished."""
        self._has_finished = True
        self._in_a_row.clear()

    def add(self, rows: str) -> None:
        """Say which rows were set aside. Raises UnavailableError where no other batch was finished for too long."""
        log.warning("%s set aside: %d processes died at them", rows, DEATHS)
        self._in_a_row.append(rows)
        if len(self._in_a_row) >= IN_A_ROW:
            raise self._of_the_machine("none between them was finished" if self._has_finished else NONE_FINISHED)

    def judge(self) -> None:
        """Raise UnavailableError where no batch was finished at all; called at the end."""
        if self._in_a_row and not self._has_finished:
            raise self._of_the_machine(NONE_FINISHED)

    def _of_the_machine(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"{self._what} died {DEATHS} times at {'; '.join(self._in_a_row)}, and {why}: is the machine out of memory? "
            f"{self._remedy}, and start the same command again: what is done is kept"
        )
