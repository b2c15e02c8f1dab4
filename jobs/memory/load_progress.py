"""Progress of a load: one number per chunk of the corpus, in a file that survives a killed job.

A chunk is up to ingest.batch distinct training texts, those of one encoder call. A chunk's number is how many points it wrote,
plus one; 0 while it is not done. A chunk counts as done only when the store has acknowledged all of it; a job that resumes the
load with the same ingest.batch then neither reads that chunk again nor asks the store for it.
"""

import json
import logging
import uuid
from typing import Any

import numpy as np

from jobs.corpus.prepared import PreparedCorpus
from refbert.atomic import whole_file
from vector_store.store import Store

log = logging.getLogger(__name__)

LOAD = "load"
"""Name under which a collection keeps which load it had last, and how that ended."""


class LoadProgress:
    """The chunks of one load. Of the driver only."""

    def __init__(self, corpus: PreparedCorpus, chunk_texts: int, load: str, points_before: int) -> None:
        self.corpus, self.chunk_texts = corpus, chunk_texts
        self.load, self.points_before = load, points_before
        self.path = corpus.directory / "loads" / f"{load}-{chunk_texts}.npy"
        self._chunks = self._open()

    @property
    def pending(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The numbers of the chunks that are not done."""
        return np.flatnonzero(self._chunks == 0)

    @property
    def done_texts(self) -> int:
        """Texts of the chunks that are done."""
        done = np.flatnonzero(self._chunks)
        last = len(self._chunks) - 1
        missing = len(self._chunks) * self.chunk_texts - self.corpus.counts.distinct
        return len(done) * self.chunk_texts - (missing if last in done else 0)

    @property
    def written(self) -> int:
        """Points that the done chunks have written."""
        return int((self._chunks[self._chunks > 0] - 1).sum())

    def finish(self, chunk: int, written: int) -> None:
        """Note that a chunk is stored whole. A note that a power cut loses only means that the chunk is looked up again."""
        self._chunks[chunk] = written + 1

    def forget(self) -> None:
        """Remove the load's files, those of other chunk sizes too: it is complete."""
        for path in self.path.parent.glob(f"{self.load}-*.npy"):
            path.unlink()

    def state(self, state: str, points: int, counts: dict[str, int]) -> bytes:
        """Return the load's state as the JSON that the collection keeps."""
        return json.dumps(
            {
                "corpus": self.corpus.directory.name,
                "state": state,
                "points": points,
                "load": self.load,
                "points_before": self.points_before,
                **counts,
            }
        ).encode()

    def _open(self) -> np.memmap[Any, np.dtype[np.uint32]]:
        if not self.path.exists():
            self.path.parent.mkdir(exist_ok=True)
            num_chunks = -(-self.corpus.counts.distinct // self.chunk_texts)
            with whole_file(self.path) as scratch:
                np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint32, shape=(num_chunks,))
        return np.lib.format.open_memmap(self.path, mode="r+")


def load_progress(store: Store, corpus: PreparedCorpus, chunk_texts: int) -> LoadProgress:
    """Resume the collection's last load where it was of this corpus and did not end, else begin a new one.

    Where points have been deleted since, a new one begins: every text is then looked up again.
    """
    found = load_state(store)
    points = store.count()
    if (found.get("corpus"), found.get("state")) == (corpus.directory.name, "loading") and "load" in found:
        progress = LoadProgress(corpus, chunk_texts, found["load"], found["points_before"])
        if points >= progress.points_before + progress.written:
            return progress
        log.warning("points were deleted since the load was cut off: every text is looked up again")
        progress.forget()
    return LoadProgress(corpus, chunk_texts, uuid.uuid4().hex, points)


def load_state(store: Store) -> dict[str, Any]:
    """Read what a collection says of its last load; nothing where there was none."""
    content = store.attachment(LOAD)
    return json.loads(content) if content else {}


def is_filled(store: Store, corpus: PreparedCorpus) -> bool:
    """Whether the collection's last load was of this corpus, came to its end, and nothing was added or deleted since."""
    state = load_state(store)
    return (state.get("corpus"), state.get("state"), state.get("points")) == (
        corpus.directory.name, "complete", store.count(),
    )  # fmt: skip
