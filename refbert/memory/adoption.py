"""An existing collection of the teacher's embeddings becomes a memory; the teacher encodes only a sample of its texts.

    their collection --> a sample, checked against the teacher --> the memory's points: their vectors, our token ids and words

The vectors of such an index are often of whole texts, where a memory's teacher reads `teacher.tokens` of them; they are kept
so. They are often of unit length: then a vector says a direction only, and is stored at the teacher's mean length over the
sample. What is stored already is passed over, so a killed adoption is simply run again; what was deleted from the memory is
passed over, too, until it is readmitted. Every point is accounted for: read = written + skipped (stored before, deleted, or
another point's text) + rejected. `adopted` does all of that, then adapts a student to the memory and puts the maps into the
student's folder.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from refbert.config import AdaptConfig, AdoptConfig, TeacherConfig
from refbert.errors import InputError
from refbert.folder import save_correction
from refbert.memory.accounting import letter, letter_of, row_account, say_deleted
from refbert.memory.adaptation import adapt, adapting_student
from refbert.memory.progress import progress
from refbert.memory.reader import Reader, said_without_references
from refbert.memory.texts import ReferenceTexts
from refbert.passages import normalise
from refbert.student import pooled
from refbert.teacher import Teacher, load_teacher, tokenize
from vector_store.client import Client
from vector_store.config import StoreConfig
from vector_store.foreign import ForeignPoint, ForeignVectors, foreign_points, foreign_vectors, payload_names
from vector_store.schema import Point
from vector_store.store import Store
from vector_store.term_statistics import publish_term_statistics

log = logging.getLogger(__name__)

USUAL_TOKENS = (128, 256)
"""Where embedders cut texts, beside the end of their positions."""

UNIT = 1e-2
"""How far from 1 the length of a vector of unit length may be: float16 and 8 bits round."""

SEARCHED = 2048
"""Points that are looked through for a sample."""

OUTCOMES = ("read", "written", "skipped", "rejected")


class Checked(NamedTuple):
    """A foreign collection whose vectors are the teacher's: `length` is the teacher's mean one where theirs are of unit length,
    None where theirs are as long as the teacher's; `cosine` the median over the sample."""

    vectors: ForeignVectors
    length: float | None
    cosine: float


def checked(client: Client, options: AdoptConfig, teacher: Teacher, store: StoreConfig) -> Checked:
    """See that a collection holds the teacher's embeddings of its texts; nothing is written.

    Raises InputError for vectors of another width or of another teacher, texts that are not there and an empty collection,
    StoreError where there is no such collection.
    """
    assert options.collection is not None
    vectors = foreign_vectors(client, options.collection, options.vector, store.write_deadline_s)
    named = f"collection {options.collection!r} at {client.url}"
    if vectors.dim != teacher.dim:
        raise InputError(
            f"{named} has vectors of {vectors.dim} numbers, those of {teacher.config.model} have {teacher.dim}; name the "
            "teacher that wrote them in teacher.model, or other vectors in adapt.adopt.vector"
        )
    if not vectors.points:
        raise InputError(f"{named} holds no points, so there is nothing to adopt")
    sample: list[ForeignPoint] = []
    seen = 0
    for page in foreign_points(client, vectors, options.text_field, store.write_deadline_s):
        seen += len(page)
        sample += [point for point in page if _fault(point, teacher.dim) is None]
        if len(sample) >= options.sample or seen >= SEARCHED:
            break
    if not sample:
        fields = ", ".join(payload_names(client, options.collection, store.write_deadline_s)) or "none"
        raise InputError(
            f"{named}: none of the first {seen} points has a vector and a text in {options.text_field!r}; name the payload "
            f"field with the text in adapt.adopt.text_field (there are: {fields})"
        )
    sample = sample[: options.sample]
    theirs = torch.from_numpy(np.stack([point.vector for point in sample if point.vector is not None]))
    texts = [normalise(point.text) for point in sample if point.text is not None]
    cosines, lengths = compared_with(teacher, texts, theirs)
    median = float(cosines.median())
    if not median >= options.least_cosine:
        raise InputError(
            f"{named}: its vectors are not what {teacher.config.model} says of the texts in {options.text_field!r}, "
            f"pooled by {teacher.pooling}: cosine {median:.3f} in the median of {len(texts)} texts, wanted "
            f"{options.least_cosine:g}; name the teacher that wrote them in teacher.model (teacher.pooling), or other vectors "
            "or texts (adapt.adopt.vector, adapt.adopt.text_field)"
        )
    if other := int((cosines < options.least_cosine).sum()):
        log.warning(
            "%d of %d sampled vectors are not the teacher's (cosine below %g)",
            other,
            len(texts),
            options.least_cosine,
        )
    is_unit = bool(((theirs.norm(dim=1) - 1).abs() < UNIT).all())
    return Checked(vectors, float(lengths.mean()) if is_unit else None, median)


def adopted(
    folder: Path, theirs: Client, client: Client, options: AdaptConfig, teacher: TeacherConfig, seed: int = 0
) -> dict[str, Any]:
    """Adapt a student to a collection of its teacher's embeddings: copied into a memory of `client`, and fitted on.

    The student's folder gets the maps; beside it lie the rejected points, and while it works what a killed adoption continues
    from. Returns what became of the points, and what left-out ones say of the gain. Raises InputError as `checked` and
    `adapting_student` do.
    """
    store = StoreConfig(collection=options.collection)
    if options.adopt.collection == options.collection and theirs.url == client.url:
        raise InputError(
            f"the memory would have the name of the collection that is adopted, {options.collection!r}; give it another one "
            "in store.collection"
        )
    loaded = load_teacher(teacher)
    found = checked(theirs, options.adopt, loaded, store)
    student, name = adapting_student(options.references, folder, loaded, options.batch)
    assert student.texts is not None
    rejected = folder.with_name(f"{folder.name}.rejected.jsonl")
    memory = Store(client, store)
    memory.ensure(student.texts.manifest)
    with memory.bulk_load():  # one pause for all: an index of what is copied would be undone by the residuals
        unpaused = store.model_copy(update={"bulk_load": False})
        counts = adopt(theirs, found, options.adopt, client, unpaused, student.texts, rejected)
        made = adapt(memory, student, name, folder.with_name(f"{folder.name}.adapting"), options, seed)
    save_correction(folder, made.correction)
    return {
        "collection": options.collection,
        "version": made.correction.version,
        "points": counts,
        "references": made.references,
        "left_out": {"alone": made.alone, "global": made.kriging.before, "references": made.kriging.after},
    }


def compared_with(teacher: Teacher, texts: Sequence[str], theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines (texts,) of vectors (texts, dim) with the teacher's own of the texts, and the lengths of these.

    Texts are read whole, and cut where embedders cut them: of each the nearer counts.
    """
    best, lengths = torch.full((len(texts),), -1.0), torch.zeros(len(texts))
    for tokens in budgets(teacher):
        longest = 0
        for rows in torch.arange(len(texts)).split(teacher.config.batch):
            ids, mask, segments = tokenize(teacher.tokenizer, [texts[row] for row in rows.tolist()], tokens)
            states = teacher.encode(ids, mask, token_type_ids=segments).states
            own = pooled(states, mask.to(states), teacher.pooling).cpu()
            cosines = F.cosine_similarity(own, theirs[rows], dim=-1)
            nearer = cosines > best[rows]
            best[rows], lengths[rows] = (
                torch.where(nearer, cosines, best[rows]),
                torch.where(nearer, own.norm(dim=1), lengths[rows]),
            )
            longest = max(longest, ids.shape[1])
        if longest < tokens:  # every text was read whole
            break
    return best, lengths


def budgets(teacher: Teacher) -> list[int]:
    """Return how many tokens of a text an embedder may have read, ascending; the last is all that the teacher can."""
    positions = getattr(teacher.model.config, "max_position_embeddings", None) or 0
    named = int(min(teacher.tokenizer.model_max_length, 2**31))
    most = max(min(named, positions) if positions > 0 else min(named, teacher.config.tokens), teacher.config.tokens)
    return sorted({tokens for tokens in (teacher.config.tokens, *USUAL_TOKENS, most) if tokens <= most})


def adopt(
    theirs: Client,
    found: Checked,
    options: AdoptConfig,
    client: Client,
    config: StoreConfig,
    texts: ReferenceTexts,
    rejected: Path,
    student: Reader | None = None,
) -> dict[str, int]:
    """Write the points of a collection of `theirs` into the memory config.collection of `client`, which is there; return each
    outcome's count.

    New points get residuals of the `student`, as a version of the memory corrects it, where one is given. What is no text, or
    has no vector, goes to the file `rejected` with the reason.
    """
    store = Store(client, config)
    say_deleted(store)
    with (
        row_account(OUTCOMES, rejected) as account,
        store.bulk_load() if config.bulk_load else nullcontext(),
        store.writer() as writer,
        progress("adopt", found.vectors.points, "point") as update,
    ):
        for page in foreign_points(theirs, found.vectors, options.text_field, config.write_deadline_s):
            good: dict[str, ForeignPoint] = {}
            letters = []
            for point in page:
                if fault := _fault(point, found.vectors.dim):
                    letters.append(letter(fault, id=point.id))
                else:
                    good.setdefault(texts.identifier(normalise(point.text or "")), point)
            new = {identifier: good[identifier] for identifier in store.known(list(good)).new}
            writer.submit(points_of(new, found, texts, student))
            written, refused = writer.finish()
            letters += map(letter_of, refused)
            counts = {"read": len(page), "written": written, "rejected": len(letters)}
            account.add({**counts, "skipped": len(page) - written - len(letters)}, "".join(letters))
            update(len(page), **{name: account.counts[name] for name in OUTCOMES[1:]})
    publish_term_statistics(client, config)
    log.info("adopted %s: %s", found.vectors.collection, account)
    return dict(account.counts)


def points_of(
    new: dict[str, ForeignPoint], found: Checked, texts: ReferenceTexts, student: Reader | None
) -> list[Point]:
    """Make the memory's points of foreign ones, by their ids."""
    if not new:
        return []
    clean = [normalise(point.text or "") for point in new.values()]
    ids, mask, _ = texts.tokenize(clean)
    said = said_without_references(student, clean) if student else None
    points = []
    for row, ((identifier, foreign), text) in enumerate(zip(new.items(), clean, strict=True)):
        assert foreign.vector is not None
        vector = at_length(foreign.vector, found.length)
        passage = {
            "text": text,
            "source": found.vectors.collection,
            "document": foreign.id,
            "split": "train",
        }
        token_ids = ids[row, : int(mask[row].sum())].numpy().astype(np.int32)
        point = texts.point(passage, identifier, token_ids, vector, None)
        if student and student.correction and said is not None:
            point = replace(point, residuals={student.correction.reader: vector - said[row]})
        points.append(point)
    return points


def at_length(vector: NDArray[np.float32], length: float | None) -> NDArray[np.float32]:
    """Return a vector (dim,) at this length; as it is where it is None."""
    if length is None:
        return vector
    return vector * np.float32(length / np.linalg.norm(vector))


def _fault(point: ForeignPoint, dim: int) -> str | None:
    """Say why a point cannot be adopted; None where it can."""
    if point.text is None:
        return "it has no text"
    if point.vector is None:
        return "it has no such vector"
    if point.vector.shape != (dim,) or not bool(np.isfinite(point.vector).all()):
        return f"its vector is not {dim} finite numbers"
    return None if point.vector.any() else "its vector is all zeros"
