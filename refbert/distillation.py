"""One distillation step: a student, its teacher's targets, and the weighted sum of losses between them.

The loop, the data and the optimizer live elsewhere; here a batch of tensors becomes one number.

Shapes: batch, tokens, ref_tokens, dim (the teacher's hidden size), labels.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from refbert.config import LossConfig, StudentConfig
from refbert.losses import contrastive_loss, hidden_loss, prediction_loss, relation_loss
from refbert.student import (
    RefBertConfig,
    RefBertForSequenceClassification,
    RefBertModel,
    masked_mean,
    start_from_teacher_embeddings,
)
from refbert.teacher import Teacher


@dataclass
class DistillBatch:
    """One micro-batch.

    `input_ids`, `mask` (batch, tokens); `reference_ids`, `reference_mask` (batch, ref_tokens); `reference_states`
    (batch, ref_tokens, dim), zero where the mask is; `reference_spans` (batch, references, ref_tokens), true where a token is
    of that reference, or None where each row has one at most; `target_states` (batch, tokens, dim) and `target_mask`
    (batch, tokens) where targets come from the memory, else None.
    """

    input_ids: Tensor
    mask: Tensor
    reference_ids: Tensor
    reference_states: Tensor
    reference_mask: Tensor
    target_states: Tensor | None = None
    target_mask: Tensor | None = None
    reference_spans: Tensor | None = None

    def student_inputs(self) -> dict[str, Tensor]:
        """Return what the student's `forward` takes, by its names."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.mask,
            "reference_ids": self.reference_ids,
            "reference_states": self.reference_states,
            "reference_mask": self.reference_mask,
        }

    def reference_vectors(self) -> tuple[Tensor, Tensor]:
        """Return each reference's mean state, (batch x references, dim), and which of them there are."""
        if self.reference_spans is None:
            return masked_mean(self.reference_states, self.reference_mask), self.reference_mask.bool().any(1)
        weights = self.reference_spans.to(self.reference_states.dtype)
        means = weights @ self.reference_states / weights.sum(-1, keepdim=True).clamp_min(1)
        return means.flatten(0, 1), self.reference_spans.any(-1).flatten()

    def to(self, device: torch.device) -> Self:
        """Move every tensor."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            moved[field.name] = None if tensor is None else tensor.to(device, non_blocking=True)
        return type(self)(**moved)


@dataclass
class Targets:
    """What the teacher says of a batch: `layers` as in `Encoding`, `mask` (batch, tokens), `logits` or None."""

    layers: tuple[Tensor, ...]
    mask: Tensor
    logits: Tensor | None = None


class Distiller(nn.Module):
    """A student with what training needs beside it: projections of its inner layers into the teacher's space."""

    def __init__(self, student: RefBertModel | RefBertForSequenceClassification, config: LossConfig) -> None:
        super().__init__()
        self.student = student
        self.config = config
        width, dim = student.config.hidden_size, student.config.dim
        inner = student.config.num_hidden_layers - 1 if config.layer_map == "uniform" and config.hidden else 0
        self.layer_projections = nn.ModuleList(nn.Linear(width, dim) for _ in range(inner))
        self.embedding_projection = nn.Linear(width, dim) if config.embedding else None

    def forward(self, batch: DistillBatch, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss and its unweighted parts, detached, by name."""
        weights = self.config
        output = self.student(**batch.student_inputs(), output_hidden_states=True)
        mask, last = targets.mask, targets.layers[-1]
        projected = output.projected_states.float()
        parts: dict[str, Tensor] = {}
        if weights.hidden:
            pairs = [(projected, last)]
            for number, project in enumerate(self.layer_projections, start=1):
                pairs.append(
                    (
                        project(output.hidden_states[number]).float(),
                        targets.layers[self._teacher_layer(number, targets)],
                    )
                )
            parts["hidden"] = torch.stack([hidden_loss(ours, theirs, mask) for ours, theirs in pairs]).mean()
        if weights.embedding:
            assert self.embedding_projection is not None
            ours = self.embedding_projection(output.hidden_states[0]).float()
            parts["embedding"] = hidden_loss(ours, targets.layers[0], mask)
        if weights.relation:
            parts["relation"] = relation_loss(projected, last, mask, weights.relation_heads)
        if weights.contrastive:
            negatives = batch.reference_vectors() if weights.reference_negatives else ()
            parts["contrastive"] = contrastive_loss(
                masked_mean(projected, mask), masked_mean(last, mask), weights.contrastive_temperature, *negatives
            )
        if weights.prediction:
            assert targets.logits is not None
            parts["prediction"] = prediction_loss(
                output.logits.float(), targets.logits.float(), weights.prediction_temperature
            )
        loss = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _teacher_layer(self, student_layer: int, targets: Targets) -> int:
        """g(m) = m x teacher layers / student layers, TinyBERT's uniform map; index into `targets.layers`."""
        return round(student_layer * (len(targets.layers) - 1) / self.student.config.num_hidden_layers)


def new_student(
    config: StudentConfig, teacher: Teacher, seed: int, reference_dim: int | None = None
) -> RefBertModel | RefBertForSequenceClassification:
    """Build an untrained student for a teacher: its vocabulary, its width of states and, where it has one, its head.

    `reference_dim` is the width of stored states where they are not the teacher's own.
    """
    labels = {"num_labels": teacher.model.config.num_labels} if teacher.config.head == "classification" else {}
    shape = RefBertConfig(
        vocab_size=teacher.model.config.vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=teacher.tokenizer.pad_token_id or 0,
        dim=teacher.dim,
        reference_dim=reference_dim,
        reference_layers=config.reference_layers
        if isinstance(config.reference_layers, str)
        else list(config.reference_layers),
        reference_mode=config.reference_mode,
        reference_keys=config.reference_keys,
        **labels,
    )
    torch.manual_seed(seed)
    student = RefBertForSequenceClassification(shape) if labels else RefBertModel(shape)
    if config.initial == "teacher_embeddings":
        encoder = student if isinstance(student, RefBertModel) else student.encoder
        start_from_teacher_embeddings(encoder, torch.from_numpy(teacher.static_vectors()))
    return student
