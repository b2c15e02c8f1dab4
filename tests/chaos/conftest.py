"""Two forms of every fault test: a short one by default, the long one with `--long`; `--chaos-seed` chooses the moments."""

import random

import pytest


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--long")


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> random.Random:
    """Where the random moments of one test come from; the seed is printed, so that a failure can be tried again."""
    seed = request.config.getoption("--chaos-seed")
    print(f"chaos-seed={seed}")
    return random.Random(f"{seed}/{request.node.name}")
