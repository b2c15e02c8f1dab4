"""What a text reads of its near references: their residuals, weighted by kriging.

Kriging is Gaussian-process regression on the nearest stored points (Rasmussen & Williams 2006, eq. 2.25): near duplicates share
about one vote, and a far neighbour gets the less the smaller tau is. `refbert/correction.py` chooses tau and the noise. The
kernel of two keys is exp((cosine - 1) / tau); the global part uses the same kernel, with a tau of its own.

The exported student has the same in numpy (`refbert/exported.py`); a test compares them.

Shapes: batch, count (references of a text), key_dim, dim. Keys are of unit length.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """`weights` (batch, count) of the references' residuals; `variance` (batch,): 0 beside a stored text, 1 far from all;
    `nearness` (batch,) the cosine of the nearest one's key, -1 where there is none."""

    weights: Tensor
    variance: Tensor
    nearness: Tensor


def kernel(cosine: Tensor, tau: float | Tensor) -> Tensor:
    """Return the covariance of two keys, 1 where they are equal."""
    return torch.exp((cosine - 1) / tau)


class Cosines(NamedTuple):
    """Of keys: `among` the references of a text (batch, count, count), and of the text `to` each of them (batch, count)."""

    among: Tensor
    to: Tensor


def cosines_of(asked: Tensor, keys: Tensor) -> Cosines:
    """Compare the keys of texts (batch, key_dim) and of their references (batch, count, key_dim)."""
    return Cosines(keys @ keys.transpose(1, 2), (keys @ asked[:, :, None]).squeeze(-1))


def kriging_weights(cosines: Cosines, mask: Tensor, tau: float | Tensor, noise: float | Tensor) -> Weights:
    """Weigh the references of each text.

    `mask` (batch, count): which references there are; the others get no weight. `noise` is the variance of what a residual does
    not share with its neighbours.
    """
    seen = mask.bool()
    among = kernel(cosines.among, tau) * (seen[:, :, None] & seen[:, None, :])
    among = among + torch.diag_embed(noise + (~seen).to(among.dtype))  # a missing reference: a row of the identity
    to = kernel(cosines.to, tau) * seen
    weights = torch.linalg.solve(among, to[:, :, None]).squeeze(-1)
    return Weights(weights, (1 - (weights * to).sum(1)).clamp(0, 1), cosines.to.masked_fill(~seen, -1.0).amax(1))


def corrected(base: Tensor, residuals: Tensor, weights: Tensor) -> Tensor:
    """Add the weighted residuals (batch, count, dim) to the answers (batch, dim) without references."""
    return base + (weights[:, None, :] @ residuals).squeeze(1)
