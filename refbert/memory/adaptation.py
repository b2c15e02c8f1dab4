"""A student's answers adapted to a memory, in closed form: from what is stored to a version that readers switch to.

    stored references --> the student's vectors (kept on disk, page by page) --> global part --> residuals --> version

Nothing is trained by gradient. Every pass reads page by page, so the vectors of all references need not fit into RAM. A page is
told by the student and the ids that it holds, and a version by its pages, the student, the seed and the options of the fit: a
job that was killed goes on with the pages that it has, and writes the same version again. The version that is read goes on
being read until the new one is whole. The correction goes to the store and to the caller, who puts it into the student's
folder.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from refbert.atomic import whole_file
from refbert.config import AdaptConfig, ReferenceConfig
from refbert.correction import (
    Correction,
    Kriging,
    Residuals,
    choose_kriging,
    principal_components,
    reader_of,
    residuals_of,
)
from refbert.errors import InputError
from refbert.folder import fingerprint, has_head, has_word_table, load_model, load_word_table, save_word_table
from refbert.global_part import FittedGlobalPart, GlobalPartOptions, Rows, fit_global_part
from refbert.memory.batch import words_of_points
from refbert.memory.manifest import manifest_of
from refbert.memory.progress import progress
from refbert.memory.reader import Reader, said_without_references, text_tokens
from refbert.memory.texts import ReferenceTexts
from refbert.memory.version import publish_version
from refbert.passages import Text
from refbert.references import word_table
from refbert.teacher import Teacher, load_tokenizer, tokenizer_hash
from refbert.words import WordVectors
from vector_store.schema import Parts, StoredPoint
from vector_store.store import Store

log = logging.getLogger(__name__)

PAGE = 2048


@dataclass(frozen=True)
class Page:
    """A page of stored references on disk: their `ids`, and a file with what the fits read of them."""

    ids: list[str]
    file: Path

    def rows(self) -> Rows:
        """Read the vectors of student, words and teacher, (rows, dim) or (rows, words_dim) each."""
        with np.load(self.file) as columns:
            return Rows(*(torch.from_numpy(columns[name]).float() for name in Rows._fields))


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation has made: a version's correction, on how many references, and what left-out ones say of it."""

    correction: Correction
    references: int
    kriging: Kriging
    alone: float


def adapt(store: Store, student: Reader, name: str, scratch: Path, options: AdaptConfig, seed: int) -> Adaptation:
    """Correct a student's answers by all that is stored, and publish the version. `name` is the student's fingerprint.

    Raises InputError for a memory without references.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    total = store.count()
    with progress("student", total, "reference") as update:
        pages = []
        for page in student_pages(store, student, name, scratch):
            pages.append(page)
            update(len(page.ids))
    if not pages:
        raise InputError("the memory holds no references, so there is nothing to adapt to; give a corpus with texts")
    version = version_of(pages, name, options, seed)

    def chunks() -> Iterator[Rows]:
        return (page.rows() for page in pages)

    fitted = fit_global_part(chunks, GlobalPartOptions(landmarks=options.landmarks, seed=seed))
    # A point whose residual is written leaves the index, which is built anew afterwards, beside what is computed here.
    with store.bulk_load(wait=False), progress("residual", total, "reference") as update:
        for page, residuals in zip(pages, write_residuals(store, fitted, pages, reader_of(name, version)), strict=True):
            update(len(page.ids))
            np.save(_residuals_file(page), residuals.numpy().astype(np.float16))

    def left_out() -> Iterator[Residuals]:
        norm = fitted.part.teacher_norm
        for page in pages:
            rows = page.rows()
            residual = torch.from_numpy(np.load(_residuals_file(page))).float()
            yield Residuals(rows.words, rows.teacher / norm, residual / norm)

    kriging = choose_kriging(fitted.part, left_out, options.references.count, seed=seed)
    assert student.texts is not None
    reading = {
        "memory": student.texts.manifest.model_dump(mode="json"),
        "collection": options.collection,
        "references": student.texts.references.model_dump(mode="json"),
    }
    components = principal_components(rows.teacher for rows in chunks())
    store.wait_until_indexed()
    correction = Correction(
        name, version, fitted.part, kriging.tau, kriging.noise, kriging.references, reading, components
    )
    publish_version(store, correction)
    adaptation = Adaptation(correction, sum(len(page.ids) for page in pages), kriging, _cosine(chunks()))
    shutil.rmtree(scratch)
    return adaptation


def adapting_student(references: ReferenceConfig, folder: Path, teacher: Teacher, batch: int) -> tuple[Reader, str]:
    """Open a student as its answers are to be corrected, with the words of texts; return its fingerprint, too.

    Its folder gets the teacher's word table where it has none; the memory's dense index is as wide as that. Raises InputError
    for a student that reads token states, that classifies, or that is another teacher's.
    """
    model = load_model(folder).fuse()
    if has_head(model.config):
        raise InputError(
            f"{folder} classifies, and what a memory corrects are sentence vectors; give an encoder's folder"
        )
    if model.config.reads_any:
        raise InputError(
            f"{folder} reads the token states of its references, and its answers would be corrected for that twice; distil one "
            "that reads none (student.reference_mode=none references.criterion=none)"
        )
    tokenizer = load_tokenizer(str(folder))
    if model.config.dim != teacher.dim or tokenizer_hash(tokenizer) != tokenizer_hash(teacher.tokenizer):
        raise InputError(
            f"{folder} is no student of {teacher.config.model}: its vectors have {model.config.dim} numbers, the teacher's "
            f"{teacher.dim}, or their tokenizers differ; name its own teacher in teacher.model"
        )
    if not has_word_table(folder):
        save_word_table(folder, word_table(teacher.static_vectors(), references.words_dim))
    table = load_word_table(folder)
    asked = references.words_dim
    if asked not in (None, table.dim):
        raise InputError(
            f"the word table of {folder} is {table.dim} wide, adapt.references.words_dim asks for {asked}; leave words_dim out"
        )
    references = references.model_copy(update={"words_dim": table.dim if references.dense_index else None})
    words = WordVectors(table, tokenizer.all_special_ids)
    texts = ReferenceTexts(manifest_of(teacher, references), references, teacher.tokenizer, words)
    most = text_tokens(model.config) or teacher.config.tokens
    return Reader(model, tokenizer, most, texts, words=words, batch=batch), fingerprint(folder)


def student_pages(store: Store, student: Reader, name: str, scratch: Path) -> Iterator[Page]:
    """Yield every page of the memory, once the student has said its vectors; pages on disk are not computed again.

    Those of a student with another fingerprint than `name` are not used: it may have been trained again under the same folder.
    """
    assert student.words is not None
    for points in store.read(Parts(states=False, text=True, vector=True), PAGE):
        ids = [point.id for point in points]
        file = scratch / f"{hashlib.sha256(''.join([name, *ids]).encode()).hexdigest()[:16]}.npz"
        if not file.exists():
            columns = {
                "student": said_without_references(student, [_text(point) for point in points]),
                "words": words_of_points(points, student.words).cpu().numpy(),
                "teacher": np.stack([point.vector for point in points if point.vector is not None]),
            }
            kept = {name: halved(name, each, points) for name, each in columns.items()}
            with whole_file(file) as draft, open(draft, "wb") as stream:
                np.savez(stream, allow_pickle=False, **kept)
        yield Page(ids, file)


def halved(name: str, vectors: NDArray[np.float32], points: Sequence[StoredPoint]) -> NDArray[np.float16]:
    """Return the vectors (points, width) as they are kept on disk. Raises InputError for the first that is not finite there.

    One of them would make every answer NaN.
    """
    with np.errstate(over="ignore"):
        kept = vectors.astype(np.float16)
    faulty = ~np.isfinite(kept).all(1)
    if not faulty.any():
        return kept
    first = points[int(faulty.argmax())]
    found = f"{int(faulty.sum())} of {len(points)} texts read together, the first is reference {first.id}"
    if name == "teacher":
        raise InputError(
            f"the memory's teacher vectors of {found} hold NaN or infinite values; `python -m vector_store verify` "
            "lists such references: delete these, and adapt again"
        )
    raise InputError(
        f"the student answers {found} with NaN, or numbers beyond {np.finfo(np.float16).max:.0f}; train it again, and adapt "
        "again"
    )


def write_residuals(
    store: Store, fitted: FittedGlobalPart, pages: Sequence[Page], reader: str
) -> Iterator[torch.Tensor]:
    """Store each page's residuals under the reader's name; yields them, (rows, dim) in the teacher's units."""
    num_gone = 0
    for page in pages:
        residuals = residuals_of(fitted, page.rows()).residual * fitted.part.teacher_norm
        there = store.existing(page.ids)  # texts may have been deleted since the page was read
        of_id = dict(zip(page.ids, residuals.float().numpy(), strict=True))
        num_gone += len(page.ids) - store.set_residuals(
            reader, {identifier: of_id[identifier] for identifier in page.ids if identifier in there}
        )
        yield residuals
    if num_gone:
        log.warning(
            "%d references got no residual: they were deleted meanwhile, or not every copy of their shard has them (`python -m "
            "vector_store verify --repair`, then adapt again)", num_gone,
        )  # fmt: skip


def version_of(pages: Sequence[Page], student: str, options: AdaptConfig, seed: int) -> str:
    """Return a version's name, 8 hex digits: of what it is fitted on, and how."""
    fitted_on = "".join(page.file.name for page in pages)
    how = f"{options.landmarks} {options.references} {seed} components"
    return hashlib.sha256(f"{fitted_on} {student} {how}".encode()).hexdigest()[:8]


def _residuals_file(page: Page) -> Path:
    return page.file.with_suffix(".residuals.npy")


def _text(point: StoredPoint) -> Text:
    assert point.text is not None
    return point.text


def _cosine(chunks: Iterator[Rows]) -> float:
    """Mean cosine of the student's own vectors to the teacher's."""
    cosines = torch.cat([F.cosine_similarity(rows.student, rows.teacher, dim=-1) for rows in chunks])
    return float(cosines.mean())
