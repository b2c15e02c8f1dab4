"""The learning rate's schedule, and which weights decay."""

import pytest
from torch import nn

from refbert.optimisation import adamw, warmup_decay


def test_the_learning_rate_warms_up_and_decays_linearly():
    factors = [warmup_decay(step, steps=20, warmup_fraction=0.25) for step in range(21)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == pytest.approx([1 - step / 15 for step in range(16)])


def test_weight_decay_is_for_matrices_and_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2).requires_grad_(False))
    decayed, plain = adamw(model, 1e-3, 0.1).param_groups
    assert ([p.ndim for p in decayed["params"]], decayed["weight_decay"]) == ([2], 0.1)
    assert ([p.ndim for p in plain["params"]], plain["weight_decay"]) == ([1, 1, 1], 0.0)
