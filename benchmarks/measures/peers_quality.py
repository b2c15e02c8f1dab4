"""How near peers and students come to the teacher: cosine, the teacher's own neighbours, 1-NN intents, STS-B's Spearman.

Students are corrected in closed form by each domain's stored texts. Texts that are asked are never stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from measures.goals import Rows
from measures.peers import CACHE, TEACHER, Peer
from measures.reading_quality import (
    CHUNK,
    NEIGHBOURS,
    Domain,
    as_stored,
    domains,
    fitted_correction,
    intent_accuracy,
    nearest_ten,
    read,
    shared,
    shown,
    teacher_and_words,
    vectors_alone,
    words_of,
)
from measures.reading_speed import ALONE, GLOBAL, READS, REPLICA
from refbert.config import TaskConfig
from refbert.correction import References
from refbert.global_part import GlobalPartOptions
from refbert.global_part import Rows as StoredRows
from refbert.passages import normalise
from refbert.scores import score
from refbert.tasks import load_task
from refbert.teacher import Teacher

STS_B = "sts_b"
STORED, ASKED = 6_000, 2_000
"""Texts of a domain, drawn once: every encoder reads all of them, and half of the encoders are as slow as the teacher."""

QUICK_STORED, QUICK_ASKED = 300, 100

NOTE = (
    "cosine: mean cosine to the teacher's vector of texts that are not stored; none for an encoder with a space of its own. "
    "nn10: share of the teacher's ten nearest stored texts that are found. intent: share whose nearest stored text has the "
    "right intent. spearman: STS-B's dev pairs. Students and the cache have the teacher's vectors of the stored texts, and "
    "look there; all others, and the student alone, have an index of their own vectors. Students were trained on the snippets "
    "and have seen no text of another domain: what is stored corrects them in closed form. A replica answers as its store "
    f"does. At most {STORED:,} texts of a domain are stored and {ASKED:,} asked, drawn at random; of STS-B its training texts "
    "and all of dev's pairs. Cells of students are means over seeds with their standard deviation."
)


class Quality(NamedTuple):
    """What an encoder's answers are worth on a domain."""

    cosine: float | None
    nn10: float
    intent: float | None
    spearman: float | None


class Pairs(NamedTuple):
    """Pairs of asked texts, by their numbers, and how alike people find them."""

    first: list[int]
    second: list[int]
    alike: list[float]


Found = dict[tuple[str, str], list[Quality]]
"""Of each domain and encoder, one for each seed."""


def measure_quality(
    quick: bool,
    teacher: Teacher,
    peers: Mapping[str, Peer],
    students: Sequence[Path],
    intents: Path | None,
    sts_b: Path | None,
) -> Found:
    """Measure every peer and every student on every domain whose files are given."""
    found: Found = {}
    of_files: list[tuple[Domain, Pairs | None]] = [(domain, None) for domain in domains(intents, None, quick)]
    if sts_b:
        of_files.append(similarity(sts_b, QUICK_ASKED if quick else None))
    for whole, pairs in of_files:
        sizes = (QUICK_STORED, QUICK_ASKED) if quick else (STORED, ASKED)
        domain = drawn(whole, sizes[0], len(whole.asked) if pairs else sizes[1])
        for name, quality in measured(domain, pairs, teacher, peers, students):
            found.setdefault((domain.name, name), []).append(quality)
            print(domain.name, name, *quality, flush=True)
    return found


def drawn(domain: Domain, stored: int, asked: int) -> Domain:
    """At most so many texts of a domain, at random, in their order."""
    draw = np.random.default_rng(0)
    kept = [
        np.sort(draw.permutation(len(texts))[:most]).tolist()
        for texts, most in ((domain.stored, stored), (domain.asked, asked))
    ]
    labels = domain.labels and (
        [domain.labels[0][row] for row in kept[0]],
        [domain.labels[1][row] for row in kept[1]],
    )
    return Domain(domain.name, [domain.stored[row] for row in kept[0]], [domain.asked[row] for row in kept[1]], labels)


def similarity(folder: Path, most: int | None) -> tuple[Domain, Pairs]:
    """STS-B in GLUE's own form: its training texts to store, those of its dev pairs, `most` at most, to ask, and the pairs."""
    task = load_task(TaskConfig(name="STS-B", path=str(folder)))
    dev = [(one.text, one.text_pair or "", float(one.label or 0)) for one in task.split("dev")[:most]]
    asked = {text: number for number, text in enumerate(dict.fromkeys(text for one in dev for text in one[:2]))}
    training = dict.fromkeys(text for one in task.split("train") for text in (one.text, one.text_pair or ""))
    pairs = Pairs(*map(list, zip(*((asked[one], asked[other], alike) for one, other, alike in dev), strict=True)))
    return Domain(STS_B, [text for text in training if text not in asked], list(asked)), pairs


def spearman(vectors: Tensor, pairs: Pairs) -> float:
    """How the cosines of the pairs' vectors, (texts, dim), rank them beside what people said."""
    alike = F.cosine_similarity(vectors[pairs.first], vectors[pairs.second], dim=1)
    return score(["spearman"], pairs.alike, alike.numpy())["spearman"]


def measured(
    domain: Domain, pairs: Pairs | None, teacher: Teacher, peers: Mapping[str, Peer], students: Sequence[Path]
) -> Iterator[tuple[str, Quality]]:
    """Yield each encoder's name and what its answers are worth, students once for each seed."""
    parts = [[normalise(text) for text in texts] for texts in (domain.stored, domain.asked)]
    table = words_of(teacher, students)
    said = [teacher_and_words(teacher, texts, table) for texts in parts]
    (taught, stored_words), (wanted, asked_words) = said
    teachers_ten = nearest_ten(wanted, taught)

    def quality(index: Tensor, answers: Tensor, is_in_teachers_space: bool = True) -> Quality:
        ten = nearest_ten(answers, index)
        cosine = float(F.cosine_similarity(answers, wanted, dim=1).mean()) if is_in_teachers_space else None
        return Quality(
            cosine, shared(teachers_ten, ten), intent_accuracy(ten, domain.labels), pairs and spearman(answers, pairs)
        )

    yield TEACHER, quality(taught, wanted)
    for name, peer in peers.items():
        if name == TEACHER:
            continue
        index, answers = (torch.from_numpy(peer.encode(texts)).float() for texts in parts)
        yield name, quality(index, answers, peer.is_in_teachers_space)
    nearest = torch.cat([(some @ stored_words.T).topk(NEIGHBOURS).indices for some in asked_words.split(CHUNK)])
    yield CACHE, quality(taught, taught[nearest[:, 0]])
    for seed, student in enumerate(students):
        stored, asked = (
            StoredRows(vectors, words, taught_here)
            for vectors, (taught_here, words) in zip(vectors_alone(student, teacher, parts), said, strict=True)
        )
        correction, residuals = fitted_correction(stored, GlobalPartOptions(seed=seed), NEIGHBOURS)
        references = References(as_stored(taught), as_stored(residuals), stored_words)
        yield ALONE, quality(stored.student, asked.student)
        yield GLOBAL, quality(taught, correction.answer(asked.student, asked.words).vector)
        reads = quality(taught, read(correction, asked, references, nearest)[0])
        yield READS, reads
        yield REPLICA, reads


def rows(found: Found) -> Rows:
    """The table: an encoder on a domain a line, means over seeds."""
    return [{"domain": domain, "encoder": name, **shown(some)} for (domain, name), some in found.items()]
