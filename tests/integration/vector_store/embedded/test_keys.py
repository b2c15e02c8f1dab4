"""API keys: checked where one is set, and required off loopback."""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import grpc
import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import server_pid, wait_until
from tests.listeners import stranger_at
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.server.access import split, with_directory
from vector_store.server.process import NUM_THREADS, embedded_server, serve
from vector_store.store import Store


def test_a_server_with_a_key_requires_it(tmp_path, manifest):
    with embedded_server(tmp_path, api_key="right") as named:
        url, _ = split(named)
        config = StoreConfig(url=url, api_key_env="NO_SUCH_VARIABLE")
        for key, complaint in ((None, "no API key was sent"), ("wrong", "is not accepted")):
            with connect(config, url, api_key=key) as client, pytest.raises(StoreError, match=complaint):
                Store(client, config).count()
        with connect(config, url, api_key="right") as client:
            Store(client, config).ensure(manifest)
        with grpc.insecure_channel(url.removeprefix("http://")) as channel:
            assert "embedded" in api.QdrantStub(channel).HealthCheck(api.HealthCheckRequest()).title


def test_without_a_given_key_a_server_asks_for_its_directorys_which_only_the_owner_can_read(tmp_path, manifest):
    with embedded_server(tmp_path / "store") as url:
        key_file = tmp_path / "store" / "key"
        plain, _ = split(url)
        assert key_file.read_text() == key_file.read_text().strip(), "it can be given as it is"
        assert key_file.read_text() not in url
        config = StoreConfig(url=plain, api_key_env="NO_SUCH_VARIABLE")
        with (
            connect(config, plain) as client,
            pytest.raises(StoreError, match=r"no API key was sent.*file `key` of its"),
        ):
            Store(client, config).ensure(manifest)
        with connect(config, url) as client:
            Store(client, config).ensure(manifest)
        with connect(config, plain, api_key=key_file.read_text().strip()) as client:
            assert Store(client, config).exists()
        made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()}
        readable = {name for name, mode in made.items() if mode & 0o077}
        assert not readable
        assert {"key", "address.json", "collections", "server.log", "lease.lock", "serve.lock"} <= made.keys()
        collection = next((tmp_path / "store" / "collections").iterdir())
        assert not [path for path in (collection, *collection.rglob("*")) if path.stat().st_mode & 0o077]


def test_a_client_whose_server_was_killed_sends_the_key_to_nobody_else_and_goes_on_with_the_next(
    tmp_path, manifest, make_points
):
    """Whoever takes the port of a server that was killed would be sent it: a channel connects again by itself."""
    config = StoreConfig(api_key_env="NO_SUCH_VARIABLE", write_deadline_s=3.0)
    with ExitStack() as stack:
        url = stack.enter_context(embedded_server(tmp_path / "store"))
        client = stack.enter_context(connect(config, url))
        store = Store(client, config)
        store.ensure(manifest)
        store.upsert(make_points(3))
        port, pid = urlsplit(url).port, server_pid(tmp_path / "store")
        os.kill(pid, signal.SIGKILL)
        taken = stack.enter_context(stranger_at(port))
        with pytest.raises(StoreUnavailable):
            store.count()
        with connect(config, url) as another, pytest.raises(StoreUnavailable):
            Store(another, config).count()
        with pytest.raises(BlockingIOError):
            taken.accept()
        again = stack.enter_context(embedded_server(tmp_path / "store"))
        assert urlsplit(again).port != port, "that is somebody else's now"
        assert store.count() == 3


def test_after_a_server_has_ended_by_itself_nothing_is_sent_to_its_port(tmp_path, manifest):
    config = StoreConfig(api_key_env="NO_SUCH_VARIABLE", write_deadline_s=1.0)
    with embedded_server(tmp_path / "store") as url, connect(config, url) as client:
        Store(client, config).ensure(manifest)
    log = tmp_path / "store" / "server.log"
    wait_until(lambda: "stopped serving" in log.read_text(), "it ends, unused", 20)
    with ExitStack() as stack:
        taken = stack.enter_context(stranger_at(urlsplit(url).port))
        client = stack.enter_context(connect(config, url))
        with pytest.raises(StoreUnavailable):
            Store(client, config).count()
        with pytest.raises(BlockingIOError):
            taken.accept()


def test_a_stores_own_socket_is_used_at_whatever_address_of_this_machine_it_is_named(tmp_path, manifest):
    config = StoreConfig(api_key_env="NO_SUCH_VARIABLE", write_deadline_s=3.0)
    with embedded_server(tmp_path / "store"):
        # An address of documentation, which nobody has: what is reached is the socket.
        with connect(config, with_directory("http://192.0.2.1:6334", tmp_path / "store")) as client:
            Store(client, config).ensure(manifest)
            assert Store(client, config).count() == 0
        with (
            connect(config, with_directory("http://192.0.2.1:6334", tmp_path / "elsewhere")) as client,
            pytest.raises(StoreUnavailable, match=r"192\.0\.2\.1"),
        ):
            Store(client, config).count()


def test_calls_without_a_key_that_never_send_their_message_hold_no_thread(tmp_path, manifest):
    """Each would hold one of the server's threads, and it has as many as are opened here."""
    held, deadline_s = threading.Event(), time.monotonic() + 5

    def never() -> Iterator[bytes]:
        held.wait(60)
        yield from ()

    with embedded_server(tmp_path) as url:
        config = StoreConfig(api_key_env="NO_SUCH_VARIABLE", write_deadline_s=5.0)
        with grpc.insecure_channel(split(url)[0].removeprefix("http://")) as stranger, connect(config, url) as client:
            calls = [  # kept: a call that nobody holds is cancelled
                stranger.stream_unary(f"/qdrant.{method}").future(never())
                for method in ("Points/Upsert", "Qdrant/HealthCheck")
                for _ in range(NUM_THREADS)
            ]
            wait_until(lambda: all(call.done() for call in calls) or time.monotonic() > deadline_s, "they are answered")
            try:
                Store(client, config).ensure(manifest)
                assert Store(client, config).count() == 0
            finally:
                held.set()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "some.host"])
def test_off_loopback_a_server_without_a_key_refuses_to_start(tmp_path, host):
    with pytest.raises(StoreError, match="without an API key"):
        serve(tmp_path, host=host)
    with pytest.raises(StoreError, match="without an API key"), embedded_server(tmp_path, host=host):
        pass
    assert not (tmp_path / "address.json").exists()


def test_a_new_stores_directory_is_its_owners_alone(tmp_path):
    with embedded_server(tmp_path / "deep" / "store"):
        assert stat.S_IMODE((tmp_path / "deep" / "store").stat().st_mode) == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    with embedded_server(tmp_path / "shared"):
        assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o755, "what was there keeps its mode"
