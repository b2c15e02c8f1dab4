"""The maths of an explanation: how much attention went to a text's references, and how much they changed its output.

Works on the scores and outputs of one text. Knows nothing of where references come from. Attention mass says where a layer
looked; only the change of the output says how much that mattered.

Shapes: heads, tokens (the text's own), seen (in this order: the own tokens, left out where the reference replaces them, the
null slot, the reference's tokens), ref_tokens, dim, labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AttentionMass:
    """Where one layer's attention went, as the mean over heads. It sums to 1 for each token of the text.

    `own` (tokens,) went to the text's own tokens, `null` (tokens,) to the null slot, `references` (tokens, ref_tokens) to the
    reference's tokens.
    """

    own: Tensor
    null: Tensor
    references: Tensor

    @property
    def per_reference_token(self) -> Tensor:
        """Mean over the text's tokens, (ref_tokens,)."""
        return self.references.mean(0)


def attention_mass(scores: Tensor, ref_tokens: int) -> AttentionMass:
    """Split the attention of one text by what it went to. `scores` (heads, tokens, seen) are -inf where masked.

    The text must have no padding, since each of its tokens counts alike.
    """
    own = scores.shape[-1] - 1 - ref_tokens
    assert own in (0, scores.shape[1]), "seen are own tokens or none, the null slot and the reference tokens"
    mass = scores.softmax(-1).mean(0)
    return AttentionMass(mass[:, :own].sum(-1), mass[:, own], mass[:, own + 1 :])


@dataclass(frozen=True)
class OutputChange:
    """How the output with a reference differs from the output without.

    `cosine_distance` is 1 - cosine of the two sentence vectors. `relative` is the norm of their difference over the norm of the
    vector without. `probabilities` (labels,) are those with minus those without, None where there is no classifier.
    """

    cosine_distance: float
    relative: float
    probabilities: Tensor | None


def output_change(
    with_: Tensor, without: Tensor, logits_with: Tensor | None = None, logits_without: Tensor | None = None
) -> OutputChange:
    """Compare two sentence vectors (dim,) and, for a classifier, two rows of logits (labels,)."""
    moved = None
    if logits_with is not None and logits_without is not None:
        moved = answer(logits_with) - answer(logits_without)
    cosine = F.cosine_similarity(
        with_.double(), without.double(), dim=-1
    )  # float32 would leave 1e-7 of a change of none
    return OutputChange(
        max(0.0, float(1 - cosine)), float((with_ - without).norm() / without.norm().clamp_min(1e-12)), moved
    )


def answer(logits: Tensor) -> Tensor:
    """Return the probabilities of the labels (..., labels). A single label is a regression's: its number stays unchanged."""
    return logits if logits.shape[-1] == 1 else logits.softmax(-1)


def leaving_out(ranks: Tensor, count: int) -> Tensor:
    """Return masks (1 + count + 1, ref_tokens) of one text's references: all of them, all but each in turn, none.

    `ranks` (ref_tokens,) is the rank of the reference that a token belongs to, 0 for the best.
    """
    each = [ranks != rank for rank in range(count)]
    return torch.stack([torch.ones_like(ranks, dtype=torch.bool), *each, torch.zeros_like(ranks, dtype=torch.bool)])
