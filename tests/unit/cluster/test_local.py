"""What is known of a cluster on this machine, without one."""

import json
import shutil
import socket
import stat
from types import SimpleNamespace

import pytest

from cluster import local
from cluster.local import STATE, STORE, STORE_URL, known_cluster
from jobs.run.ports import free_ports
from refbert.errors import UnavailableError
from tests.listeners import stranger_at
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreUnavailable
from vector_store.protocol import api
from vector_store.server.access import identity


def test_the_stores_folder_and_log_are_for_their_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(local, "STORE_START_S", 0.0)
    monkeypatch.setattr(local, "_environment", lambda *_: {})
    monkeypatch.setattr(local.subprocess, "Popen", lambda *_, **__: None)
    with pytest.raises(UnavailableError, match="did not start"):
        local._start_store(SimpleNamespace(store_url="http://127.0.0.1:1", host="127.0.0.1"))
    folder = tmp_path / "home" / "store"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "server.log")] == [0o700, 0o600]


def test_whoever_has_the_stores_port_is_not_taken_for_it_and_gets_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "home"))
    (port,) = free_ports(1, "127.0.0.1")
    with stranger_at(port) as stranger:
        cluster = SimpleNamespace(id="a", store_url=f"http://127.0.0.1:{port}", host="127.0.0.1")
        with pytest.raises(UnavailableError, match=r"did not start: .*cannot listen"):
            local._start_store(cluster)
        for_jobs = local._environment(cluster, STORE)[STORE_URL]
        with connect(StoreConfig(), for_jobs) as client, pytest.raises(StoreUnavailable):
            client.call(client.collections.List, api.ListCollectionsRequest(), 1.0)
        with pytest.raises(BlockingIOError):
            stranger.accept()


def test_a_cluster_whose_head_has_not_its_ports_is_stopped(tmp_path, monkeypatch):
    halted = []
    monkeypatch.setattr(local, "halt", halted.append)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        for cluster in (
            SimpleNamespace(gcs=address, address="http://127.0.0.1:1"),
            SimpleNamespace(gcs="127.0.0.1:1", address=f"http://{address}"),
        ):
            local._require_own_ports(cluster)  # it is this user's
            with monkeypatch.context() as patch:
                patch.setattr(local.os, "getuid", lambda: 10_000)
                with pytest.raises(UnavailableError, match=f"another user of this machine listens at {address}"):
                    local._require_own_ports(cluster)
            assert halted.pop() is cluster


def test_the_state_of_a_copied_home_is_no_cluster_of_the_copys(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    saved = {
        "id": "a", "host": "127.0.0.1", "address": "http://127.0.0.1:1", "gcs": "127.0.0.1:2", "temp_dir": "/tmp/a",
        "workers": ["worker-1"], "cpus_per_worker": 1, "gpus_per_worker": 0, "head_cpus": 0, "store_url": None,
        "home": identity(home),
    }  # fmt: skip
    (home / STATE).write_text(json.dumps(saved))
    monkeypatch.setenv("REFBERT_HOME", str(home))
    assert known_cluster().id == "a"
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "copy"))
    assert known_cluster() is None, "`down` would stop the original's"
