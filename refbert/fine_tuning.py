"""Teach an encoder a labelled task, on one device: what makes a task's teacher, and a student that no teacher helps.

Batches are of texts of like length, in an order that depends on the seed alone. A killed training goes on from its last
epoch. Knows nothing of references' whereabouts and of Ray.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refbert.config import FineTuneConfig
from refbert.optimisation import adamw, warmup_decay

log = logging.getLogger(__name__)

SORTED_BATCHES = 16
"""Batches whose texts are sorted by length together: enough for little padding, too few to order an epoch by length."""

Rows = NDArray[np.int64]


class BucketedOrder:
    """Which rows of a labelled data set make up each batch, over all epochs: texts of like length share one.

    The last batch of an epoch may be smaller. `lengths` (rows,) are in any unit that grows with tokens.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch = batch
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)  # threads that look ahead ask for two epochs at once

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch."""
        return -(-len(self.lengths) // self.batch)

    def rows(self, number: int) -> Rows:
        """Return the row numbers of one batch, numbered from 0 over all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        return self._epoch(epoch)[place]

    def _shuffled(self, epoch: int) -> list[Rows]:
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = rng.permutation(len(self.lengths))
        window = self.batch * SORTED_BATCHES
        batches = [
            chunk[start : start + self.batch]
            for first in range(0, len(shuffled), window)
            for chunk in [_by_length(shuffled[first : first + window], self.lengths)]
            for start in range(0, len(chunk), self.batch)
        ]
        # The smaller batch stays last, so that every epoch has the same number of steps of the same size.
        full, rest = [b for b in batches if len(b) == self.batch], [b for b in batches if len(b) < self.batch]
        return [full[place] for place in rng.permutation(len(full))] + rest


def _by_length(rows: Rows, lengths: NDArray[Any]) -> Rows:
    return rows[np.argsort(lengths[rows], kind="stable")]


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

    `loss_of(step)` is the loss of a step's batch, steps counted from 0. After every epoch `checkpoint` is written, and found
    again by a training that was killed; it is deleted at the end. Raises ValueError where the loss is no finite number.
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
        if not torch.isfinite(norm):
            raise ValueError(f"the loss became {loss.item()} at step {step}; lower learning_rate")
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, loss.item()
        if (step + 1) % per_epoch == 0 and step + 1 < steps:
            _save(model, optimizer, checkpoint, step + 1)
    checkpoint.unlink(missing_ok=True)
    model.eval()


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, step: int) -> None:
    scratch = checkpoint.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, scratch)
    scratch.rename(checkpoint)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, device: torch.device) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("resuming after step %d", state["step"])
    return int(state["step"])
