"""What a memory gains a student on texts that are not stored: the student's answers alone, corrected, and with references."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.config import RunConfig
from jobs.corpus.prepared import PassageRows, PreparedCorpus
from refbert.correction import Correction, References
from refbert.memory.batch import references_of
from refbert.memory.encoding import encode_ahead
from refbert.memory.reader import Reader
from refbert.memory.retrieval import NeighbourSource, open_retriever
from refbert.memory.version import current_version
from refbert.passages import Text, by_length, text_of
from refbert.teacher import Teacher
from vector_store.client import Client
from vector_store.store import Store

ANSWERS = ("alone", "global", "references")
"""How a student answers: nothing corrected, corrected without a look-up, and by its references, too."""

CONTROLS = ("random", "cache")
"""Two controls: the same references with other texts' residuals, and the nearest reference's own vector as the answer."""


class Answered(NamedTuple):
    """Some texts answered: which `rows` they are, `vectors` (rows, dim) by the name of the answer, and `nearness` and
    `variance` (rows,) of the references that were read."""

    rows: list[int]
    vectors: dict[str, Tensor]
    nearness: Tensor
    variance: Tensor


@torch.inference_mode()
def answered(
    student: Reader,
    texts: Sequence[Text],
    documents: Sequence[str | None] | None = None,
    random: NeighbourSource | None = None,
) -> Iterator[Answered]:
    """Answer texts in every way, batch by batch: one forward and one look-up for all. `student` has a correction and a source.

    With a `random` source of other references, in the ways of CONTROLS, too. Raises StoreError where the store is away and the
    reader is strict.
    """
    assert student.correction is not None
    assert student.words is not None
    device = student.model.device
    for rows in by_length(texts, student.batch):
        some = [texts[row] for row in rows]
        tokens = student.tokenize(some)
        found = student.look_up(some, tokens, documents and [documents[row] for row in rows])
        assert found is not None
        inputs = student.inputs(tokens, None).student_inputs()
        alone = student.model(**inputs, output_projected_states=False).sentence_embedding.float()
        words = student.words(tokens.input_ids.to(device), tokens.mask.to(device))
        near = references_of(found, student.words)
        read = student.correction.answer(alone, words, near)
        vectors = {
            "alone": alone,
            "global": student.correction.answer(alone, words).vector,
            "references": read.vector,
        }
        if random is not None:
            assert student.texts is not None
            others = random.neighbours(student.texts.queries(some, tokens.input_ids, tokens.mask))
            swapped = with_residuals_of(near, references_of(others, student.words).residuals)
            vectors["random"] = student.correction.answer(alone, words, swapped).vector
            # A text whose nearest reference is none has no vector to be answered with.
            vectors["cache"] = torch.nan_to_num(near.vectors[:, 0])
        yield Answered(
            list(rows), {name: each.cpu() for name, each in vectors.items()}, read.nearness.cpu(), read.variance.cpu()
        )


def with_residuals_of(references: References, residuals: Tensor) -> References:
    """Return the same references with other residuals (batch, count, dim), weighed as before: their keys stay."""
    said = references.vectors - references.residuals
    given = torch.where(said.isfinite(), residuals, torch.nan)
    return references._replace(vectors=said + given, residuals=given)


def teacher_vectors(teacher: Teacher, texts: Sequence[Text]) -> Tensor:
    """Return the teacher's sentence vectors (texts, dim)."""
    vectors = np.empty((len(texts), teacher.dim), np.float32)
    for index, _, states in encode_ahead(teacher, texts):
        vectors[index] = teacher.vector(states)
    return torch.from_numpy(vectors)


class HeldOutTexts:
    """A corpus's held-out texts and what a teacher says of them, which is computed once however often a gain is measured."""

    def __init__(self, corpus: PreparedCorpus, teacher: Teacher) -> None:
        self.corpus, self.teacher = corpus, teacher
        self._said: dict[Text, Tensor] = {}

    def rows(self, seed: int, most: int) -> list[dict[str, Any]]:
        """Return up to `most` rows, drawn by the seed."""
        table = self.corpus.table("heldout")
        chosen = np.random.default_rng(seed).permutation(table.num_rows)[:most]
        return PassageRows(table).at(np.sort(chosen))

    def vectors(self, texts: Sequence[Text]) -> Tensor:
        """Return the teacher's vectors (texts, dim)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._said]
        if new:
            self._said.update(zip(new, teacher_vectors(self.teacher, new), strict=True))
        return torch.stack([self._said[text] for text in texts])


def measured_gain(
    config: RunConfig, client: Client, student: Reader, correction: Correction, heldout: HeldOutTexts, most: int
) -> dict[str, float]:
    """Return the mean cosine to the teacher of up to `most` held-out texts; empty where the corpus holds none out."""
    rows = heldout.rows(config.seed, most)
    assert student.texts is not None
    stored = Store(client, config.store).existing([student.texts.identifier(text_of(row)) for row in rows])
    rows = [row for row in rows if student.texts.identifier(text_of(row)) not in stored]
    if not rows:
        return {}
    texts, documents = [text_of(row) for row in rows], [row["document"] for row in rows]
    version = current_version(client, config.store, correction.student)
    source = open_retriever(client, version.store, student.texts, version.references.criterion, version.parts())
    reader = Reader(
        student.model, student.tokenizer, student.max_tokens, student.texts, source,
        correction=correction, words=student.words, batch=student.batch, strict=True,
    )  # fmt: skip
    wanted = heldout.vectors(texts)
    cosines = {name: torch.empty(len(texts)) for name in ANSWERS}
    for some in answered(reader, texts, documents):
        for name, of_texts in cosines.items():
            of_texts[some.rows] = F.cosine_similarity(some.vectors[name], wanted[some.rows], dim=-1)
    return {"texts": float(len(texts))} | {name: float(of_texts.mean()) for name, of_texts in cosines.items()}
