"""Fine-tune an encoder on a labelled task, on one device: a task's teacher, or a student.

A killed training resumes after its last whole epoch. Knows nothing of the memory and of Ray.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from refbert.atomic import whole_file
from refbert.config import FineTuneConfig
from refbert.errors import InputError
from refbert.optimisation import adamw, warmup_decay

log = logging.getLogger(__name__)


def train_epochs(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    per_epoch: int,
    config: FineTuneConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device,
) -> Iterator[tuple[int, float]]:
    """Train for `config.epochs` of `per_epoch` steps; yields (steps made, loss) after each.

    `loss_of(step)` is the loss of a step's batch, steps counted from 0. `checkpoint` is written after every epoch, resumed from
    where it exists, and deleted at the end. Raises InputError at the first loss or gradient that is not finite; the
    checkpoint of the last whole epoch is kept.
    """
    steps = config.epochs * per_epoch
    optimizer = adamw(model, config.learning_rate, config.weight_decay)
    first = _restore(model, optimizer, checkpoint, device)
    model.train()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_decay(step, steps, config.warmup_fraction)
        torch.manual_seed(seed * 1_000_003 + step)  # dropout is the same, wherever the training was resumed
        loss = loss_of(step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or float("inf"))
        if not (norm.isfinite() and loss.isfinite()):
            what = "gradient is not finite" if loss.isfinite() else f"loss became {loss.item()}"
            clipping = "" if config.clip else ", and set clip=1"
            raise InputError(
                f"the {what} at step {step + 1} of {steps}; lower learning_rate={config.learning_rate:g}{clipping}"
            )
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, loss.item()
        if (step + 1) % per_epoch == 0 and step + 1 < steps:
            _save(model, optimizer, checkpoint, step + 1)
    checkpoint.unlink(missing_ok=True)
    model.eval()


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, step: int) -> None:
    with whole_file(checkpoint) as scratch:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, scratch)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, device: torch.device) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("resuming after step %d", state["step"])
    return int(state["step"])
