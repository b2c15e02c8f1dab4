import numpy as np
import pytest

from refbert.errors import InputError
from refbert.projection import Projection, fit_projection


def low_rank_states(tokens: int, seed: int) -> np.ndarray:
    """States of width 16 that vary along 3 directions only, around a mean that is not zero."""
    directions = np.random.default_rng(1).standard_normal((3, 16))
    return (np.random.default_rng(seed).standard_normal((tokens, 3)) @ directions + 5).astype(np.float16)


def test_as_many_components_as_directions_of_variance_lose_nothing():
    projection = fit_projection(low_rank_states(500, seed=0), 3)
    others = low_rank_states(100, seed=2)
    stored = projection.apply(others)
    assert stored.shape == (100, 3)
    np.testing.assert_allclose(projection.restore(stored), others, atol=0.05)


def test_fewer_components_lose_the_variance_of_the_remaining_eigenvalues():
    states = np.random.default_rng(0).standard_normal((20_000, 4)) * [4, 3, 2, 1]
    projection = fit_projection(states.astype(np.float16), 2)
    lost = ((projection.restore(projection.apply(states.astype(np.float16))) - states) ** 2).sum(1).mean()
    assert lost == pytest.approx(2**2 + 1**2, rel=0.05)


def test_a_projection_survives_to_bytes_and_from_bytes():
    projection = fit_projection(low_rank_states(50, seed=0), 3)
    again = Projection.from_bytes(projection.to_bytes(), 16)
    assert again.fingerprint == projection.fingerprint
    assert again.dim == 3
    assert np.array_equal(again.apply(low_rank_states(9, 3)), projection.apply(low_rank_states(9, 3)))


def test_projections_of_different_samples_have_different_fingerprints():
    assert (
        fit_projection(low_rank_states(50, 0), 3).fingerprint != fit_projection(low_rank_states(50, 1), 3).fingerprint
    )


def test_a_sample_smaller_than_the_components_is_refused():
    with pytest.raises(InputError, match="at least 8 sampled tokens, found 5"):
        fit_projection(low_rank_states(5, 0), 8)
