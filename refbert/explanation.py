"""What a student read of its reference, and what that changed: the maths of an explanation.

Knows scores and outputs of one text; nothing of where references come from. Attention mass says where a layer looked; only the
change of the output says what it took from there.

Shapes: heads, tokens (the text's own), seen (own tokens, unless the reference replaces them, then null slot and reference
tokens), ref_tokens, dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AttentionMass:
    """Where one layer's attention went, in the mean over heads; each text token's is 1 in all.

    `own` and `null` (tokens,): to the text's own tokens and to the null slot; `references` (tokens, ref_tokens).
    """

    own: Tensor
    null: Tensor
    references: Tensor

    @property
    def per_reference_token(self) -> Tensor:
        """(ref_tokens,) in the mean over the text's tokens."""
        return self.references.mean(0)


def attention_mass(scores: Tensor, ref_tokens: int) -> AttentionMass:
    """Softmax of one text's scores (heads, tokens, seen), -inf where masked, divided by who is looked at.

    The text has no padding: each of its tokens counts alike.
    """
    own = scores.shape[-1] - 1 - ref_tokens
    assert own in (0, scores.shape[1]), "seen are own tokens or none, the null slot and the reference tokens"
    mass = scores.softmax(-1).mean(0)
    return AttentionMass(mass[:, :own].sum(-1), mass[:, own], mass[:, own + 1 :])


@dataclass(frozen=True)
class OutputChange:
    """How an output without a reference differs from that with it.

    `cosine_distance` is 1 - cosine of the sentence vectors; `relative` the length of their difference over that of the one
    without; `probabilities` (labels,) with minus without, None where there is no classifier.
    """

    cosine_distance: float
    relative: float
    probabilities: Tensor | None


def output_change(
    with_: Tensor, without: Tensor, logits_with: Tensor | None = None, logits_without: Tensor | None = None
) -> OutputChange:
    """Compare two sentence vectors (dim,) and, of a classifier, two rows of logits (labels,)."""
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
    """Probabilities of the labels (..., labels); of a single label, a regression's, the number itself."""
    return logits if logits.shape[-1] == 1 else logits.softmax(-1)


def leaving_out(ranks: Tensor, count: int) -> Tensor:
    """Masks (1 + count + 1, ref_tokens) of one text's references: all of them, without each in turn, none.

    `ranks` (ref_tokens,) says which reference a token is of, 0 the best.
    """
    each = [ranks != rank for rank in range(count)]
    return torch.stack([torch.ones_like(ranks, dtype=torch.bool), *each, torch.zeros_like(ranks, dtype=torch.bool)])
