"""What tests of adapting share: one store for all, a student that has learned nothing, and a memory for it."""

import pytest

from refbert.config import AdaptConfig
from refbert.memory import adaptation
from refbert.teacher import load_teacher
from tests.integration.jobs.adapting.memory import Memory
from tests.integration.jobs.untaught import save_untaught_student
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.server.process import embedded_server


@pytest.fixture(scope="package")
def store_url(tmp_path_factory):
    with embedded_server(tmp_path_factory.mktemp("adapt-store")) as url:
        yield url


@pytest.fixture(scope="package")
def teacher(tiny_run):
    return load_teacher(tiny_run().teacher)


@pytest.fixture
def student_folder(teacher, tmp_path):
    """A student that has learned nothing, without a word table."""
    save_untaught_student(tmp_path / "student", teacher)
    return tmp_path / "student"


@pytest.fixture
def memory(tiny_run, store_url, student_folder, teacher, request, monkeypatch):
    monkeypatch.setattr(adaptation, "PAGE", 40)
    options = AdaptConfig(collection=f"c{abs(hash(request.node.name))}", landmarks=2, references={"count": 4})
    store = StoreConfig(url=store_url, collection=options.collection, lookup_deadline_ms=5000)
    config = tiny_run().model_copy(update={"adapt": options, "references": options.references, "store": store})
    with connect(store, store_url) as client:
        yield Memory(config, client, student_folder, teacher)
