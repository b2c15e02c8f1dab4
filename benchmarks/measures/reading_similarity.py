"""How alike two texts are by an adapted student's answers: STS-B, of which no text was trained on or stored."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import refbert
from measures.goals import Goal, Part, Rows
from measures.peers_quality import similarity
from measures.reading_speed import ALONE, GLOBAL, READS, memory_of
from refbert.config import TeacherConfig
from refbert.memory.reader import Reader
from refbert.passages import normalise
from refbert.scores import score
from refbert.teacher import Teacher, load_teacher

TEACHER = "teacher"
WANTED = 0.83
QUICK_PAIRS = 200

NOTE = (
    "Spearman's correlation of cosines with what people said of STS-B's dev pairs, and the mean cosine to the teacher's vector "
    "of their texts. The student answers as its folder says: its global part was fitted on the memory that it was adapted to."
)


def measure(quick: bool, _folder: Path, adapted: Path, store: str | None, sts_b: Path) -> Part:
    """Measure an adapted student's folder, and beside its store what references add."""
    domain, pairs = similarity(sts_b, QUICK_PAIRS if quick else None)
    texts = [normalise(text) for text in domain.asked]
    with contextlib.ExitStack() as opened:
        corrected = opened.enter_context(refbert.load(adapted))
        alone = opened.enter_context(refbert.load(adapted))
        alone.correction = None
        encoders: dict[str, Callable[[Sequence[str]], NDArray[Any]]] = {
            TEACHER: lambda some: encoded(teacher, some),
            ALONE: alone.encode,
            GLOBAL: corrected.encode,
        }
        stored = None
        if store:
            reads = opened.enter_context(refbert.load(adapted, store))
            encoders[READS] = reads.encode
            stored = num_stored(reads, texts)
        teacher = load_teacher(TeacherConfig(tokens=corrected.max_tokens))
        vectors = {name: encode(texts) for name, encode in encoders.items()}
    found = {
        name: score(["spearman"], pairs.alike, (some[pairs.first] * some[pairs.second]).sum(1))["spearman"]
        for name, some in vectors.items()
    }
    rows: Rows = [
        {"encoder": name, "spearman": found[name], "cosine": float((some * vectors[TEACHER]).sum(1).mean())}
        for name, some in vectors.items()
    ]
    goals = [] if quick else [Goal("reading_general_student_sts_b", found[GLOBAL], WANTED, ">=")]
    return Part(rows, goals, NOTE, {"pairs": len(pairs.alike), "texts": len(texts), "of these stored": stored})


def encoded(teacher: Teacher, texts: Sequence[str]) -> NDArray[np.float32]:
    """The teacher's sentence vectors, (texts, dim), of length 1."""
    means = [states.astype(np.float32).mean(0) for _, states in teacher.encode_texts(list(texts))]
    return torch.nn.functional.normalize(torch.from_numpy(np.stack(means)), dim=1).numpy()


def num_stored(reads: Reader, texts: Sequence[str]) -> int:
    """How many of these texts the memory holds."""
    assert reads.texts is not None
    return len(memory_of(reads).existing([reads.texts.identifier(text) for text in texts]))
