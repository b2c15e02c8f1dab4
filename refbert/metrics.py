"""Fidelity: how close a student's answers are to its teacher's, on texts that the caller chooses.

Every metric but the error of token states, which the caller brings, is computed from both sides' sentence vectors of the same
texts, in the same order. Shapes: texts, dim.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MUTUAL_INFORMATION_TEMPERATURE = 0.05


class Fidelity(NamedTuple):
    """One student against its teacher, with one kind of reference."""

    state_mse: float
    sentence_cosine: float
    mutual_information_nats: float
    retrieval_top1: float


def fidelity(squared_error: float, student: Tensor, teacher: Tensor, pool: int) -> Fidelity:
    """Compute every metric from the mean squared error of token states and the (texts, dim) sentence vectors of both sides.

    `pool` is the number of candidates of the mutual-information bound; retrieval searches among all texts.
    """
    return Fidelity(
        state_mse=squared_error,
        sentence_cosine=float(F.cosine_similarity(student, teacher, dim=-1).mean()),
        mutual_information_nats=mutual_information(student, teacher, pool),
        retrieval_top1=retrieval_top1(student, teacher),
    )


def mutual_information(
    student: Tensor, teacher: Tensor, pool: int, temperature: float = MUTUAL_INFORMATION_TEMPERATURE
) -> float:
    """InfoNCE lower bound of I(student; teacher) in nats over consecutive pools of `pool` sentence vectors.

    log(pool) minus the mean cross-entropy of finding the teacher's vector of the same text (van den Oord et al. 2018).
    At most log(pool): compare only figures of equal pools. A rest smaller than `pool` is left out.
    """
    pool = min(pool, len(student))
    a, b = (F.normalize(vectors, dim=-1) for vectors in (student, teacher))
    own = torch.arange(pool, device=a.device)
    entropies = [
        F.cross_entropy(a[start : start + pool] @ b[start : start + pool].T / temperature, own)
        for start in range(0, len(a) - pool + 1, pool)
    ]
    return math.log(pool) - float(torch.stack(entropies).mean())


def retrieval_top1(student: Tensor, teacher: Tensor) -> float:
    """Share of texts whose student vector finds the teacher's vector of the same text first, by cosine."""
    similarity = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).T
    return float((similarity.argmax(1) == torch.arange(len(student), device=student.device)).float().mean())
