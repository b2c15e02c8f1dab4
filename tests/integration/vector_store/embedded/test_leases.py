"""The embedded server starts once, runs while it has users, and ends after the last one."""

import json
import multiprocessing
import os
import shutil
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import children, is_alive, server_pid, wait_until
from tests.integration.vector_store.embedded.served import store_at
from vector_store.__main__ import main
from vector_store.errors import StoreUnavailable
from vector_store.server.access import split
from vector_store.server.process import embedded_server


def test_the_server_runs_until_its_last_user_ends(tmp_path):
    first = embedded_server(tmp_path)
    url = first.__enter__()
    pid = server_pid(tmp_path)
    with embedded_server(tmp_path) as same:
        assert same == url
        first.__exit__(None, None, None)
        time.sleep(4)
        assert is_alive(pid)
    wait_until(lambda: not is_alive(pid), "the server ended", 10)


def _hold(path: str, ready) -> None:
    with embedded_server(path):
        ready.set()
        time.sleep(60)


def test_a_killed_user_releases_its_lease_and_the_server_that_it_started_outlives_it_for_others(tmp_path):
    """Ray kills every child of a worker that ends."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    starter = spawn.Process(target=_hold, args=(str(tmp_path), ready))
    starter.start()
    assert ready.wait(30)
    pid = server_pid(tmp_path)
    with embedded_server(tmp_path) as url:
        for child in children(starter.pid):
            os.kill(child, signal.SIGKILL)
        starter.kill()
        starter.join()
        time.sleep(1)
        assert is_alive(pid)
        assert store_at(url).delete_collection() is False
    wait_until(lambda: not is_alive(pid), "the server ended", 10)


class Impostor(api.QdrantServicer):
    """Says what an ended server said."""

    def __init__(self, said):
        self.said = said

    def HealthCheck(self, request, context):  # noqa: N802
        return self.said


def test_what_listens_at_an_ended_servers_port_is_not_taken_for_it(tmp_path):
    """A health check shows everybody what the server says of itself; who had its port would be sent the store's key."""
    with embedded_server(tmp_path) as url:
        address = split(url)[0].removeprefix("http://")
        with grpc.insecure_channel(address) as channel:
            said = api.QdrantStub(channel).HealthCheck(api.HealthCheckRequest())
        pid = server_pid(tmp_path)
    wait_until(lambda: not is_alive(pid), "the server ended", 10)
    other = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    api.add_QdrantServicer_to_server(Impostor(said), other)
    assert other.add_insecure_port(address)
    other.start()
    try:
        with embedded_server(tmp_path) as url:
            assert split(url)[0].removeprefix("http://") != address
            assert store_at(url).delete_collection() is False
    finally:
        other.stop(0).wait()


def test_simultaneous_starts_result_in_one_server(tmp_path):
    def start(_):
        server = embedded_server(tmp_path)
        return server, server.__enter__()

    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(start, range(4)))
    try:
        assert len({url for _, url in started}) == 1
        serving = [line for line in (tmp_path / "server.log").read_text().splitlines() if " serving " in line]
        assert len(serving) == 1
    finally:
        for server, _ in started:
            server.__exit__(None, None, None)


def test_attaching_while_the_server_stops_gives_a_running_server(tmp_path):
    with embedded_server(tmp_path):
        pass
    log = tmp_path / "server.log"
    wait_until(lambda: "stopped serving" in log.read_text(), "the server stops", 10)  # its process is still ending
    with embedded_server(tmp_path) as url:
        assert store_at(url).delete_collection() is False


def test_another_server_on_the_old_port_is_not_mistaken_for_this_stores(tmp_path):
    (tmp_path / "a").mkdir()
    with embedded_server(tmp_path / "b") as other:
        address = {"url": split(other)[0], "pid": 1, "instance": "old"}
        (tmp_path / "a" / "address.json").write_text(json.dumps(address))
        with embedded_server(tmp_path / "a") as url:
            assert split(url)[0] != split(other)[0]


def test_a_copied_store_is_served_by_a_server_of_its_own(tmp_path, manifest, make_points):
    with embedded_server(tmp_path / "original") as url:
        original = store_at(url)
        original.ensure(manifest)
        original.upsert(make_points(6))
        shutil.copytree(tmp_path / "original", tmp_path / "copy")
        assert main(["delete", str(tmp_path / "copy"), "--split", "train", "--yes"]) == 0
        assert original.count() == 6, "the copy's address.json names the original's server"
        with embedded_server(tmp_path / "copy") as other:
            assert split(other)[0] != split(url)[0]
            assert store_at(other).count() == 2


def test_a_directory_is_found_under_any_of_its_names(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "store")
    with embedded_server(tmp_path / "store") as url, embedded_server(tmp_path / "link") as same:
        assert split(same)[0] == split(url)[0]


def test_the_server_starts_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with embedded_server("relative") as url:
        assert url.startswith("http://127.0.0.1:")


def test_only_the_owner_can_read_the_address_file(tmp_path):
    with embedded_server(tmp_path):
        assert stat.S_IMODE((tmp_path / "address.json").stat().st_mode) == 0o600


def test_a_failed_start_shows_the_log(tmp_path):
    (tmp_path / "collections").write_text("a file where a folder belongs")
    with (
        pytest.raises(StoreUnavailable, match=r"did not start, it ended with code 2:(.|\n)*File exists"),
        embedded_server(tmp_path),
    ):
        pass
