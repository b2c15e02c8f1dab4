"""The global part of a student: what all stored texts together correct in its answer, without a look-up.

A linear map of the student's vector and the text's word vector to the teacher's vector, and on its residuals a ridge regression
on the kernel of the text's key to landmarks (Nystroem; Williams & Seeger 2001). Both are closed forms over the memory's rows,
which are read in chunks, a few times each.

Shapes: rows, dim (of the teacher's vector), word_dim, landmarks, key_dim (dim + word_dim).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refbert.kriging import kernel
from refbert.ridge import Shrunk, fit_shrunk

WORDS_WEIGHT = 2.0
"""How much longer than the student's vector a word vector is as a feature: the ridge then leans on it more."""

MOST_LEVERAGE = 0.95
"""Of the kernel map, whose leave-one-out residuals are not exact: a stored text's key depends on its own teacher vector."""


class Rows(NamedTuple):
    """A chunk of stored texts: `student` (rows, dim) and `teacher` (rows, dim) as they come, `words` (rows, word_dim) of unit
    length."""

    student: Tensor
    words: Tensor
    teacher: Tensor


Chunk = TypeVar("Chunk", bound=tuple[Tensor, ...])
Chunks = Callable[[], Iterable[Rows]]
"""Reads a memory's rows, from the start each time that it is called, in the same order."""


@dataclass(frozen=True)
class GlobalPartOptions:
    """How a global part is fitted. The defaults are measured: docs/log.md.

    `landmarks` are drawn at random from the rows, a quarter of them at most; `tau` is the width of their kernel. The penalties
    of the linear map and of the kernel's are those that predict a `sample` of left-out rows best.
    """

    landmarks: int = 1000
    tau: float = 0.4
    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    kernel_penalties: tuple[float, ...] = (0.1, 1.0, 10.0)
    sample: int = 4000
    seed: int = 0


class Answer(NamedTuple):
    """`base` (rows, dim): the teacher's vector as the global part says it, of the memory's mean length 1; `key` (rows, key_dim)
    of unit length: what near references are weighed by."""

    base: Tensor
    key: Tensor


class GlobalPart(nn.Module):
    """Corrects the student's vector by what all stored texts have in common. Buffers only: nothing here is trained by gradient.

    Answers are in units of `teacher_norm`, the mean length of the stored teacher vectors.
    """

    student_norm: Tensor
    teacher_norm: Tensor
    student_weight: Tensor
    word_weight: Tensor
    bias: Tensor
    centre: Tensor
    landmarks: Tensor
    kernel_weight: Tensor
    kernel_bias: Tensor

    def __init__(self, dim: int, word_dim: int, landmarks: int, tau: float) -> None:
        super().__init__()
        self.tau = tau
        shapes = {
            "student_norm": (), "teacher_norm": (), "student_weight": (dim, dim), "word_weight": (word_dim, dim),
            "bias": (dim,), "centre": (dim,), "landmarks": (landmarks, dim + word_dim), "kernel_weight": (landmarks, dim),
            "kernel_bias": (dim,),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def linear(self, student: Tensor, words: Tensor) -> Tensor:
        """Return (rows, dim): the student's vector, plus what the linear map adds to it."""
        scaled = student / self.student_norm
        return scaled + scaled @ self.student_weight + words @ self.word_weight + self.bias

    def key(self, said: Tensor, words: Tensor) -> Tensor:
        """Return the keys (rows, key_dim) of texts of which `said` is said; cosines are the means of the two parts'.

        That is the linear answer for the kernel map, and for references the answer of both maps: a stored text's is its
        teacher's vector minus its residual.
        """
        return F.normalize(torch.cat([F.normalize(said - self.centre, dim=-1), words], -1), dim=-1)

    def kernel_features(self, key: Tensor) -> Tensor:
        """Return (rows, landmarks): how near each landmark is."""
        return kernel(key @ self.landmarks.T, self.tau)

    def base(self, student: Tensor, words: Tensor) -> Tensor:
        """Correct (rows, dim) vectors of the student, of texts whose word vectors are (rows, word_dim)."""
        said = self.linear(student, words)
        if not len(self.landmarks):
            return said
        return said + self.kernel_features(self.key(said, words)) @ self.kernel_weight + self.kernel_bias

    def forward(self, student: Tensor, words: Tensor) -> Answer:
        """Return the same, and the key by which the text weighs references."""
        base = self.base(student, words)
        return Answer(base, self.key(base, words))


class FittedGlobalPart(NamedTuple):
    """A global part with the fits that leave-one-out residuals need; those stay with whoever fits."""

    part: GlobalPart
    linear: Shrunk
    kernel: Shrunk | None = None

    def leave_one_out(self, rows: Rows) -> Tensor:
        """Return the residuals (rows, dim) of rows that were fitted on, as if each had not been."""
        first, key = self.linear_residual(rows)
        if self.kernel is None:
            return first.float()
        return self.kernel.leave_one_out(self.part.kernel_features(key), first).float()

    def linear_residual(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the same of the linear map alone, and the rows' keys for the kernel map."""
        residual = self.linear.leave_one_out(*_features(self.part, rows))
        said = (rows.teacher.double() / self.part.teacher_norm.double() - residual).float()
        return residual, self.part.key(said, rows.words)


def fit_global_part(chunks: Chunks, options: GlobalPartOptions = GlobalPartOptions()) -> FittedGlobalPart:
    """Fit on a memory's rows, which are read nine times. Raises ValueError for no rows, and for NaN.

    Of few rows the part adds little to the student's own answer: as much as left-out rows agree with.
    """
    first = next(iter(chunks()), None)
    if first is None:
        raise ValueError("no rows to fit on")
    dim, word_dim = first.teacher.shape[1], first.words.shape[1]
    part = GlobalPart(dim, word_dim, 0, options.tau)
    count, norms = 0, torch.zeros(2, dtype=torch.float64)
    for rows in chunks():
        count += len(rows.teacher)
        norms += torch.stack([rows.student.norm(dim=1).sum(), rows.teacher.norm(dim=1).sum()]).double()
    norms[norms == 0] = count  # a student, or a teacher, that says nothing of any text
    part.student_norm.copy_(norms[0] / count)
    part.teacher_norm.copy_(norms[1] / count)

    linear = fit_shrunk(lambda: (_features(part, rows) for rows in chunks()), options.penalties, options.sample)
    part.student_weight.copy_(linear.weight[:dim])
    part.word_weight.copy_(linear.weight[dim:] * WORDS_WEIGHT)
    part.bias.copy_(linear.bias)
    fitted = FittedGlobalPart(part, linear)
    left_out = torch.zeros(dim, dtype=torch.float64)
    for rows in chunks():
        left_out += (rows.teacher.double() / part.teacher_norm.double() - fitted.linear_residual(rows)[0]).sum(0)
    part.centre.copy_(left_out / count)
    num_landmarks = min(options.landmarks, count // 4)
    if not num_landmarks:
        return fitted

    part.landmarks = _landmark_keys(fitted, chunks, count, num_landmarks, options.seed)

    def kernel_pairs() -> Iterable[tuple[Tensor, Tensor]]:
        for rows in chunks():
            residual, key = fitted.linear_residual(rows)
            yield part.kernel_features(key), residual

    kernel_map = fit_shrunk(kernel_pairs, options.kernel_penalties, options.sample, MOST_LEVERAGE)
    part.kernel_weight = kernel_map.weight.float()
    part.kernel_bias = kernel_map.bias.float()
    return FittedGlobalPart(part, linear, kernel_map)


def _features(part: GlobalPart, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the linear map's features (rows, dim + word_dim), and what it is to add to the student's vector (rows, dim)."""
    scaled = rows.student / part.student_norm
    return torch.cat([scaled, WORDS_WEIGHT * rows.words], 1), rows.teacher / part.teacher_norm - scaled


def _landmark_keys(fitted: FittedGlobalPart, chunks: Chunks, count: int, num_landmarks: int, seed: int) -> Tensor:
    """Return the keys (landmarks, key_dim) of rows drawn at random."""
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:num_landmarks].sort().values
    keys = [
        fitted.linear_residual(Rows(*(column[here] for column in rows)))[1] for rows, here in placed(chunks(), chosen)
    ]
    return torch.cat(keys)


def placed(chunks: Iterable[Chunk], numbers: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
    """Yield the chunks that have any of the rows of these ascending numbers, with these rows' places in the chunk."""
    start = 0
    for rows in chunks:
        here = numbers[(numbers >= start) & (numbers < start + len(rows[0]))] - start
        start += len(rows[0])
        if len(here):
            yield rows, here
