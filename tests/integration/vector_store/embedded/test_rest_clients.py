"""Other people's clients over REST, in an environment of their own: the table by client of docs/store.md, run again."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.store_clients import environment_with, rest_address
from vector_store.server.access import split, stored_key

CLIENTS = ("langchain-qdrant==1.1.*", "llama-index-vector-stores-qdrant==0.10.*")
SCRIPTS = Path(__file__).parent / "rest_clients"

pytestmark = pytest.mark.long  # contract tests over REST run always


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter that has the clients."""
    return environment_with(tmp_path_factory.mktemp("clients") / "environment", *CLIENTS)


@pytest.fixture
def asked(python, server_url):
    def ask(script):
        _, directory = split(server_url)
        command = [python, SCRIPTS / script, rest_address(server_url), stored_key(directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def test_langchain_finds_adds_filters_and_deletes(asked):
    assert asked("ask_langchain.py") == {
        "nearest": [["abb", 1], ["aab", 0]],
        "scores": [1.0],
        "by id": ["ddd"],
        "filtered": ["ddd"],
        "retriever": ["ccc", "abb", "aab"],
        "hybrid": ["ccc"],
        "mmr": ["aab", "ccc"],
    }


def test_llama_index_finds_adds_filters_and_deletes(asked):
    assert asked("ask_llama_index.py") == {
        "nearest": ["abb", "aab"],
        "equal": ["ccc"],
        "at least": ["ccc", "ddd"],
        "one of": ["aab", "ccc"],
        "other than": ["abb", "ccc", "ddd"],
        "empty": 4,
        "mmr": "ccc",
        "by id": ["ddd"],
        "left": 3,
        "cleared": True,
    }
