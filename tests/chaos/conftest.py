"""Two forms of every fault test: a short one by default, the long one with `--long`; `--chaos-seed` chooses the moments."""

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the fault tests in their long form: full load, every kill")
    parser.addoption("--chaos-seed", type=int, default=0, help="of the random moments at which things are killed")


# The defaults below are for a run of all tests: pytest has read its command line before it finds this file.


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--long", default=False)


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> random.Random:
    """Where the random moments of one test come from; the seed is printed, so that a failure can be tried again."""
    seed = request.config.getoption("--chaos-seed", default=0)
    print(f"chaos-seed={seed}")
    return random.Random(f"{seed}/{request.node.name}")
