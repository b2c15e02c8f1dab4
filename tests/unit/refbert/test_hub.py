"""A Hub that does not answer costs one retry and one line; what is cached is still loaded."""

import json
import shutil
import socket
import time

import pytest
from huggingface_hub import constants

from refbert import hub
from refbert.config import TeacherConfig
from refbert.errors import InputError, UnavailableError
from refbert.folder import load_model
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
    assert hub.loading_options(tiny_teacher_path) == hub.loading_options("pypi:all-MiniLM-L6-v2") == hub.NO_CODE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_teacher(TeacherConfig(model="nobody/nothing"))


def test_a_model_that_needs_code_of_its_own_is_refused_without_a_question_on_the_terminal(
    tiny_teacher_path, tmp_path, monkeypatch
):
    """transformers 5.23 asks whether to run it, and waits, where `trust_remote_code` is left out."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_teacher_path, folder)
    config = json.loads((folder / "config.json").read_text())
    entries = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "theirs", "auto_map": entries}))
    with pytest.raises(InputError, match="needs code of its own, which is not run"):
        load_teacher(TeacherConfig(model=str(folder)))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(folder)
