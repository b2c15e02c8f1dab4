"""The neighbour plan: which stored points are each training passage's neighbours, looked up once and read ever after.

A plan is one array under the prepared corpus, aligned with its training passages, named by a digest of what decides neighbours:
the memory, its number of points and its term statistics (as many deleted as added can go unnoticed), the criterion, what is
excluded, how many are wanted. Epochs, resumed runs, and other runs with the same digest read that plan; a memory that has grown
since gets a plan of its own. Building one takes a search per passage: a plan pays where training sees a passage more than once,
or waits for searches.
"""

import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from jobs.corpus.prepared import PreparedCorpus
from jobs.memory.store import MemoryAddress
from refbert.atomic import checksum, digest, whole_file
from refbert.config import ReferenceConfig
from refbert.memory.progress import progress
from refbert.memory.retrieval import NeighbourSource, open_retriever
from refbert.memory.texts import ReferenceTexts
from refbert.passages import text_of
from vector_store import term_statistics
from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.pipeline import pipelined
from vector_store.schema import Choice, Manifest
from vector_store.store import Store

CHOICE = np.dtype([("id", np.uint8, (16,)), ("score", "<f4")])
"""A neighbour's UUID in bytes, all zero for none, and its score. A plan holds (passages, references.count) of them."""

BATCH = 32
BATCHES_PER_CHUNK = 64
"""A killed build repeats at most so many."""

FORMAT = 2


class NeighbourPlan:
    """A finished plan, memory-mapped: `choices(rows)` are the neighbours of those training passages."""

    def __init__(self, path: Path) -> None:
        self._rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._rows)

    def choices(self, rows: NDArray[np.int64]) -> list[list[Choice]]:
        """Return the planned neighbours of each of these rows, the best first."""
        return [_unpack(row) for row in self._rows[rows]]


def neighbour_plan(
    store: StoreConfig,
    references: ReferenceConfig,
    address: MemoryAddress,
    corpus: PreparedCorpus,
    texts: ReferenceTexts,
) -> Path:
    """Return the path of the corpus's plan under these options, building or completing it where it is not there.

    The memory must not change meanwhile, and a dense one should have its index built: an approximate search may choose others.
    """
    store = address.of(store)
    with connect(store, address.url) as client:
        path = corpus.directory / "plans" / f"{_digest(store, references, address.manifest, client)}.npy"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                retriever = open_retriever(client, store, texts, references.criterion)
                _build(retriever, references.count, corpus, texts, path)
    return path


def _digest(store: StoreConfig, references: ReferenceConfig, manifest: Manifest, client: Client) -> str:
    """16 hex digits of what decides the neighbours of a prepared corpus.

    The memory's state is its number of points and its published term statistics, read in a moment: points deleted and as many
    others added can go unnoticed, and rows whose point is gone then read the null reference.
    """
    statistics = term_statistics.read(client, store)
    return digest(
        FORMAT,
        ",".join(sorted(store.nodes)),
        store.collection,
        Store(client, store).count(),
        checksum(statistics.to_bytes()),
        manifest.model_dump(mode="json", exclude={"encoder"}),
        references.criterion,
        references.count,
        references.exclude_same_document,
        sorted(references.exclude_splits),
    )


def _build(retriever: NeighbourSource, count: int, corpus: PreparedCorpus, texts: ReferenceTexts, path: Path) -> None:
    """Append chunk by chunk to the scratch file, from where a killed build ended."""
    passages = corpus.table("train")
    shape = passages.num_rows, count
    with (
        whole_file(path, path.with_suffix(".draft")) as scratch,
        scratch.open("ab") as file,
        progress("plan", passages.num_rows, "text") as update,
    ):
        done = _resume(file, shape)
        update(done)

        def choose(start: int) -> list[list[Choice]]:
            rows = passages.slice(start, BATCH).to_pylist()
            asking = [text_of(row) for row in rows]
            ids, mask, _ = texts.tokenize(asking)
            queries = texts.queries(asking, ids, mask, [row["document"] for row in rows])
            return retriever.choices(queries)

        starts = range(done, passages.num_rows, BATCH)
        for number, choices in enumerate(pipelined(choose, starts), start=1):
            file.write(_pack(choices, count))
            if number % BATCHES_PER_CHUNK == 0:
                _sync(file)
            update(len(choices))
        _sync(file)


def _resume(file: BinaryIO, shape: tuple[int, int]) -> int:
    """Leave the file with a header and whole rows only; return how many."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(CHOICE), "fortran_order": False, "shape": shape}
    )
    size = file.seek(0, os.SEEK_END)
    if size < header.tell():
        file.truncate(0)
        file.write(header.getvalue())
        return 0
    row_bytes = shape[1] * CHOICE.itemsize
    done = (size - header.tell()) // row_bytes
    file.truncate(header.tell() + done * row_bytes)
    return done


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _pack(rows: Sequence[Sequence[Choice]], count: int) -> bytes:
    packed = np.zeros((len(rows), count), CHOICE)
    for row, choices in enumerate(rows):
        for rank, choice in enumerate(choices):
            packed[row, rank] = np.frombuffer(uuid.UUID(choice.id).bytes, np.uint8), choice.score
    return packed.tobytes()


def _unpack(row: NDArray[np.void]) -> list[Choice]:
    return [
        Choice(str(uuid.UUID(bytes=entry["id"].tobytes())), float(entry["score"])) for entry in row if entry["id"].any()
    ]
