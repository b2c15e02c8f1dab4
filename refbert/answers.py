"""A labelled student's answer, mixed with what its teacher answered of near texts.

    probabilities = (1 - share) x the student's + share x sum of weights x the teacher's of near texts,
    weights = softmax(cosines / temperature)

For a student with one label, the numbers themselves are mixed so. As kNN-LM mixes next words (Khandelwal et al. 2020, eq. 3)
and ReAugKD a student's classes (Zhang et al. 2023). Answers, not residuals: a student has learned the rows that are stored, so
its errors on those say nothing of its errors on other texts. The label of a text is not needed: what the teacher answered is
stored.

Shapes: rows (stored texts), batch, count (references of a text), labels, dim (of a stored vector).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refbert.errors import InputError

ANSWERS = "answers"
"""The name under which a stored point keeps its teacher's logits, as others keep residuals: zeros after the last label."""


@dataclass(frozen=True)
class Mixing:
    """How answers are mixed: `count` near texts weigh `share` in all, by cosines over `temperature`.

    On Banking77 (docs/log.md, 2026-11-29) a share of .5 was the best of .2 to .85, and .03 better than .1.
    """

    share: float = 0.5
    temperature: float = 0.03
    count: int = 16

    def to_dict(self) -> dict[str, Any]:
        """What `Mixing(**...)` reads."""
        return asdict(self)


def stored_answers(logits: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Widen (rows, labels) logits to (rows, dim), as they are stored. Raises InputError for more labels than that."""
    rows, labels = logits.shape
    if labels > dim:
        raise InputError(
            f"the teacher answers with {labels} labels, and a stored answer has room for its width, {dim}; leave mixing out"
        )
    wide = np.zeros((rows, dim), np.float32)
    wide[:, :labels] = logits
    return wide


def near_weights(cosines: Tensor, there: Tensor, mixing: Mixing) -> Tensor:
    """Weigh near texts, (batch, count), by their cosines; those that are not `there` (batch, count) have no weight."""
    weights = (cosines / mixing.temperature).masked_fill(~there, float("-inf")).softmax(-1)
    return torch.where(there.any(1, keepdim=True), weights, 0.0)  # softmax of nothing is NaN


def mixed(logits: Tensor, stored: Tensor, cosines: Tensor, mixing: Mixing) -> Tensor:
    """Mix logits (batch, labels) with stored answers (batch, count, dim) of texts with these cosines (batch, count).

    A row of NaN is a text that is not there; the answer to a text without any is as it was. Returns logits (batch, labels)
    whose softmax is the mixture; for one label, a number, the mixture itself.
    """
    labels = logits.shape[1]
    there = stored[:, :, 0].isfinite()
    answers = torch.where(there[:, :, None], stored[:, :, :labels], 0.0)
    weights = near_weights(cosines, there, mixing)
    share = mixing.share * there.any(1, keepdim=True)
    if labels == 1:
        return (1 - share) * logits + share * (weights[:, None] @ answers).squeeze(1)
    near = (weights[:, None] @ answers.softmax(-1)).squeeze(1)
    return ((1 - share) * logits.softmax(-1) + share * near).clamp_min(torch.finfo(logits.dtype).tiny).log()
