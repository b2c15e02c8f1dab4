"""How alike two texts are by an adapted student's answers: STS-B's dev pairs. With a store it counts how many
of their texts are stored.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

import refbert
from measures.goals import Goal, Part, Rows
from measures.peers_quality import similarity, spearman
from measures.reading_quality import teacher_and_words, words_of
from measures.reading_speed import ALONE, GLOBAL, READS, memory_of
from refbert.config import TeacherConfig
from refbert.memory.reader import Reader
from refbert.passages import normalise
from refbert.teacher import load_teacher

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
        readers = {name: opened.enter_context(refbert.load(adapted)) for name in (ALONE, GLOBAL)}
        readers[ALONE].correction = None
        stored = None
        if store:
            readers[READS] = opened.enter_context(refbert.load(adapted, store))
            stored = num_stored(readers[READS], texts)
        teacher = load_teacher(TeacherConfig(tokens=readers[ALONE].max_tokens))
        taught, _ = teacher_and_words(teacher, texts, words_of(teacher, [adapted]))
        said = {name: torch.from_numpy(reader.encode(texts)) for name, reader in readers.items()}
    vectors = {TEACHER: taught, **said}
    found = {name: spearman(some, pairs) for name, some in vectors.items()}
    rows: Rows = [
        {"encoder": name, "spearman": found[name], "cosine": float(F.cosine_similarity(some, taught, dim=1).mean())}
        for name, some in vectors.items()
    ]
    goals = [] if quick else [Goal("reading_general_student_sts_b", found[GLOBAL], WANTED, ">=")]
    return Part(rows, goals, NOTE, {"pairs": len(pairs.alike), "texts": len(texts), "of these stored": stored})


def num_stored(reads: Reader, texts: Sequence[str]) -> int:
    """How many of these texts the memory holds."""
    assert reads.texts is not None
    return len(memory_of(reads).existing([reads.texts.identifier(text) for text in texts]))
