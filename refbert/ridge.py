"""Ridge regression from moments, with leave-one-out residuals: exact where features do not depend on the fit.

Rows come in chunks and are never held together: one pass adds up moments, later ones predict each row from all others.

Shapes: rows, features, dim (of a target). Computed in float64: a Gram matrix squares the condition number.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments:
    """Sums over rows from which any ridge regression on them follows."""

    def __init__(self, features: int, dim: int) -> None:
        self.count = 0
        self.feature_sum = torch.zeros(features, dtype=torch.float64)
        self.target_sum = torch.zeros(dim, dtype=torch.float64)
        self.gram = torch.zeros(features, features, dtype=torch.float64)
        self.cross = torch.zeros(features, dim, dtype=torch.float64)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add (rows, features) and (rows, dim)."""
        features, targets = features.double(), targets.double()
        self.count += len(features)
        self.feature_sum += features.sum(0)
        self.target_sum += targets.sum(0)
        self.gram.addmm_(features.T, features)
        self.cross.addmm_(features.T, targets)


class Ridge(NamedTuple):
    """A fitted ridge regression: `(x - feature_mean) @ weight + target_mean`.

    `weight` (features, dim); `inverse` (features, features) is that of the centred Gram matrix plus the penalty.
    """

    weight: Tensor
    feature_mean: Tensor
    target_mean: Tensor
    inverse: Tensor
    num_rows: int

    def predict(self, features: Tensor) -> Tensor:
        """Return (rows, dim) for (rows, features)."""
        return (features.double() - self.feature_mean) @ self.weight + self.target_mean

    def leverage(self, features: Tensor) -> Tensor:
        """Return (rows,): how far a row that was fitted on draws its own prediction, from 0 to 1."""
        centred = features.double() - self.feature_mean
        return ((centred @ self.inverse) * centred).sum(1) + 1 / self.num_rows

    def leave_one_out(self, features: Tensor, targets: Tensor, most_leverage: float = 1.0) -> Tensor:
        """Return the residuals (rows, dim) of rows that were fitted on, each against the fit without it.

        Exact where features do not depend on the fit (Golub, Heath, Wahba 1979). `most_leverage` bounds how much a residual
        grows. Without its only row there is no fit, and that row's residual is all of its target.
        """
        if self.num_rows == 1:
            return targets.double()
        spared = (1 - self.leverage(features)).clamp_min(max(1 - most_leverage, 1e-9))
        return (targets.double() - self.predict(features)) / spared[:, None]


def fit_ridge(moments: Moments, penalty: float) -> Ridge:
    """Solve for the weights that minimise the squared error plus `penalty` times their squares; the intercept is free.

    Raises ValueError for no rows, and for moments that are not finite.
    """
    if not moments.count:
        raise ValueError("no rows to fit on")
    if not bool(torch.isfinite(moments.gram).all() and torch.isfinite(moments.cross).all()):
        raise ValueError("features or targets hold NaN or infinity")
    feature_mean, target_mean = moments.feature_sum / moments.count, moments.target_sum / moments.count
    gram = moments.gram - moments.count * torch.outer(feature_mean, feature_mean)
    gram.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weight = inverse @ (moments.cross - moments.count * torch.outer(feature_mean, target_mean))
    return Ridge(weight, feature_mean, target_mean, inverse, moments.count)


Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Reads chunks of features and targets, from the start each time that it is called, in the same order."""


class Shrunk(NamedTuple):
    """A ridge regression whose predictions are multiplied by `share`: as far as rows that it has not seen agree with them."""

    ridge: Ridge
    share: float
    most_leverage: float

    @property
    def weight(self) -> Tensor:
        """(features, dim) of `x @ weight + bias`."""
        return self.ridge.weight * self.share

    @property
    def bias(self) -> Tensor:
        """(dim,) of `x @ weight + bias`."""
        return (self.ridge.target_mean - self.ridge.feature_mean @ self.ridge.weight) * self.share

    def leave_one_out(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the residuals (rows, dim) of rows that were fitted on, each against the fit without it."""
        targets = targets.double()
        unseen = targets - self.ridge.leave_one_out(features, targets, self.most_leverage)
        return targets - unseen * self.share


def fit_shrunk(pairs: Pairs, penalties: Sequence[float], sample: int = 4000, most_leverage: float = 1.0) -> Shrunk:
    """Fit with the penalty and the share that predict left-out rows best: the penalty by a `sample` of rows, the share by all.

    Reads the rows two or three times. Raises ValueError for no rows, and for NaN.
    """
    moments = None
    for features, targets in pairs():
        moments = moments or Moments(features.shape[1], targets.shape[1])
        moments.add(features, targets)
    if moments is None:
        raise ValueError("no rows to fit on")
    penalty = penalties[0] if len(penalties) == 1 else best_penalty(moments, first_rows(pairs(), sample), penalties)
    ridge = fit_ridge(moments, penalty)
    agreed = said = 0.0
    for features, targets in pairs():
        unseen = targets.double() - ridge.leave_one_out(features, targets, most_leverage)
        agreed += float((targets * unseen).sum())
        said += float(unseen.square().sum())
    return Shrunk(ridge, min(max(agreed / said, 0.0), 1.0) if said else 0.0, most_leverage)


def best_penalty(moments: Moments, rows: Iterable[tuple[Tensor, Tensor]], penalties: Sequence[float]) -> float:
    """Return the penalty whose fit predicts these of its rows best, each left out: chunks of features and targets."""
    fits = [fit_ridge(moments, penalty) for penalty in penalties]
    errors = [0.0] * len(fits)
    for features, targets in rows:
        for place, fit in enumerate(fits):
            errors[place] += float(fit.leave_one_out(features, targets).square().sum())
    return penalties[min(range(len(fits)), key=errors.__getitem__)]


def first_rows(pairs: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the first chunks, until they hold `count` rows."""
    for features, targets in pairs:
        yield features, targets
        count -= len(features)
        if count <= 0:
            return
