"""The random moments at which things are killed; `--chaos-seed` chooses them."""

import random

import pytest


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> random.Random:
    """Where the random moments of one test come from; the seed is printed, so that a failure can be tried again."""
    seed = request.config.getoption("--chaos-seed")
    print(f"chaos-seed={seed}")
    return random.Random(f"{seed}/{request.node.name}")
