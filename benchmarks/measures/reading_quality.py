"""How close a student comes to its teacher on texts that are new to it, by what it reads of its memory. It was trained on one
of the domains, the snippets, at most.

Nothing is trained: every arm is a closed form over the stored texts. Texts that are asked are never stored.
"""

import csv
import json
import random
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import refbert
from measures.goals import Goal, Part, Rows
from measures.points import load_snippets
from refbert.config import TeacherConfig
from refbert.correction import Correction, References, choose_kriging, residuals_of
from refbert.folder import has_word_table, load_word_table
from refbert.global_part import GlobalPartOptions, fit_global_part
from refbert.global_part import Rows as StoredRows
from refbert.memory.reader import Reader
from refbert.metrics import mutual_information
from refbert.references import WordTable, sentence_vector, word_table
from refbert.teacher import Teacher, load_teacher
from vector_store.codec import pack_vector, unpack_vector

NEIGHBOURS, MORE_NEIGHBOURS = 16, 64
NEAR = (-1.0, 0.6, 0.7, 0.8, 0.9, 1.1)
"""Bounds of the nearest reference's nearness, by which some arms are divided."""

FEWEST_NEAR = 50
"""Fewest texts of such a part."""

WIKIPEDIA_STORED, ASKED = 20_000, 2_000
CHUNK = 512
POOL = 1_000
MORE_NATS = 0.05
"""Mutual information that references are to add to the student alone."""

ADDED = {"banking77": 0.012, "clinc150": 0.03, "wikipedia": 0.015}
"""Cosine that 16 neighbours are to add to the kernel map."""

NOTE = (
    "cosine: mean cosine to the teacher's vector of texts that are not stored. nn10: share of the teacher's ten nearest stored "
    "texts among those of the arm. intent: share whose nearest stored text, in the teacher's index, has the right intent. "
    "nats: InfoNCE bound of the mutual information with the teacher over pools of 1,000 texts. The student has not seen a text "
    "of any domain but the snippets'. References are chosen by words, exactly, and kept in 8 bits. Cells are means over seeds "
    "with their standard deviation: another student, other landmarks."
)


class Domain(NamedTuple):
    """Texts to store and texts to ask; `labels` of both where they have intents."""

    name: str
    stored: list[str]
    asked: list[str]
    labels: tuple[list[str], list[str]] | None = None


class Scores(NamedTuple):
    """What an arm's answers are worth."""

    cosine: float
    nn10: float
    intent: float | None
    nats: float


def domains(intents: Path | None, wikipedia: Path | None, quick: bool) -> Iterator[Domain]:
    """Yield the snippets, and those domains whose files are given."""
    snippets = load_snippets()
    stored, asked = ([one.row.text for one in some] for some in (snippets.stored, snippets.heldout))
    yield Domain("snippets", stored[:4000] if quick else stored, asked[:ASKED])
    if intents:
        rows = {part: list(csv.DictReader((intents / f"banking77_{part}.csv").open())) for part in ("train", "test")}
        texts, labels = ([[row[column] for row in rows[part]] for part in rows] for column in ("text", "category"))
        yield Domain("banking77", texts[0], texts[1], (labels[0], labels[1]))
        parts = json.loads((intents / "clinc150_full.json").read_text())
        texts, labels = ([[row[column] for row in parts[part]] for part in ("train", "test")] for column in (0, 1))
        yield Domain("clinc150", texts[0], texts[1], (labels[0], labels[1]))
    if wikipedia:
        sentences = wikipedia_sentences(wikipedia)
        yield Domain("wikipedia", sentences[ASKED : ASKED + WIKIPEDIA_STORED], sentences[:ASKED])


def wikipedia_sentences(file: Path) -> list[str]:
    """Distinct sentences of 30 to 300 characters of a file with one paragraph a line, in random order."""
    found: dict[str, None] = {}
    for line in file.open():
        if not line.startswith("="):
            sentences = re.split(r"(?<=[.!?]) +(?=[A-Z])", line.strip())
            found.update((sentence, None) for sentence in sentences if 30 <= len(sentence) <= 300)
    every = list(found)
    random.Random(0).shuffle(every)
    return every


def measure(quick: bool, _folder: Path, students: Sequence[Path], intents: Path | None, wikipedia: Path | None) -> Part:
    """Measure every arm on every domain, for each student."""
    teacher = load_teacher(TeacherConfig(tokens=32))
    found: dict[tuple[str, str], list[Scores]] = {}
    for domain in domains(intents, wikipedia, quick):
        parts = domain.stored, domain.asked
        said = [teacher_and_words(teacher, texts, words_of(teacher, students)) for texts in parts]
        for seed, student in enumerate(students):
            stored, asked = (
                StoredRows(vectors, words, taught)
                for vectors, (taught, words) in zip(vectors_alone(student, teacher, parts), said, strict=True)
            )
            for arm, answers, some in arms(stored, asked, seed):
                score = scores(answers, stored.teacher, asked.teacher, domain.labels, some)
                found.setdefault((domain.name, arm), []).append(score)
                print(domain.name, seed, arm, *score, flush=True)
    rows: Rows = [{"domain": name, "arm": arm, **shown(some)} for (name, arm), some in found.items()]
    return Part(
        rows,
        list(goals(found)),
        NOTE,
        {"students": [student.parent.name for student in students], "landmarks": GlobalPartOptions().landmarks},
    )


def arms(stored: StoredRows, asked: StoredRows, seed: int) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield each arm with its answers (asked, dim), and of some the rows asked: by how near the nearest reference is."""
    yield "teacher", asked.teacher, None
    yield "student alone", asked.student, None
    nearest = torch.cat([(some @ stored.words.T).topk(MORE_NEIGHBOURS).indices for some in asked.words.split(CHUNK)])
    yield "cache: the nearest text's vector", stored.teacher[nearest[:, 0]], None
    for name, options in (
        ("linear map", GlobalPartOptions(landmarks=0, seed=seed)),
        ("kernel map", GlobalPartOptions(seed=seed)),
    ):
        correction, residuals = fitted_correction(stored, options, NEIGHBOURS)
        correction = replace(correction, count=MORE_NEIGHBOURS)  # read, whatever left-out rows say
        residuals = as_stored(residuals)
        references = References(as_stored(stored.teacher), residuals, stored.words)
        base = correction.answer(asked.student, asked.words).vector
        yield name, base, None
        for count in (NEIGHBOURS, MORE_NEIGHBOURS):
            answers, nearness = read(correction, asked, references, nearest[:, :count])
            yield f"{name} + {count} neighbours", answers, None
            if name == "kernel map" and count == NEIGHBOURS:
                for low, high in pairwise(NEAR):
                    some = (nearness >= low) & (nearness < high)
                    if some.sum() >= FEWEST_NEAR:
                        for arm, said in ((name, base), (f"{name} + {count} neighbours", answers)):
                            yield f"{arm}, nearest at {low} to {min(high, 1.0)}", said, some
        if name == "kernel map":
            shuffled = residuals[torch.randperm(len(residuals), generator=torch.Generator().manual_seed(seed))]
            random_ones = references._replace(residuals=shuffled)
            yield (
                f"{name} + {NEIGHBOURS} random residuals",
                read(correction, asked, random_ones, nearest[:, :NEIGHBOURS])[0],
                None,
            )


def fitted_correction(stored: StoredRows, options: GlobalPartOptions, count: int) -> tuple[Correction, Tensor]:
    """Fit on what is stored; return the correction, which reads up to `count` references, and residuals (stored, dim)."""

    def chunks() -> Iterator[StoredRows]:
        return (
            StoredRows(*(column[start : start + CHUNK] for column in stored))
            for start in range(0, len(stored.teacher), CHUNK)
        )

    fitted = fit_global_part(chunks, options)
    left_out = [residuals_of(fitted, rows) for rows in chunks()]
    kriging = choose_kriging(fitted.part, lambda: iter(left_out), count, seed=options.seed)
    correction = Correction("", "", fitted.part, kriging.tau, kriging.noise, kriging.references)
    return correction, torch.cat([rows.residual for rows in left_out]) * fitted.part.teacher_norm


def read(correction: Correction, asked: StoredRows, references: References, found: Tensor) -> tuple[Tensor, Tensor]:
    """Return the answers of asked texts that read these references (asked, count), and how near the nearest was."""
    answers = [
        correction.answer(
            asked.student[rows], asked.words[rows], References(*(column[found[rows]] for column in references))
        )
        for rows in torch.arange(len(found)).split(CHUNK)
    ]
    return torch.cat([one.vector for one in answers]), torch.cat([one.nearness for one in answers])


def as_stored(vectors: Tensor) -> Tensor:
    """Return vectors as they come back from a memory that keeps 8 bits of each number."""
    rows = [unpack_vector(pack_vector(row, "int8"), len(row), "int8") for row in vectors.numpy()]
    return torch.from_numpy(np.stack(rows))


def scores(
    answers: Tensor, stored: Tensor, asked: Tensor, labels: tuple[list[str], list[str]] | None, some: Tensor | None
) -> Scores:
    """Compare answers with the teacher's vectors of the asked texts, or of `some`, and by what each finds in its index."""
    if some is not None:
        answers, asked = answers[some], asked[some]
        labels = labels and (
            labels[0],
            [label for label, is_one in zip(labels[1], some.tolist(), strict=True) if is_one],
        )
    wanted, found = (nearest_ten(some, stored) for some in (asked, answers))
    return Scores(
        float(F.cosine_similarity(answers, asked, dim=1).mean()),
        shared(wanted, found),
        intent_accuracy(found, labels),
        mutual_information(answers, asked, POOL),
    )


def nearest_ten(asked: Tensor, index: Tensor) -> Tensor:
    """Return the ten rows of an index that are nearest to each vector (asked, dim) by cosine, the best first: (asked, 10)."""
    return (F.normalize(asked, dim=1) @ F.normalize(index, dim=1).T).topk(10).indices


def shared(wanted: Tensor, found: Tensor) -> float:
    """The share of wanted rows (asked, 10) that were found (asked, 10)."""
    return float((wanted[:, :, None] == found[:, None, :]).any(2).float().mean())


def intent_accuracy(found: Tensor, labels: tuple[list[str], list[str]] | None) -> float | None:
    """The share of asked texts whose first found row has their label; None without labels of stored and asked texts."""
    if not labels:
        return None
    of_stored, of_asked = (np.array(some) for some in labels)
    return float((of_stored[found[:, 0].numpy()] == of_asked).mean())


def goals(found: dict[tuple[str, str], list[Scores]]) -> Iterator[Goal]:
    """Yield the goals of the domains that were measured."""

    def mean(domain: str, arm: str, figure: Callable[[Scores], Any] = lambda one: one.cosine) -> float:
        return statistics.fmean(map(figure, found[domain, arm]))

    read_arm = f"kernel map + {NEIGHBOURS} neighbours"
    for domain, least in ADDED.items():
        if (domain, read_arm) in found:
            added = mean(domain, read_arm) - mean(domain, "kernel map")
            yield Goal(f"reading_neighbours_add_{domain}", added, least, ">=")
            by_chance = mean(domain, f"kernel map + {NEIGHBOURS} random residuals") - mean(domain, "kernel map")
            yield Goal(f"reading_random_residuals_add_{domain}", by_chance, 0.0, "<=")
            nats = mean(domain, read_arm, lambda one: one.nats) - mean(domain, "student alone", lambda one: one.nats)
            yield Goal(f"reading_mutual_information_adds_{domain}", nats, MORE_NATS, ">=")
            if domain != "wikipedia":
                gap = mean(domain, "teacher", lambda one: one.intent) - mean(domain, read_arm, lambda one: one.intent)
                yield Goal(f"reading_intent_below_teacher_{domain}", gap, 0.01, "<=")


def shown(some: Sequence[Any]) -> dict[str, str]:
    """Means over seeds with their spread, of `Scores` or another tuple with names."""

    def cell(values: Iterable[float | None]) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return "-"
        spread = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
        return f"{statistics.fmean(known):.4f}{spread}"

    return {name: cell(getattr(one, name) for one in some) for name in some[0]._fields}


def words_of(teacher: Teacher, students: Sequence[Path]) -> WordTable:
    """The word table that students find references with: their own, which is the same for all, or the teacher's."""
    if students and has_word_table(students[0]):
        return load_word_table(students[0])
    return word_table(teacher.static_vectors())


def teacher_and_words(teacher: Teacher, texts: Sequence[str], table: WordTable) -> tuple[Tensor, Tensor]:
    """The teacher's sentence vectors (texts, dim), the mean of its states, and word vectors (texts, words_dim) of length 1."""
    special = sorted(teacher.tokenizer.all_special_ids)
    vectors, words = (np.empty((len(texts), width), np.float32) for width in (teacher.dim, table.dim))
    for row, token_ids, states in teacher.encode_one_by_one(texts):
        vectors[row] = states.astype(np.float32).mean(0)
        words[row] = sentence_vector(token_ids, special, table)
    return torch.from_numpy(vectors), torch.from_numpy(words)


def vectors_alone(student: Path, teacher: Teacher, parts: Sequence[Sequence[str]]) -> list[Tensor]:
    """The student's own vectors of each part's texts, as long as it makes them, whatever it was adapted to."""
    with refbert.load(student, tokens=teacher.config.tokens) as reader:
        reader.correction = None
        return [student_vectors(reader, texts) for texts in parts]


def student_vectors(reader: Reader, texts: Sequence[str]) -> Tensor:
    """The student's sentence vectors (texts, dim), as long as it makes them."""
    vectors = torch.empty(len(texts), reader.model.config.dim)
    for forward in reader.forwards(texts):
        vectors[forward.rows] = forward.output.sentence_embedding
    return vectors
