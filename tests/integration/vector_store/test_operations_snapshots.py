"""Creating and restoring snapshots: with the real embedded server, and with a fake of a Qdrant server's REST port."""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vector_store.client import connect
from vector_store.comparison import compare
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMissing, StoreError, StoreUnavailable
from vector_store.server.process import embedded_server
from vector_store.snapshots import (
    create_snapshot,
    delete_snapshot,
    list_snapshots,
    restore_directory,
    restore_server,
)
from vector_store.store import Store


def test_a_snapshot_is_created_listed_and_deleted(store, client, config, manifest, make_points):
    store.ensure(manifest)
    store.upsert(make_points(20))
    made = create_snapshot(client, config.collection)
    assert made.size_bytes > 0
    assert re.fullmatch(r"[0-9a-f]{64}", made.checksum)
    assert list_snapshots(client, config.collection) == [made]
    delete_snapshot(client, config.collection, made.name)
    assert list_snapshots(client, config.collection) == []
    with pytest.raises(CollectionMissing, match="not found"):
        delete_snapshot(client, config.collection, made.name)
    with pytest.raises(CollectionMissing):
        create_snapshot(client, "none-such")


def test_a_restored_snapshot_equals_the_original_memory(tmp_path, manifest, make_points):
    config = StoreConfig()
    with embedded_server(tmp_path / "a") as url, connect(config, url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        store.upsert(make_points(300))
        name = create_snapshot(client, config.collection).name
        store.delete(("split", "test"))
        archive = tmp_path / "a" / "snapshots" / config.collection / name
        restore_directory(tmp_path / "b", "back", archive)  # another store's server does not matter
        with embedded_server(tmp_path / "b") as other_url, connect(config, other_url) as other_client:
            back = Store(other_client, config.model_copy(update={"collection": "back"}))
            found = compare(store, back)
            assert (found.num_equal, found.num_only_a, found.num_only_b, found.manifest_fields) == (200, 0, 100, [])
            store.upsert(make_points(300))
            assert compare(store, back).is_equal


def test_restoring_waits_for_the_server_of_a_store_that_was_just_used(tmp_path, manifest):
    config = StoreConfig()
    with embedded_server(tmp_path) as url, connect(config, url) as client:
        Store(client, config).ensure(manifest)
        name = create_snapshot(client, config.collection).name
    archive = tmp_path / "snapshots" / config.collection / name
    restore_directory(tmp_path, "again", archive)
    with pytest.raises(StoreError, match="already"):
        restore_directory(tmp_path, "again", archive)
    with embedded_server(tmp_path) as url, connect(config, url) as client:
        assert Store(client, config.model_copy(update={"collection": "again"})).manifest() == manifest


def test_restoring_into_a_store_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vector_store.snapshots.LEAVING_S", 0.5)
    (tmp_path / "x.snapshot").write_bytes(b"anything")
    with embedded_server(tmp_path / "store"), pytest.raises(StoreError, match="is being served"):
        restore_directory(tmp_path / "store", "again", tmp_path / "x.snapshot")


def test_a_missing_snapshot_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"there is no snapshot .*gone\.snapshot"):
        restore_directory(tmp_path, "again", tmp_path / "gone.snapshot")
    with pytest.raises(StoreError, match=r"there is no snapshot .*gone\.snapshot"):
        restore_server("http://127.0.0.1:6334", "again", tmp_path / "gone.snapshot", None, 6333)


# ---------------------------------------------------------------- over REST


class RestPort(BaseHTTPRequestHandler):
    """Takes what a Qdrant server's REST port would be sent; knows one collection, `taken`, and refuses `refused`.

    Of a restored one it has shard 0 with 60 points, and of `part` another node has shard 1.
    """

    sent: list[tuple[str, str, dict[str, str], bytes]]

    def do_GET(self):
        if self.path.endswith("/cluster"):
            elsewhere = [{"shard_id": shard, "peer_id": 2, "state": "Active"} for shard in (0, 1)]
            self._answer(200, {"result": {
                "peer_id": 1, "shard_count": 2, "shard_transfers": [],
                "local_shards": [{"shard_id": 0, "points_count": 60, "state": "Active"}],
                "remote_shards": elsewhere if "part" in self.path else elsewhere[:1],
            }})  # fmt: skip
        else:
            self._answer(200, {"result": {"exists": self.path == "/collections/taken/exists"}})

    def do_DELETE(self):
        type(self).sent.append((self.command, self.path, dict(self.headers), b""))
        self._answer(200, {"result": True, "status": "ok", "time": 0.1})

    def do_POST(self):
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length else b"".join(self._chunks())
        type(self).sent.append((self.command, self.path, dict(self.headers), body))
        if "refused" in self.path:
            self._answer(400, {"status": {"error": "Wrong input: this is no snapshot"}})
        else:
            self._answer(200, {"result": True, "status": "ok", "time": 0.1})

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def rest_port():
    RestPort.sent = []
    with ThreadingHTTPServer(("127.0.0.1", 0), RestPort) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_server_is_sent_the_whole_snapshot_with_the_key(tmp_path, rest_port, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # cannot reach this machine's loopback
    content = os.urandom(300_000)
    (tmp_path / "x.snapshot").write_bytes(content)
    counted = restore_server("http://127.0.0.1:6334", "references-v2", tmp_path / "x.snapshot", "secret", rest_port)
    assert counted == 60
    ((method, path, headers, body),) = RestPort.sent
    assert (method, path) == ("POST", "/collections/references-v2/snapshots/upload?wait=true&priority=snapshot")
    assert {key.lower(): value for key, value in headers.items()}["api-key"] == "secret"
    assert headers["Content-Type"].startswith("multipart/form-data; boundary=")
    head, _, rest = body.partition(b"\r\n\r\n")
    assert b'name="snapshot"' in head
    assert rest.startswith(content)
    assert len(rest) < len(content) + 100


def test_a_restored_part_of_a_memory_is_deleted_again_and_never_called_restored(tmp_path, rest_port):
    (tmp_path / "x.snapshot").write_bytes(b"one node's shards")
    with pytest.raises(StoreError, match=r"holds a part of a memory: .* shards 1 of 'part' were empty.*export"):
        restore_server("http://127.0.0.1:6334", "part", tmp_path / "x.snapshot", None, rest_port)
    assert [(method, path) for method, path, *_ in RestPort.sent][-1] == ("DELETE", "/collections/part")


def test_a_servers_refusal_of_a_snapshot_is_quoted(tmp_path, rest_port):
    (tmp_path / "x.snapshot").write_bytes(b"no snapshot")
    with pytest.raises(StoreError, match=r"HTTP 400: .*this is no snapshot"):
        restore_server("http://127.0.0.1:6334", "refused", tmp_path / "x.snapshot", None, rest_port)


def test_restoring_never_replaces_a_collection_of_a_server(tmp_path, rest_port):
    (tmp_path / "x.snapshot").write_bytes(b"a snapshot")
    with pytest.raises(StoreError, match="has a collection 'taken' already; restore under another name"):
        restore_server("http://127.0.0.1:6334", "taken", tmp_path / "x.snapshot", None, rest_port)
    assert RestPort.sent == []


def test_a_server_without_a_rest_port_is_unavailable(tmp_path, rest_port):
    (tmp_path / "x.snapshot").write_bytes(b"a snapshot")
    with pytest.raises(StoreUnavailable, match=r"did not answer .*--rest-port"):
        restore_server("http://127.0.0.1:6334", "references", tmp_path / "x.snapshot", None, 9)
