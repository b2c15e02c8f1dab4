"""Measure a student that was adapted to a memory as it answers: alone, corrected without a look-up, and with references.

Beside them two controls, which read the same references: other texts' residuals in the place of theirs, and the nearest one's
own vector as the answer.
"""

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.config import RunConfig
from jobs.memory.gain import ANSWERS, CONTROLS, Answered, answered, teacher_vectors
from jobs.memory.store import patient_store
from jobs.sections import EvaluateConfig
from refbert.correction import Correction
from refbert.correction_files import correction_in
from refbert.errors import InputError
from refbert.folder import WEIGHTS, WORD_TABLE, load_correction
from refbert.memory.opening import beside_version
from refbert.memory.reader import Reader, text_tokens
from refbert.memory.retrieval import NeighbourSource, open_retriever
from refbert.memory.version import MemoryVersion, current_version, memory_it_is_of
from refbert.metrics import mutual_information, retrieval_top1
from refbert.passages import text_of
from refbert.teacher import Teacher, load_tokenizer
from vector_store.client import Client
from vector_store.store import Store

log = logging.getLogger(__name__)

NEAR = (-1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bounds of the nearest reference's nearness, by which answers are told apart."""


class CorrectedStudent(NamedTuple):
    """An adapted student in its parts: `reading` its references, `alone` with the maps only, and beside `random` references."""

    reading: Reader
    without_store: Reader
    random: NeighbourSource
    version: MemoryVersion
    store: Store


def collection_of(folder: Path) -> str | None:
    """Return the name of the memory that a student was adapted to last; None where it never was."""
    correction = load_correction(folder)
    return memory_it_is_of(correction)[0] if correction else None


def open_corrected(config: RunConfig, folder: Path, model: Any, teacher: Teacher, client: Client) -> CorrectedStudent:
    """Open an adapted student beside its memory's current version; `model` is its encoder.

    Raises InputError where another teacher wrote the memory, CollectionMismatch where it corrects this student no more.
    """
    tokenizer = load_tokenizer(str(folder))
    correction, words = correction_in(folder, tokenizer.all_special_ids)
    assert correction is not None
    assert words is not None
    store = patient_store(config.store).model_copy(update={"collection": memory_it_is_of(correction)[0]})
    version = current_version(client, store, correction.student)
    if version.manifest.fingerprint != teacher.fingerprint:
        raise InputError(
            f"{folder} was adapted to memory {store.collection!r}, which teacher {version.manifest.encoder} wrote, and "
            f"teacher.model={config.teacher.model} is another one; name the memory's teacher"
        )
    budget = text_tokens(model.config) or config.teacher.tokens
    without_store = Reader(
        model, tokenizer, budget, correction=version.correction, words=words, batch=config.evaluate.batch, strict=True,
    )  # fmt: skip
    reading = beside_version(without_store, folder, client, version, keyed=False)
    assert reading.texts is not None
    random = open_retriever(client, version.store, reading.texts, "random", version.parts())
    return CorrectedStudent(reading, without_store, random, version, Store(client, version.store))


def measure_corrected(
    student: CorrectedStudent, teacher: Teacher, rows: list[dict[str, Any]], options: EvaluateConfig
) -> Iterator[Answered | dict[str, Any]]:
    """Answer held-out rows in every way; yields each batch, and last what the report says of them.

    Rows that are stored are left out, with a warning. Raises InputError where all are.
    """
    asked = unseen(student, rows)
    texts = [text_of(row) for row in asked]
    wanted = teacher_vectors(teacher, texts)
    vectors = {name: torch.empty_like(wanted) for name in (*ANSWERS, *CONTROLS)}
    nearness, variance = torch.empty(len(texts)), torch.empty(len(texts))
    for some in answered(student.reading, texts, [row["document"] for row in asked], student.random):
        for name, of_texts in some.vectors.items():
            vectors[name][some.rows] = of_texts
        nearness[some.rows], variance[some.rows] = some.nearness, some.variance
        yield some
    correction = student.version.correction
    yield {
        "collection": student.version.store.collection,
        "version": correction.version,
        "points": student.store.count(),
        "references_per_text": correction.count,
        "texts": len(texts),
        "pool": min(options.pool, len(texts)),
        "answers": {name: compared(of_texts, wanted, options.pool) for name, of_texts in vectors.items()},
        "nearness": by_nearness(vectors, wanted, nearness, variance),
    }


def unseen(student: CorrectedStudent, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows whose texts the memory does not hold."""
    assert student.reading.texts is not None
    ids = [student.reading.texts.identifier(text_of(row)) for row in rows]
    stored = student.store.existing(ids)
    kept = [row for row, identifier in zip(rows, ids, strict=True) if identifier not in stored]
    collection = student.version.store.collection
    if stored:
        log.warning("%d of %d held-out texts are in memory %r: left out", len(rows) - len(kept), len(rows), collection)
    if not kept:
        raise InputError(
            f"every held-out text is stored in memory {collection!r}, which the student was adapted to; give a corpus with "
            "texts that it does not hold (corpus.path=...)"
        )
    return kept


def compared(answers: Tensor, wanted: Tensor, pool: int) -> dict[str, float]:
    """Return how close answers are to the teacher's vectors, both (texts, dim)."""
    return {
        "sentence_cosine": float(F.cosine_similarity(answers, wanted, dim=-1).mean()),
        "mutual_information_nats": mutual_information(answers, wanted, pool),
        "retrieval_top1": retrieval_top1(answers, wanted),
    }


def by_nearness(
    vectors: dict[str, Tensor], wanted: Tensor, nearness: Tensor, variance: Tensor
) -> list[dict[str, float]]:
    """Return the mean cosines of texts whose nearest reference is within some bounds, the farthest first."""
    cosines = {name: F.cosine_similarity(vectors[name], wanted, dim=-1) for name in ANSWERS}
    found = []
    for low, high in pairwise(NEAR):
        is_here = (nearness >= low) & ((nearness < high) | (high == NEAR[-1]))
        if is_here.any():
            means = {name: float(of_texts[is_here].mean()) for name, of_texts in cosines.items()}
            count, mean = int(is_here.sum()), float(variance[is_here].mean())
            found.append({"from": low, "to": high, "texts": count, "variance": mean, **means})
    return found


def size_of(folder: Path, model: Any, correction: Correction, words: Any) -> dict[str, int]:
    """Return what inference needs: `params`, numbers of all kinds, and the `bytes` of weights, word table and correction."""
    table = folder / WORD_TABLE
    has_own_table = table.exists()  # else the student's embeddings are the table
    numbers = sum(buffer.numel() for buffer in correction.part.buffers())
    numbers += words.rows.numel() + words.scales.numel() if has_own_table else 0
    return {
        "params": model.num_stored + numbers,
        "weights_bytes": (folder / WEIGHTS).stat().st_size,
        "words_bytes": table.stat().st_size if has_own_table else 0,
        "correction_bytes": correction.num_bytes,
    }
