"""A Hub that does not answer costs one retry and one line; what is cached is still loaded."""

import socket
import time

import pytest
from huggingface_hub import constants

from refbert import hub
from refbert.config import TeacherConfig
from refbert.errors import InputError, UnavailableError
from refbert.teacher import load_teacher


@pytest.fixture
def away(monkeypatch) -> str:
    """An endpoint where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr("refbert.teacher.ENDPOINT", endpoint)
    yield endpoint
    hub.answers.cache_clear()


def test_a_hub_that_is_away_is_asked_twice_and_named_in_one_line(away, caplog, monkeypatch):
    asked = []
    usual = hub.urlopen
    monkeypatch.setattr(hub, "urlopen", lambda *given, **options: asked.append(given) or usual(*given, **options))
    started_s = time.monotonic()
    for _ in range(3):
        with pytest.raises(
            UnavailableError, match=f"nobody/nothing is not cached, and the Hub at {away} does not answer"
        ):
            load_teacher(TeacherConfig(model="nobody/nothing"))
    assert time.monotonic() - started_s < 8
    assert len(asked) == 2
    assert [record.message for record in caplog.records if "does not answer" in record.message] == [
        f"the Hub at {away} does not answer ([Errno 111] Connection refused): only what is cached can be loaded"
    ]


def test_folders_packages_and_an_offline_process_ask_nobody(away, tiny_teacher_path, monkeypatch):
    monkeypatch.setattr(hub, "urlopen", lambda *_, **__: pytest.fail("the Hub was asked"))
    assert hub.loading_options(tiny_teacher_path) == hub.loading_options("pypi:all-MiniLM-L6-v2") == {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_teacher(TeacherConfig(model="nobody/nothing"))
