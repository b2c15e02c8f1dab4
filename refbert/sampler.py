"""Samplers: which rows of a corpus make up each batch, over all epochs.

For the same rows, lengths and options a batch is a function of the seed and its number alone. Batches are therefore the same
for any number of workers, and one number is the whole state to resume from.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SORTED_BATCHES = 16
"""Batches whose texts are sorted by length together: enough for little padding, too few to order an epoch by length."""


class Sampler(Protocol):
    """An endless order of batches."""

    seed: int

    def rows(self, number: int) -> NDArray[np.int64]:
        """Return the row numbers of the batch with this number, which counts from 0 over all epochs."""


class ShuffleSampler:
    """Batches of `batch` rows from a new permutation in each epoch; a batch may cross an epoch's end.

    Keeps the permutations of two epochs.
    """

    def __init__(self, num_rows: int, batch: int, seed: int) -> None:
        self.num_rows, self.batch, self.seed = num_rows, batch, seed
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def rows(self, number: int) -> NDArray[np.int64]:
        """Return the (batch,) row numbers of one batch."""
        places = range(number * self.batch, (number + 1) * self.batch)
        return np.array([self._permutation(place // self.num_rows)[place % self.num_rows] for place in places])

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)


class LengthSampler:
    """Micro-batches whose texts have similar lengths, and so have those of one step, whose workers wait for each other.

    Steps of `per_step` micro-batches of `batch` rows each, from a new permutation in each epoch, which a step may cross the end
    of. `lengths` (rows,) are in any unit that grows with tokens.
    """

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], batch: int, per_step: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch, self.per_step, self.seed = batch, per_step, seed
        self._shuffled = ShuffleSampler(len(self.lengths), batch * per_step * SORTED_BATCHES, seed)
        self._window = lru_cache(maxsize=2)(self._sorted)  # threads that look ahead ask for two windows at once

    def rows(self, number: int) -> NDArray[np.int64]:
        """Return the (batch,) row numbers of one micro-batch."""
        step, place = divmod(number, self.per_step)
        window, step = divmod(step, SORTED_BATCHES)
        return self._window(window)[step, place]

    def _sorted(self, window: int) -> NDArray[np.int64]:
        """(steps, per_step, batch) row numbers."""
        rows = _by_length(self._shuffled.rows(window), self.lengths).reshape(SORTED_BATCHES, self.per_step, self.batch)
        return rows[np.random.default_rng([self.seed, window, 1]).permutation(SORTED_BATCHES)]


class BucketSampler:
    """Batches of a labelled data set, over all epochs, in which texts have similar lengths.

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

    def rows(self, number: int) -> NDArray[np.int64]:
        """Return the row numbers of one batch, numbered from 0 over all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        return self._epoch(epoch)[place]

    def _shuffled(self, epoch: int) -> list[NDArray[np.int64]]:
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


def _by_length(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[np.argsort(lengths[rows], kind="stable")]
