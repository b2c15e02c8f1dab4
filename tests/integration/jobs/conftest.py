"""What jobs' tests share, because a training costs half a minute, and preparing a corpus on Ray seconds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs import distill
from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from jobs.memory.store import running_store
from tests.integration.jobs.in_process import compute_in_process
from vector_store.store import Store


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory) -> Path:
    """The trained run's $REFBERT_HOME."""
    return tmp_path_factory.mktemp("trained-home")


@pytest.fixture(scope="session")
def trained(ray_cluster, process_group, trained_home, tiny_run) -> Iterator[RunConfig]:
    """A complete run beside its running store. It lies where $REFBERT_HOME says: use `home_of_the_run`.

    Ray has prepared its corpus. Filled and trained by Ray's workers, it would be the same: test_ingest.py, test_distill.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(trained_home))
        config = tiny_run(name="served", references__count=2)
        with running_store(config):
            with pytest.MonkeyPatch.context() as alone:
                compute_in_process(alone)
                distill.run(config)
            yield config


@pytest.fixture
def home_of_the_run(trained, trained_home, monkeypatch) -> None:
    """The test finds the trained run where it was made, whatever ran in between."""
    monkeypatch.setenv("REFBERT_HOME", str(trained_home))


@pytest.fixture(scope="session")
def prepared_corpora(ray_cluster, tmp_path_factory, tiny_run) -> Path:
    """A folder with the prepared corpus of `tiny_run`, as it came out of Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(tmp_path_factory.mktemp("prepared-home")))
        return prepare(tiny_run()).directory.parent


@pytest.fixture
def prepared_home(home, prepared_corpora) -> Path:
    """A $REFBERT_HOME in which nothing but the corpus of `tiny_run` is prepared."""
    shutil.copytree(prepared_corpora, home / "corpora")
    return home


@pytest.fixture(scope="session")
def process_group(tmp_path_factory) -> Iterator[None]:
    """A process group of the tests' own process alone. DeepSpeed keeps its first one for good."""
    store = tmp_path_factory.mktemp("process-group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def in_process(process_group, monkeypatch) -> None:
    """Jobs of this test fill, train and score without Ray's processes."""
    compute_in_process(monkeypatch)


class IndexPauses:
    """Whether the index of collections was paused, as each setting of it left it, in their order."""

    def __init__(self) -> None:
        self.paused: list[bool] = []

    def assert_one(self) -> None:
        """The index is built once: when all that would undo it is stored."""
        begun = self.paused.index(True)
        assert self.paused[begun:] == sorted(self.paused[begun:], reverse=True)
        assert not self.paused[-1]


@pytest.fixture
def index_pauses(monkeypatch) -> IndexPauses:
    """The pauses of the index from here on."""
    found, usual = IndexPauses(), Store._set_indexing_threshold

    def watched(store: Store, kilobytes: int) -> None:
        found.paused.append(kilobytes == 0)
        usual(store, kilobytes)

    monkeypatch.setattr(Store, "_set_indexing_threshold", watched)
    return found
