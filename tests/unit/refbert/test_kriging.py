"""Kriging weights against Gaussian-process regression written out, and what they promise of near and equal references."""

import pytest
import torch
from torch.nn import functional as F

from refbert.kriging import corrected, cosines_of, kernel, kriging_weights

TAU, NOISE = 0.4, 0.1


@pytest.fixture
def keys():
    torch.manual_seed(0)
    return F.normalize(torch.randn(3, 5, 8, dtype=torch.float64), dim=-1)


@pytest.fixture
def asked():
    torch.manual_seed(1)
    return F.normalize(torch.randn(3, 8, dtype=torch.float64), dim=-1)


def test_the_answer_is_the_posterior_mean_of_a_gaussian_process(asked, keys):
    residuals = torch.randn(3, 5, 4, dtype=torch.float64)
    weights, variance, nearness = kriging_weights(cosines_of(asked, keys), torch.ones(3, 5), TAU, NOISE)
    found = corrected(torch.zeros(3, 4, dtype=torch.float64), residuals, weights)
    for row in range(3):
        among = kernel(keys[row] @ keys[row].T, TAU) + NOISE * torch.eye(5)
        to = kernel(keys[row] @ asked[row], TAU)
        torch.testing.assert_close(found[row], to @ torch.linalg.inv(among) @ residuals[row])
        torch.testing.assert_close(variance[row], 1 - to @ torch.linalg.inv(among) @ to)
        torch.testing.assert_close(nearness[row], (keys[row] @ asked[row]).max())


def test_missing_references_change_nothing_and_none_leaves_the_base(asked, keys):
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    weights, variance, nearness = kriging_weights(cosines_of(asked, keys), mask, TAU, NOISE)
    fewer, *_ = kriging_weights(cosines_of(asked[:1], keys[:1, :3]), torch.ones(1, 3), TAU, NOISE)
    torch.testing.assert_close(weights[0, :3], fewer[0])
    assert not weights[0, 3:].any()
    assert not weights[1].any()
    assert (variance[1], nearness[1]) == (1, -1)
    torch.testing.assert_close(nearness[0], (keys[0, :3] @ asked[0]).max())
    base = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(corrected(base, torch.randn(3, 5, 4, dtype=torch.float64), weights)[1], base[1])


def test_equal_references_share_one_vote(asked, keys):
    once = keys[:1, :2]
    twice = torch.cat([once, once[:, :1]], 1)
    alone, *_ = kriging_weights(cosines_of(asked[:1], once), torch.ones(1, 2), TAU, 1e-6)
    shared, *_ = kriging_weights(cosines_of(asked[:1], twice), torch.ones(1, 3), TAU, 1e-6)
    torch.testing.assert_close(shared[0, 0], shared[0, 2])
    torch.testing.assert_close(shared[0, 0] + shared[0, 2], alone[0, 0], rtol=1e-4, atol=1e-4)


def test_a_stored_text_is_answered_by_itself_where_there_is_no_noise(keys):
    weights, variance, _ = kriging_weights(cosines_of(keys[:, 2], keys), torch.ones(3, 5), TAU, 1e-9)
    torch.testing.assert_close(weights, torch.eye(5, dtype=torch.float64)[2].expand(3, 5), atol=1e-6, rtol=0)
    assert (variance < 1e-6).all()


def test_weights_have_a_gradient(asked, keys):
    asked.requires_grad_()
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    weights, *_ = kriging_weights(cosines_of(asked, keys), torch.ones(3, 5), tau, NOISE)
    weights.square().sum().backward()
    assert asked.grad is not None
    assert asked.grad.isfinite().all()
    assert tau.grad is not None
    assert tau.grad != 0
