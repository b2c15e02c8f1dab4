"""Account for the rows of a load: a count for each outcome, and the rejected ones in a file, each with its reason.

The callers, `adoption.py` and ingest, name the outcomes and count each row by them, so that read = the sum of the other
outcomes. They also skip what was deleted from the memory; `say_deleted` only logs how many texts that are.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vector_store.store import Store
from vector_store.writer import Rejection

log = logging.getLogger(__name__)


def letter(reason: str, **row: object) -> str:
    """Return the line of a rejected row in the file of rejected rows: what is known of it, and why."""
    return json.dumps({**row, "reason": reason}) + "\n"


def letter_of(rejection: Rejection) -> str:
    """Return the line of a row whose point the store refused."""
    point = rejection.point
    return letter(rejection.reason, source=point.source, text=point.text)


class RowAccount:
    """What has become of a load's rows so far: `counts` by outcome, and the open file of rejected rows."""

    def __init__(self, outcomes: Sequence[str], dead_letters: TextIO) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(outcomes, 0))
        self._dead_letters = dead_letters

    def add(self, counts: Mapping[str, int], letters: str = "") -> None:
        """Count more rows; `letters` are the lines of the rejected ones among them."""
        self.counts.update(counts)
        self._dead_letters.write(letters)

    def __str__(self) -> str:
        return ", ".join(f"{outcome} {count}" for outcome, count in self.counts.items())


@contextmanager
def row_account(outcomes: Sequence[str], rejected: Path, unread: Path | None = None) -> Iterator[RowAccount]:
    """Account for a load's rows, with a new file `rejected`, and warn of rejected rows at the end.

    It begins with the lines of `unread`: rows that were rejected before the load, which counts them itself.
    """
    rejected.parent.mkdir(parents=True, exist_ok=True)
    rejected.unlink(missing_ok=True)
    if unread:
        shutil.copyfile(unread, rejected)
    with open(rejected, "a", encoding="utf-8") as dead_letters:
        account = RowAccount(outcomes, dead_letters)
        yield account
    if num_rejected := account.counts["rejected"]:
        log.warning("%d rows rejected, with their reasons in %s", num_rejected, rejected)


def say_deleted(store: Store) -> None:
    """Say in one line how many texts were deleted from a memory, which a load does not store again."""
    if deleted := store.deleted_ids():
        log.info(
            "%d texts were deleted from %r and are not stored again; `python -m vector_store readmit` allows it",
            len(deleted), store.config.collection,
        )  # fmt: skip
