"""The optimizer of distillation and fine-tuning: AdamW, linear warm-up, linear decay.

Knows nothing of losses, of data, or of workers.
"""

import torch
from torch import nn


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov & Hutter 2019) over a model: matrices decay, biases and norms do not."""
    learned = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        fused=True,  # one pass over 15 M parameters instead of nine: 20 ms instead of 100 on two cores
    )


def warmup_decay(step: int, steps: int, warmup_fraction: float) -> float:
    """Factor on the learning rate of a step, counted from 0: linear up to 1 over the warm-up, then linear to 0 at `steps`."""
    warmup = max(1, round(steps * warmup_fraction))
    return (step + 1) / warmup if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))
