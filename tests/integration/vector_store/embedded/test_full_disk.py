"""On a full disk writes are refused and nothing is lost; once there is space, writing goes on."""

import os
import subprocess
import time

import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import kill_server
from tests.integration.vector_store.embedded.served import create_plain
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.server.process import embedded_server


@pytest.fixture
def small_disk(tmp_path):
    """384 MB of memory as a disk."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=384m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def large_points(batch, num=16):
    """Points that no compression makes smaller: 64 kB each."""
    points = []
    for n in range(batch * num, batch * num + num):
        point = api.PointStruct(id=api.PointId(num=n))
        point.payload["noise"].string_value = os.urandom(32_768).hex()
        point.vectors.vector.dense.data.extend([float(n), 1.0])
        points.append(point)
    return api.UpsertPoints(collection_name="c", wait=True, points=points)


def readable(client):
    request = api.ScrollPoints(collection_name="c", limit=10_000, with_payload=api.WithPayloadSelector(enable=True))
    result = client.call(client.points.Scroll, request, 30).result
    assert all(len(point.payload["noise"].string_value) == 65_536 for point in result)
    return sorted(point.id.num for point in result)


def test_on_a_full_disk_writes_are_refused_until_there_is_space_and_nothing_is_lost(small_disk):
    config = StoreConfig(message_bytes=512 * 2**20)
    root = small_disk / "store"
    ballast = small_disk / "ballast"

    def fill(client, first):
        """Write until refused; returns the batch that was."""
        for batch in range(first, 1000):
            request, started = large_points(batch), time.monotonic()
            try:
                client.call(client.points.Upsert, request, 30)
            except StoreError as error:
                refusal = str(error)
                break
        assert "No space left on device" in refusal
        assert "free some space" in refusal
        assert time.monotonic() - started < 5, "refused at once, not tried until the deadline"
        return batch

    with embedded_server(root, message_bytes=config.message_bytes) as url, connect(config, url) as client:
        create_plain(client, "c")
        ballast.write_bytes(bytes(80 * 2**20))
        batches = fill(client, 0)
        assert batches > 10
        assert readable(client) == list(range(batches * 16))
        kill_server(root)
    with embedded_server(root, message_bytes=config.message_bytes) as url, connect(config, url) as client:
        assert readable(client) == list(range(batches * 16))
        batches = fill(client, batches)  # at once, or when what the engine frees of its log within seconds is full, too
        ballast.unlink()
        more = fill(client, batches)
        assert more > batches + 5
        assert readable(client) == list(range(more * 16))
        some = api.PointsSelector(points=api.PointsIdsList(ids=[api.PointId(num=0)]))
        client.call(client.points.Delete, api.DeletePoints(collection_name="c", points=some), 10)
        client.call(client.collections.Delete, api.DeleteCollection(collection_name="c"), 10)
        create_plain(client, "c")
        client.call(client.points.Upsert, large_points(0), 30)
        assert readable(client) == list(range(16))


def test_a_store_on_a_disk_filled_by_others_reports_it_and_opens_once_there_is_space(small_disk):
    root = small_disk / "store"
    with embedded_server(root) as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")
        client.call(client.points.Upsert, large_points(0), 30)
        kill_server(root)
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "ballast").write_bytes(bytes(384 * 2**20))
    with pytest.raises(StoreUnavailable, match="No space left on device"), embedded_server(root):
        pass
    (small_disk / "ballast").unlink()
    with embedded_server(root) as url, connect(StoreConfig(), url) as client:
        assert readable(client) == list(range(16))
