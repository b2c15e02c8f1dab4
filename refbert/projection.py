"""Reduce the width of a teacher's states before they are stored, to the principal components of a sample.

A narrower state takes less memory and less time to fetch; the student projects it to its own width anyway. PreTTR (MacAvaney et
al., SIGIR 2020) learns such a layer; here it is computed from the data. Writes nothing: `to_bytes` gives the numbers to whoever
keeps them.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from refbert.atomic import checksum
from refbert.errors import InputError


@dataclass(frozen=True)
class Projection:
    """stored = (state - mean) @ components: `mean` (teacher_dim,), `components` (teacher_dim, dim), float32."""

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Width of a projected state."""
        return self.components.shape[1]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the numbers: states of two projections must not be mixed."""
        return checksum(self.to_bytes())[:16]

    def apply(self, states: NDArray[np.float16]) -> NDArray[np.float16]:
        """Project (tokens, teacher_dim) states to (tokens, dim)."""
        return ((states.astype(np.float32) - self.mean) @ self.components).astype(np.float16)

    def restore(self, states: NDArray[np.float16]) -> NDArray[np.float32]:
        """Return the least-squares reconstruction (tokens, teacher_dim) of projected states."""
        return states.astype(np.float32) @ self.components.T + self.mean

    def to_bytes(self) -> bytes:
        """Return the numbers as float32, the mean's row before the components' transposed ones."""
        return np.vstack([self.mean[None], self.components.T]).astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes, teacher_dim: int) -> Self:
        """Read what `to_bytes` wrote."""
        rows = np.frombuffer(content, "<f4").reshape(-1, teacher_dim)
        return cls(rows[0], np.ascontiguousarray(rows[1:].T))


def fit_projection(states: NDArray[np.float16], dim: int) -> Projection:
    """Fit the `dim` principal components of sampled states (tokens, teacher_dim).

    Raises InputError where the sample has fewer tokens than components.
    """
    if len(states) < dim:
        raise InputError(
            f"a projection to {dim} dimensions needs at least {dim} sampled tokens, found {len(states)}; give more texts, or a "
            "smaller references.dim"
        )
    sample = states.astype(np.float64)
    mean = sample.mean(0)
    # eigh of the covariance: (teacher_dim, teacher_dim) however many tokens were sampled; eigenvalues ascend.
    _, vectors = np.linalg.eigh(np.cov(sample - mean, rowvar=False))
    return Projection(mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :dim]).astype(np.float32))
