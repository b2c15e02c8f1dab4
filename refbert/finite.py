"""Find NaN and infinite values in weights: of a teacher, a student or a checkpoint, as it is loaded or written.

One such value can make every answer NaN, and nothing else fails. The callers refuse such weights; `fault_in` only says what is
wrong.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def fault_in(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Say how many of the named tensors hold NaN or infinite values, and which is the first; None where all are finite."""
    # A float64 sum of float32 values is finite exactly when each of them is, and takes one pass.
    faulty = [
        name
        for name, tensor in tensors
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float64).isfinite()
    ]
    if not faulty:
        return None
    return f"{len(faulty)} tensors hold NaN or infinite values, the first is {faulty[0]}"
