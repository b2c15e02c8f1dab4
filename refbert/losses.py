"""The distillation losses: pure functions of the student's tensors and the teacher's, or labels.

Those that are published name their source.

Shapes: batch, tokens, width (either side's), heads, labels. `mask` (batch, tokens) is 1 on real tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from refbert.attention import QKV
from refbert.errors import InputError


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of (batch, tokens, width) states over real tokens and coordinates (TinyBERT, eq. 8).

    The student's states are already projected to the teacher's width. Also the embedding loss (eq. 9).
    """
    weights = mask.to(student.dtype).unsqueeze(-1)
    return ((student - teacher).square() * weights).sum() / (weights.sum() * student.shape[-1])


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of (batch, heads, tokens, tokens) scores before softmax, over pairs of real tokens and heads.

    TinyBERT, eq. 7. Both sides are scaled by sqrt(head width), as in its code; masked scores may be anything.
    """
    require_equal_heads(student.shape[1], teacher.shape[1])
    pairs = (mask.unsqueeze(-1) * mask.unsqueeze(-2)).bool().unsqueeze(1)
    difference = (student - teacher).masked_fill(~pairs, 0)  # before the square: a masked score is -inf
    return difference.square().sum() / (pairs.sum() * student.shape[1])


def require_equal_heads(student: int, teacher: int) -> None:
    """Raise InputError where attention maps cannot be compared head by head."""
    if student != teacher:
        raise InputError(
            f"loss.attention compares head by head: the student has {student}, the teacher {teacher}; set "
            f"student.num_attention_heads={teacher}, or loss.attention=0 and loss.relation_of=qkv, where heads may differ"
        )


def qkv_relation_loss(student: QKV, teacher: QKV, mask: Tensor, heads: int) -> Tensor:
    """Sum of the relation losses between queries, between keys and between values: MiniLMv2, eq. 5.

    `heads` are relation heads, neither side's own: 48 in the paper for teachers 768 wide.
    """
    return torch.stack([relation_loss(*pair, mask, heads) for pair in zip(student, teacher, strict=True)]).sum()


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL(teacher || student) of token-to-token relations, nats, mean over real tokens and heads.

    Relations are softmax(A A^T / sqrt(head width)): MiniLMv2's where A are queries, keys or values (`qkv_relation_loss`). A may
    also be the layer's states, which the memory has too (ours). Widths may differ: both are cut into `heads` parts, a
    remainder is left out.
    """
    student_log, teacher_log = (_log_relations(states, mask, heads) for states in (student, teacher))
    # A column that is masked is -inf on both sides: its teacher probability is 0 and so is its share.
    rows = (teacher_log.exp() * (teacher_log - student_log).masked_fill(~mask.bool()[:, None, None, :], 0)).sum(-1)
    weights = mask.to(student.dtype)[:, None, :]
    return (rows * weights).sum() / (weights.sum() * heads)


def contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    references: Tensor | None = None,
    references_mask: Tensor | None = None,
) -> Tensor:
    """InfoNCE between (batch, width) sentence vectors, nats, mean over both directions.

    log(batch) minus this is a lower bound of the mutual information of student and teacher (van den Oord et al. 2018,
    eq. 5), the quantity of RefBERT's theory. Negatives are the other rows of the batch and, where given, the teacher's
    vectors of the `references` (n, width) that were read, where `references_mask` (n,) is true. A student that only copies its
    reference is penalised by them (ours).
    """
    student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    similarity = student @ teacher.T / temperature
    own = torch.arange(len(student), device=student.device)
    candidates = similarity
    if references is not None and references_mask is not None:
        against = student @ F.normalize(references, dim=-1).T / temperature
        candidates = torch.cat([similarity, against.masked_fill(~references_mask, float("-inf"))], 1)
    return (F.cross_entropy(candidates, own) + F.cross_entropy(similarity.T, own)) / 2


def sentence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of (batch, width) sentence vectors, mean over rows."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of all cosines between (batch, width) sentence vectors, the student's and the teacher's.

    The similarity-preserving loss (Tung & Mori 2019, eq. 4) with cosines, which do not depend on the batch's size.
    """
    said, taught = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return F.mse_loss(said @ said.T, taught @ taught.T)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (batch, labels) logits and (batch,) classes, nats; squared error where there is one logit.

    Mean over all rows. A row whose label is NaN adds 0, so that a labelled row weighs the same in every batch.
    """
    known, labels = ~labels.isnan(), labels.nan_to_num()
    if logits.shape[-1] == 1:
        losses = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")
    else:
        losses = F.cross_entropy(logits, labels.long(), reduction="none")
    return (losses * known).mean()


def prediction_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Soft cross-entropy of (batch, labels) logits, nats, mean over rows (TinyBERT, eq. 10).

    With one label (regression) it is the mean squared error.
    """
    if student_logits.shape[-1] == 1:
        return F.mse_loss(student_logits, teacher_logits)
    wanted = (teacher_logits / temperature).softmax(-1)
    return F.cross_entropy(student_logits / temperature, wanted)


def _log_relations(states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(batch, tokens, width) to log relations (batch, heads, tokens, tokens)."""
    head_width = states.shape[-1] // heads
    cut = states[..., : head_width * heads].unflatten(-1, (heads, head_width)).transpose(1, 2)
    scores = cut @ cut.transpose(-1, -2) / head_width**0.5
    return scores.masked_fill(~mask.bool()[:, None, None, :], float("-inf")).log_softmax(-1)
