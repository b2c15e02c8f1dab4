"""A student's input: the tokens of a batch of texts, and their references.

Shapes: batch, tokens, ref_tokens, references (as many as a row may have), dim (the width of a stored state).
"""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from refbert.student import pooled

Moved = TypeVar("Moved")


@dataclass(frozen=True)
class Batch:
    """Texts with their references.

    `input_ids`, `mask` and, where texts are pairs, `token_type_ids` (batch, tokens); `reference_ids` and `reference_mask`
    (batch, ref_tokens); `reference_states` (batch, ref_tokens, dim), zero where the mask is zero; `reference_spans`
    (batch, references, ref_tokens), true where a token belongs to that reference, or None where each row has one at most.
    """

    input_ids: Tensor
    mask: Tensor
    reference_ids: Tensor
    reference_states: Tensor
    reference_mask: Tensor
    reference_spans: Tensor | None = None
    token_type_ids: Tensor | None = None

    def student_inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the student's `forward`."""
        segments = {} if self.token_type_ids is None else {"token_type_ids": self.token_type_ids}
        return {
            **segments,
            "input_ids": self.input_ids,
            "attention_mask": self.mask,
            "reference_ids": self.reference_ids,
            "reference_states": self.reference_states,
            "reference_mask": self.reference_mask,
        }

    def reference_vectors(self, pooling: str = "mean") -> tuple[Tensor, Tensor]:
        """Return the pooled states of each reference (batch x references, dim), and a mask of those that exist."""
        if self.reference_spans is None:
            return pooled(self.reference_states, self.reference_mask, pooling), self.reference_mask.bool().any(1)
        if pooling == "cls":
            first = self.reference_spans.int().argmax(-1, keepdim=True)
            states = torch.take_along_dim(self.reference_states, first, 1)
            return states.flatten(0, 1), self.reference_spans.any(-1).flatten()
        weights = self.reference_spans.to(self.reference_states.dtype)
        means = weights @ self.reference_states / weights.sum(-1, keepdim=True).clamp_min(1)
        return means.flatten(0, 1), self.reference_spans.any(-1).flatten()


def moved(of: Moved, device: torch.device) -> Moved:
    """Return a copy of a dataclass of tensors, such as a `Batch`, on a device. Fields may be tuples of tensors, or None."""

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            parts = [move(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return None if value is None else value.to(device, non_blocking=True)

    return type(of)(**{field.name: move(getattr(of, field.name)) for field in fields(of)})  # type: ignore[arg-type]
