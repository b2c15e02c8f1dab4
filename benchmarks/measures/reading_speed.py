"""What an adapted student costs beside its teacher: time with and without references, bytes on disk and on the wire.

Throughput of whole calls: tokenizing, look-ups beside the forward, correction. Each round asks texts that none before asked.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import refbert
from measures.goals import Goal, Part, Rows, in_turns, median_ratio
from measures.points import load_snippets
from refbert.config import TeacherConfig
from refbert.folder import CORRECTION, WEIGHTS, WORD_TABLE
from refbert.memory.parallel import in_parallel
from refbert.memory.reader import Reader
from refbert.passages import by_length
from refbert.teacher import Teacher, load_teacher
from vector_store.codec import payload_of
from vector_store.config import StoreConfig
from vector_store.schema import Parts
from vector_store.server.files import folder_bytes
from vector_store.store import Store, get_points

BATCH, BATCHES = 32, 8
ROUNDS, QUICK_ROUNDS = 15, 3
SAMPLE = 512
TEACHER, SPREAD = "teacher, a batch on all cores", "teacher, a batch on each core"
ALONE, GLOBAL, READS = "student alone", "+ global part", "+ global part and references"
REPLICA = "+ global part and references of a replica"

NOTE = (
    "Texts are snippets of 32 tokens at most, none of them stored. All contenders run in one process on the same cores, "
    "in turns; the embedded store's server runs beside it, on the same cores too. Bytes are those of the files that inference "
    "needs. Students run a batch on each core; ratios are over the teacher in the form that is faster."
)


@contextmanager
def opened(adapted: Path, store: str) -> Iterator[dict[str, Reader]]:
    """Yield an adapted student as it may be asked, by name: alone, corrected, reading its memory's store, or a replica."""
    with (
        refbert.load(adapted, store, batch=BATCH) as reads,
        refbert.load(adapted, batch=BATCH) as corrected,
        refbert.load(adapted, store, batch=BATCH, replica=True) as replica,
    ):
        alone = refbert.load(adapted, batch=BATCH)
        alone.correction = None
        yield {ALONE: alone, GLOBAL: corrected, READS: reads, REPLICA: replica}


def measure(quick: bool, _folder: Path, adapted: Path, store: str) -> Part:
    """Measure an adapted student's folder beside its teacher and its memory."""
    teacher = load_teacher(TeacherConfig(tokens=32))
    snippets = load_snippets()
    texts = [one.row.text for one in (*snippets.heldout, *snippets.stored)]
    rounds, size = QUICK_ROUNDS if quick else ROUNDS, BATCH * BATCHES
    with opened(adapted, store) as readers:
        taken = timed(teacher, readers, texts, size, rounds)
        reads, replica = readers[READS], readers[REPLICA]
        assert reads.correction is not None
        rungs = dict(reads.source.counts)
        memory = memory_of(reads)
        wire, disk = wire_bytes(memory, reads.correction.reader), disk_bytes(memory, store)
    teachers = min(taken[TEACHER], taken[SPREAD], key=statistics.median)
    files = student_files(adapted)
    rows: Rows = [
        {
            "contender": name,
            "ms per 32": 1000 * statistics.median(seconds) / BATCHES,
            "over the teacher": median_ratio(teachers, seconds),
            "of the student alone": median_ratio(taken[ALONE], seconds),
        }
        for name, seconds in taken.items()
    ]
    goals = [
        Goal("reading_throughput_over_teacher_embedded_store", median_ratio(teachers, taken[READS]), 3.0, ">="),
        Goal("reading_throughput_over_teacher_replica", median_ratio(teachers, taken[REPLICA]), 5.0, ">="),
        Goal("reading_global_part_of_bare_student", median_ratio(taken[ALONE], taken[GLOBAL]), 0.9, ">="),
        Goal("reading_bytes_fewer_than_teacher", 4 * teacher.num_parameters / sum(files.values()), 5.0, ">="),
        Goal("reading_wire_bytes_per_reference", wire, 1200.0, "<="),
    ]
    if disk is not None:
        goals.append(Goal("reading_disk_bytes_per_reference", disk, 4000.0, "<="))
    return Part(
        rows,
        goals,
        NOTE,
        {"files": files, "rungs": rungs, "references": len(replica.source), "batch": BATCH, "rounds": rounds},
    )


def timed(
    teacher: Teacher, readers: Mapping[str, Reader], texts: Sequence[str], size: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of the teacher, in both forms, and of each reader, for `size` texts that none before asked; after a warm-up."""
    encoders: dict[str, Callable[[list[str]], Any]] = {
        TEACHER: lambda some: encode(teacher, some, 1),
        SPREAD: lambda some: encode(teacher, some, torch.get_num_threads()),
        **{name: reader.encode for name, reader in readers.items()},
    }
    contenders = {
        name: lambda turn, call=call: call(list(texts[turn * size : (turn + 1) * size]))
        for name, call in encoders.items()
    }
    for call in contenders.values():
        call(rounds)
    return in_turns(contenders, rounds)


def encode(teacher: Teacher, texts: list[str], workers: int) -> None:
    """Encode texts as a user of the teacher does, batches of like length, so many at once."""
    batches = list(by_length(texts, BATCH))
    for _ in in_parallel(lambda rows: teacher.encode_texts([texts[row] for row in rows]), batches, workers):
        pass


def student_files(folder: Path) -> dict[str, int]:
    """Bytes of a student's weights, and of the word table and the correction where there are such, by file."""
    return {
        name: (folder / name).stat().st_size for name in (WEIGHTS, WORD_TABLE, CORRECTION) if (folder / name).exists()
    }


def memory_of(reads: Reader) -> Store:
    """The store that a reader asks."""
    return Store(reads.source._client, StoreConfig(collection=reads.source._collection))


def wire_bytes(memory: Store, reader: str) -> float:
    """Bytes that one reference takes in an answer."""
    ids = [point.id for point in next(memory.read(Parts(states=False), SAMPLE))]
    request = get_points(memory._name, ids, payload_of(Parts(states=False, vector=True, residual_of=reader)))
    return memory._client.call(memory._client.points.Get, request, 10).ByteSize() / len(ids)


def disk_bytes(memory: Store, store: str) -> float | None:
    """Bytes on disk of one reference with its indexes; None where the store is not a directory here."""
    folder = Path(store) / "collections" / f"c{memory._name}"
    if not folder.is_dir():
        return None
    return folder_bytes(folder) / memory.count()
