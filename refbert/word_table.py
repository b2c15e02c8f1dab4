"""A static vector for each token of a vocabulary, in 8 bits."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class WordTable(NamedTuple):
    """A vector for each token of a vocabulary, in 8 bits: `rows` (vocabulary, words_dim) int8 times `scales` (vocabulary,)
    float16."""

    rows: NDArray[np.int8]
    scales: NDArray[np.float16]

    @property
    def dim(self) -> int:
        """words_dim."""
        return self.rows.shape[1]

    def vectors(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the tokens' vectors, (tokens, words_dim)."""
        return self.rows[token_ids] * self.scales[token_ids].astype(np.float32)[:, None]
