"""What one version of a memory corrects in one student's answers: a global part, and near references' residuals.

    answer = student's vector (scaled) + global part (linear and kernel map) + kriging weights x residuals of near references

A `Correction` computes that, and is read from and written to bytes; `shorten` cuts answers to the principal components of the
memory's vectors. The global part is fitted in `global_part.py`; kriging's width and noise, and whether references are read at
all, are chosen here among a few, by stored texts that are left out (docs/decisions/0014-closed-form-reading.md). A correction
belongs to a version of a memory: stored residuals are what is left of the teacher's vectors once this version's global part,
fitted as if without that text, is added, and of no use to another version.

Shapes: rows (stored texts), batch, count (references of a text), dim (of the teacher's vector), words_dim, key_dim (of what
nearness is measured by).
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from refbert.errors import InputError
from refbert.global_part import FittedGlobalPart, GlobalPart, Rows, placed
from refbert.kriging import corrected, cosines_of, kriging_weights

FORMAT = 1

TAUS = (0.2, 0.4, 0.8)
NOISES = (0.03, 0.1, 0.3, 1.0)
"""What kriging's width and noise are chosen among."""

KEPT_IN_FULL = ("student_norm", "teacher_norm")
"""Buffers of a global part that are saved as float32, the others as float16."""


COMPONENTS = "components"


def reader_of(student: str, version: str) -> str:
    """Return the name under which stored points keep the residuals of a student's version."""
    return f"{student}_{version}"


class Corrected(NamedTuple):
    """Corrected answers: `vector` (batch, dim) in the teacher's units, `weights` (batch, count) of the references' residuals,
    `nearness` (batch,) the cosine of the nearest one's key, and `variance` (batch,): 0 beside a stored text, 1 far from all.

    Without references `weights` has no columns, nearness is -1 and variance 1.
    """

    vector: Tensor
    weights: Tensor
    nearness: Tensor
    variance: Tensor

    def where_stored(self, own: Tensor) -> "Corrected":
        """Return the same with the teacher's own vectors (batch, dim) where there are such, NaN for the others."""
        there = own.isfinite().all(1)
        return Corrected(
            torch.where(there[:, None], own, self.vector),
            self.weights.masked_fill(there[:, None], 0.0),
            self.nearness.masked_fill(there, 1.0),
            self.variance.masked_fill(there, 0.0),
        )


class References(NamedTuple):
    """Near references as a student reads them: `vectors` and `residuals` (batch, count, dim) in the teacher's units, and their
    `words` (batch, count, words_dim). A row of NaN in `residuals` is a reference that is not there, or not read yet."""

    vectors: Tensor
    residuals: Tensor
    words: Tensor


class KeyedReferences(NamedTuple):
    """The same, where a reference's key was computed before: `keys` (batch, count, key_dim), and `residuals`."""

    keys: Tensor
    residuals: Tensor


@dataclass(frozen=True)
class Correction:
    """A version's correction of the student with this fingerprint. `count` references are read, none where it is 0.

    `reading` says for whoever finds the correction beside a student which memory it is of, and how that one is asked; JSON.
    `components` (dim, dim) are the memory's directions, in columns, by which answers are shortened (`shorten`); an earlier
    release kept none.
    """

    student: str
    version: str
    part: GlobalPart
    tau: float
    noise: float
    count: int
    reading: dict[str, Any] = field(default_factory=dict)
    components: Tensor | None = None

    def answer(
        self, student: Tensor, words: Tensor, references: References | KeyedReferences | None = None
    ) -> Corrected:
        """Correct the student's vectors (batch, dim) of texts with these word vectors (batch, words_dim)."""
        base, norm = self.part.base(student, words), self.part.teacher_norm
        if references is None or not self.count or not references.residuals.shape[1]:
            ones = base.new_ones(len(base))
            return Corrected(base * norm, base.new_zeros(len(base), 0), -ones, ones)
        there = references.residuals[:, :, 0].isfinite()
        if not bool(there.all()):  # passes over everything, which most batches do not need
            references = type(references)(*(torch.where(there[:, :, None], column, 0.0) for column in references))
        keys, residuals = self.keyed(references) if isinstance(references, References) else references
        key = self.part.key(base, words)
        weights, variance, nearness = kriging_weights(cosines_of(key, keys), there, self.tau, self.noise)
        return Corrected(corrected(base * norm, residuals, weights), weights, nearness, variance)

    def keyed(self, references: References) -> KeyedReferences:
        """Compute the keys of references."""
        said = (references.vectors - references.residuals) / self.part.teacher_norm
        return KeyedReferences(self.part.key(said, references.words), references.residuals)

    def to_bytes(self) -> bytes:
        """The bytes that `from_bytes` reads: safetensors, with everything but tensors in its header."""
        components = {} if self.components is None else {COMPONENTS: self.components}
        tensors = {
            name: (tensor if name in KEPT_IN_FULL else tensor.half()).contiguous().cpu()
            for name, tensor in (self.part.state_dict() | components).items()
        }
        described = {
            "format": FORMAT, "student": self.student, "version": self.version, "kernel_tau": self.part.tau,
            "tau": self.tau, "noise": self.noise, "count": self.count, "reading": self.reading,
        }  # fmt: skip
        return save(tensors, {"correction": json.dumps(described, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Correction":
        """Read `to_bytes`. Raises InputError for anything else."""
        try:
            length = int.from_bytes(content[:8], "little")
            described = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["correction"])
            if described.pop("format") != FORMAT:
                raise ValueError("of another format")
            tensors = {name: tensor.float() for name, tensor in load(content).items()}
            components = tensors.pop(COMPONENTS, None)
            landmarks, key_dim = tensors["landmarks"].shape
            dim = len(tensors["bias"])
            part = GlobalPart(dim, key_dim - dim, landmarks, described.pop("kernel_tau"))
            part.load_state_dict(tensors)
            if components is not None and components.shape != (dim, dim):
                raise ValueError(f"components of shape {tuple(components.shape)}, wanted {(dim, dim)}")
            correction = cls(part=part, components=components, **described)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                f"a student's correction cannot be read ({' '.join(str(error).split())}); adapt the memory again"
            ) from None
        every = [*part.buffers(), *(() if components is None else (components,))]
        if not all(bool(tensor.isfinite().all()) for tensor in every):
            raise InputError("a student's correction holds NaN or infinity; adapt the memory again")
        return correction

    @property
    def reader(self) -> str:
        """Name under which stored points keep the residuals that belong to this correction."""
        return reader_of(self.student, self.version)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes where it is kept."""
        return len(self.to_bytes())


def check_dimensions(dimensions: int, dim: int, correction: Correction | None) -> None:
    """Raise InputError where answers (dim,) with this correction cannot be shortened to so many numbers."""
    if 1 <= dimensions <= dim and correction is not None and correction.components is not None:
        return
    if not 1 <= dimensions <= dim:
        reason = f"give 1 to {dim}"
    elif correction is None:
        reason = (
            "that takes the principal components of a memory, and it was adapted to none (`python jobs/adapt.py`, or "
            "`refbert adopt`); leave dimensions out"
        )
    else:
        reason = "its memory was adapted by an earlier release, without principal components; adapt it again"
    raise InputError(f"this student's vectors have {dim} numbers and cannot be cut to {dimensions}: {reason}")


def shorten(vectors: Tensor, dimensions: int, correction: Correction | None) -> Tensor:
    """Return vectors (rows, dim) in the memory's first principal components, (rows, dimensions), of length 1.

    All of them together would keep every cosine; fewer keep what the memory's own vectors have most of their length in. The
    result is no prefix of the vectors. Raises InputError as `check_dimensions` does.
    """
    dim = vectors.shape[1]
    check_dimensions(dimensions, dim, correction)
    assert correction is not None
    assert correction.components is not None
    return F.normalize(vectors @ correction.components[:, :dimensions].to(vectors), dim=-1)


def principal_components(chunks: Iterable[Tensor]) -> Tensor:
    """Return the directions (dim, dim), in columns, that vectors (rows, dim) of length 1 have most of their length in first.

    About the origin and not their mean: so the cosines of all components together are those of the vectors.
    """
    moments: Tensor | None = None
    for chunk in chunks:
        unit = F.normalize(chunk.double(), dim=-1)
        moments = unit.T @ unit if moments is None else moments + unit.T @ unit
    if moments is None:
        raise ValueError("no vectors to find principal components of")
    directions = torch.linalg.eigh(moments).eigenvectors.flip(1)
    # A direction's sign is arbitrary: the same on every machine, where its largest number is positive.
    largest = directions.abs().argmax(0)
    return (directions * directions[largest, torch.arange(len(largest))].sign()).float()


class Residuals(NamedTuple):
    """A chunk of stored texts: `words` (rows, words_dim), and `teacher` and leave-one-out `residual` (rows, dim), in units of
    the memory's mean length."""

    words: Tensor
    teacher: Tensor
    residual: Tensor


def residuals_of(fitted: FittedGlobalPart, rows: Rows) -> Residuals:
    """Take the residuals of rows that a global part was fitted on, as if each had not been."""
    return Residuals(rows.words, rows.teacher / fitted.part.teacher_norm, fitted.leave_one_out(rows))


class Kriging(NamedTuple):
    """How residuals are weighed, and what that gave on left-out rows: mean cosine `before` and `after`.

    `references` is how many of them a text reads: none where they make no answer better.
    """

    tau: float
    noise: float
    references: int
    before: float
    after: float


def choose_kriging(
    part: GlobalPart,
    chunks: Callable[[], Iterable[Residuals]],
    count: int,
    sample: int = 1500,
    seed: int = 0,
) -> Kriging:
    """Choose kriging's width and noise on a `sample` of stored texts, each asked as if it were not stored.

    A text asks for the `count` nearest others by words, as a dense index finds them. `seed` is the fit's. Reads the rows
    four times.
    """
    num_rows = sum(len(rows.words) for rows in chunks())
    # The other end of the permutation that landmarks are drawn from: a landmark's residual is smaller than a left-out text's.
    drawn = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    asked = drawn[-min(sample, max(1, 3 * num_rows // 4)) :].sort().values
    mine = _rows_at(chunks(), asked)
    base = mine.teacher - mine.residual
    before = float(F.cosine_similarity(base, mine.teacher, dim=-1).mean())
    best = Kriging(TAUS[0], NOISES[0], 0, before, before)
    if not (near := min(count, num_rows - 1)):
        return best
    keys, residuals = _nearest(part, chunks, asked, mine.words, near)
    cosines, there = cosines_of(part.key(base, mine.words), keys), keys.new_ones(keys.shape[:2])
    for tau in TAUS:
        for noise in NOISES:
            answers = corrected(base, residuals, kriging_weights(cosines, there, tau, noise).weights)
            after = float(F.cosine_similarity(answers, mine.teacher, dim=-1).mean())
            if after > best.after:
                best = Kriging(tau, noise, count, before, after)
    return best


def _rows_at(chunks: Iterable[Residuals], numbers: Tensor) -> Residuals:
    """Return the rows of these ascending numbers, in float32."""
    parts = [[column[here].float() for column in rows] for rows, here in placed(chunks, numbers)]
    return Residuals(*map(torch.cat, zip(*parts, strict=True)))


def _nearest(
    part: GlobalPart, chunks: Callable[[], Iterable[Residuals]], asked: Tensor, words: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return keys (asked, count, key_dim) and residuals (asked, count, dim) of the rows nearest by words, never themselves.

    Reads the rows twice: which are near, then these alone.
    """
    needed, place = _nearest_rows(chunks(), asked, words, count).unique(return_inverse=True)
    near = _rows_at(chunks(), needed)
    return part.key(near.teacher - near.residual, near.words)[place], near.residual[place]


def _nearest_rows(chunks: Iterable[Residuals], asked: Tensor, words: Tensor, count: int) -> Tensor:
    """Return the numbers of the rows nearest to each asked row by words, (asked, count)."""
    cosines, numbers = words.new_empty(len(asked), 0), asked.new_empty(len(asked), 0)
    start = 0
    for rows in chunks:
        among = words @ rows.words.float().T
        itself = (asked >= start) & (asked < start + len(rows.words))
        among[itself, asked[itself] - start] = -2.0
        top = among.topk(min(count, len(rows.words)), dim=1)
        cosines, numbers = torch.cat((cosines, top.values), 1), torch.cat((numbers, top.indices + start), 1)
        best = cosines.topk(min(count, cosines.shape[1]), dim=1)
        cosines, numbers = best.values, numbers.gather(1, best.indices)
        start += len(rows.words)
    return numbers
