"""Turn tokens, found neighbours and stored points into the tensors that a student, or its correction, reads."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refbert.batch import Batch
from refbert.correction import Correction, KeyedReferences, References
from refbert.words import WordVectors
from vector_store.schema import Neighbours, StoredPoint


def student_batch(
    ids: Tensor,
    mask: Tensor,
    found: Neighbours | None,
    dim: int,
    reading: NDArray[np.bool_] | None = None,
    token_type_ids: Tensor | None = None,
) -> Batch:
    """Put inputs and found references into tensors; rows that are not `reading` get the null reference.

    The references of a row lie one after another along the token axis, padded to the longest row.
    """
    batch = len(ids)
    if found is None:
        null = ids.new_zeros(batch, 1), torch.zeros(batch, 1, dim), ids.new_zeros(batch, 1)
        return Batch(ids, mask, *null, token_type_ids=token_type_ids)
    seen = found.mask if reading is None else found.mask & reading[:, None]
    longest = max(1, int(seen.sum(1).max(initial=0)))
    return Batch(
        ids,
        mask,
        torch.from_numpy(found.token_ids[:, :longest].astype(np.int64)),
        torch.from_numpy(found.states[:, :longest].astype(np.float32)),
        torch.from_numpy(seen[:, :longest]),
        reference_spans=_spans(found, seen)[:, :, :longest] if found.count > 1 else None,
        token_type_ids=token_type_ids,
    )


class ReferenceKeys:
    """The keys by which a correction weighs references: a reference's does not change within the correction's version."""

    def __init__(self, correction: Correction, words: WordVectors) -> None:
        self._correction, self._words = correction, words
        self.dim = correction.part.landmarks.shape[1]

    def __call__(self, points: Sequence[StoredPoint]) -> NDArray[np.float32]:
        """Return the keys (points, dim); NaN for a point that has no residual yet."""
        said, lacks = (
            torch.from_numpy(column_of(points, name, len(self._correction.part.bias))).to(self._words.device)
            for name in ("vector", "residual")
        )
        references = References(said, lacks, words_of_points(points, self._words))
        return self._correction.keyed(references).keys.cpu().numpy()


def column_of(points: Sequence[StoredPoint], name: str, dim: int) -> NDArray[np.float32]:
    """Return the vectors or residuals of stored texts, (points, dim); NaN for one that is not there, or not yet."""
    missing = np.full(dim, np.nan, np.float32)
    column = [getattr(point, name) for point in points]
    return np.stack([missing if numbers is None else numbers for numbers in column])


def words_of_points(points: Sequence[StoredPoint], words: WordVectors) -> Tensor:
    """Return the vectors of stored texts' words, (points, words_dim)."""
    lengths = torch.tensor([len(point.token_ids) for point in points])
    flat = torch.from_numpy(np.concatenate([point.token_ids for point in points]).astype(np.int64))
    of = torch.arange(len(points)).repeat_interleave(lengths)
    return words.of_flat(flat.to(words.device), of.to(words.device), len(points))


def references_of(found: Neighbours, words: WordVectors) -> References:
    """Put found vectors and residuals, (batch, count, dim), and the vectors of their words where a correction reads them."""
    assert found.vectors is not None
    assert found.residuals is not None
    batch, count = found.scores.shape
    rows, places = np.nonzero(found.mask)
    of = torch.from_numpy(rows * count + found.ranks[rows, places])
    token_ids = torch.from_numpy(found.token_ids[rows, places].astype(np.int64))
    device = words.device
    vectors, residuals = (torch.from_numpy(column).to(device) for column in (found.vectors, found.residuals))
    near = words.of_flat(token_ids.to(device), of.to(device), batch * count)
    return References(vectors, residuals, near.view(batch, count, -1))


def references_to_read(found: Neighbours, words: WordVectors) -> References | KeyedReferences | None:
    """Put what was found where a correction reads it: with keys where it brings them. None where it has no residuals."""
    if found.residuals is None:
        return None
    if found.keys is None:
        return references_of(found, words)
    return KeyedReferences(*(torch.from_numpy(column).to(words.device) for column in (found.keys, found.residuals)))


def _spans(found: Neighbours, seen: NDArray[np.bool_]) -> Tensor:
    """(batch, count, tokens): whether a token that is seen is of the first, the second, ... reference."""
    return torch.from_numpy((found.ranks[:, None] == np.arange(found.count)[:, None]) & seen[:, None])
