"""How close a student's answers come to its teacher's as more of one corpus is stored: the same sentences asked each time.

Nothing is trained: maps, residuals and neighbours are those of the stored sentences, in closed form.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from measures.goals import Goal, Part, Rows
from measures.reading_quality import (
    ASKED,
    CHUNK,
    NEIGHBOURS,
    fitted_correction,
    read,
    teacher_and_words,
    vectors_alone,
    wikipedia_sentences,
    words_of,
)
from refbert.atomic import digest, whole_file
from refbert.config import TeacherConfig
from refbert.correction import References
from refbert.global_part import GlobalPartOptions
from refbert.global_part import Rows as StoredRows
from refbert.references import WordTable
from refbert.teacher import Teacher, load_teacher

SIZES = (10, 100, 1_000, 10_000, 100_000)
"""References stored, and all that there are."""

COMPARED_AT_ONCE = 50_000

AT_ONCE = 10_000
"""Texts that the teacher reads before what it says is kept."""

NOTE = (
    "Mean cosine to the teacher's vector of 2,000 sentences of Wikipedia that are not stored, means over seeds with their "
    "standard deviation. The student has seen nothing but the snippets. 1,000 landmarks at most; references by words, exactly, "
    "in float16."
)


class Grown(NamedTuple):
    """Cosines at one size of the memory."""

    alone: float
    kernel_map: float
    references: float


def measure(
    quick: bool,
    _folder: Path,
    students: Sequence[Path],
    wikipedia: Path,
    most: int,
    precision: Literal["fp32", "bf16"],
    kept: Path | None,
) -> Part:
    """Measure each student at each size. What the teacher says is kept in the folder `kept`, so that a run can go on."""
    teacher = load_teacher(TeacherConfig(tokens=32, precision=precision))
    sentences = wikipedia_sentences(wikipedia)
    asked, stored = sentences[:ASKED], sentences[ASKED : ASKED + (2_000 if quick else most)]
    sizes = [size for size in SIZES if size < len(stored)] + [len(stored)]
    of_words = words_of(teacher, students)
    (asked_teacher, asked_words), (taught, words) = (
        teacher_and_words_kept(teacher, some, of_words, kept) for some in (asked, stored)
    )
    near = {size: nearest(asked_words, words[:size], min(NEIGHBOURS, size)) for size in sizes}
    found: dict[int, list[Grown]] = {size: [] for size in sizes}
    for seed, student in enumerate(students):
        said, asked_said = vectors_alone(student, teacher, (stored, asked))
        ask = StoredRows(asked_said, asked_words, asked_teacher)
        for size in sizes:
            rows = StoredRows(*(column[:size] for column in (said, words, taught)))
            found[size].append(grown(rows, ask, near[size], seed))
            print(seed, size, *found[size][-1], flush=True)
    table: Rows = [
        {"stored": size, **{name: _cell([getattr(one, name) for one in some]) for name in Grown._fields}}
        for size, some in found.items()
    ]
    return Part(
        table,
        list(goals(found)),
        NOTE,
        {"students": [student.parent.name for student in students], "stored": len(stored), "precision": precision},
    )


def teacher_and_words_kept(
    teacher: Teacher, texts: Sequence[str], table: WordTable, kept: Path | None
) -> tuple[Tensor, Tensor]:
    """Return what `teacher_and_words` does, part by part; a part that is in the folder is read, and else put there."""
    found = []
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        file = kept and kept / f"{digest(teacher.fingerprint, table.rows.shape, *some)}.npz"
        if file and file.exists():
            columns = np.load(file)
            found.append(tuple(torch.from_numpy(columns[name]) for name in ("taught", "words")))
            continue
        taught, words = teacher_and_words(teacher, some, table)
        found.append((taught, words))
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as draft, draft.open("wb") as content:
                np.savez(content, taught=taught.numpy(), words=words.numpy())
        print(f"teacher: {start + len(some):,} of {len(texts):,} texts", file=sys.stderr, flush=True)
    taught, words = (torch.cat(column) for column in zip(*found, strict=True))
    return taught, words


def grown(stored: StoredRows, asked: StoredRows, near: Tensor, seed: int) -> Grown:
    """Fit on what is stored, and answer the asked sentences, whose nearest stored ones are `near` (asked, count)."""
    correction, residuals = fitted_correction(stored, GlobalPartOptions(seed=seed), near.shape[1])
    base = correction.answer(asked.student, asked.words).vector
    reads = base
    if correction.count:
        reads, _ = read(correction, asked, References(stored.teacher, residuals.half().float(), stored.words), near)
    cosines = (F.cosine_similarity(some, asked.teacher, dim=1).mean() for some in (asked.student, base, reads))
    return Grown(*map(float, cosines))


def nearest(asked: Tensor, stored: Tensor, count: int) -> Tensor:
    """Return the `count` stored rows whose words are nearest, (asked, count), comparing with all of them."""
    found = []
    for some in asked.split(CHUNK):
        best = torch.empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.long)
        for start in range(0, len(stored), COMPARED_AT_ONCE):
            part = stored[start : start + COMPARED_AT_ONCE]
            cosines, rows = (some @ part.T).topk(min(count, len(part)))
            cosines, rows = (torch.cat(pair, 1) for pair in zip(best, (cosines, rows + start), strict=True))
            order = cosines.topk(min(count, cosines.shape[1])).indices
            best = cosines.gather(1, order), rows.gather(1, order)
        found.append(best[1])
    return torch.cat(found)


def goals(found: dict[int, list[Grown]]) -> Iterator[Goal]:
    """Yield the goals: more is never worse, within a seed, and nothing is below the student alone."""
    smallest_step = min(
        later.references - earlier.references
        for one, two in pairwise(found.values())
        for earlier, later in zip(one, two, strict=True)
    )
    yield Goal("reading_growth_smallest_step", smallest_step, 0.0, ">=")
    least = min(one.references - one.alone for some in found.values() for one in some)
    yield Goal("reading_growth_least_above_the_student", least, 0.0, ">=")
    added = [
        statistics.fmean(one.references - one.kernel_map for one in found[size]) for size in found if size >= SIZES[-2]
    ]
    for fewer, more in pairwise(added):
        yield Goal("reading_neighbours_add_more_with_more_stored", more - fewer, 0.0, ">=")


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
