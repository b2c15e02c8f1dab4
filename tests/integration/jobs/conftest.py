"""One trained run for all that reads a student: explaining, offline scoring, the service. A training costs half a minute."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import distill
from jobs.config import RunConfig
from jobs.memory.store import running_store


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory) -> Path:
    """The trained run's $REFBERT_HOME."""
    return tmp_path_factory.mktemp("trained-home")


@pytest.fixture(scope="session")
def trained(ray_cluster, trained_home, tiny_run) -> Iterator[RunConfig]:
    """A run of three steps beside its running store. It lies where $REFBERT_HOME says: use `home_of_the_run`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(trained_home))
        config = tiny_run(name="served", train__steps=3, references={"count": 2})
        with running_store(config):
            distill.run(config)
            yield config


@pytest.fixture
def home_of_the_run(trained, trained_home, monkeypatch) -> None:
    """The test finds the trained run where it was made, whatever ran in between."""
    monkeypatch.setenv("REFBERT_HOME", str(trained_home))
