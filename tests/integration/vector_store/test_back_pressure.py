"""A store that is slower than its writer: the writer waits, with a bounded number of points in flight.

A store that is gone ends the load.
"""

import os
import signal
import threading
import time

import pytest

from tests.chaos.faults import kill_server, server_pid, wait_until
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreUnavailable
from vector_store.server.process import embedded_server
from vector_store.store import Store


def test_a_stalled_store_blocks_its_writer_and_no_point_is_lost(tmp_path, manifest, make_points):
    points = make_points(400)
    config = StoreConfig(upserts_in_flight=2, upsert_bytes=2000)
    submitted = 0
    with embedded_server(tmp_path) as url, connect(config, url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        with store.writer() as writer:

            def write() -> None:
                nonlocal submitted
                for point in points:
                    writer.submit([point])
                    submitted += 1

            os.kill(server_pid(tmp_path), signal.SIGSTOP)
            try:
                writing = threading.Thread(target=write)
                writing.start()
                wait_until(lambda: submitted > 0, "the first point is taken")
                while (before := submitted) < len(points):  # until it does not move for a second
                    time.sleep(1)
                    if submitted == before:
                        break
            finally:
                os.kill(server_pid(tmp_path), signal.SIGCONT)
            # Two upserts on their way and a third that is full: each has 2,000 bytes of points of 200 and more.
            assert submitted <= 3 * (config.upsert_bytes // 200)
            writing.join()
            assert writer.finish() == (len(points), [])
            assert writer.wait_s > 0.9
            assert writer.sent_bytes > 200 * len(points)
        assert store.count() == len(points)


def test_a_load_into_a_store_that_is_gone_fails_before_its_source_is_read_to_the_end(tmp_path, manifest, make_points):
    config = StoreConfig(upserts_in_flight=2, upsert_bytes=2000, write_deadline_s=1)
    source = iter(make_points(400))
    with embedded_server(tmp_path) as url, connect(config, url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        kill_server(tmp_path)
        with store.writer() as writer:
            with pytest.raises(StoreUnavailable, match="did not answer Upsert"):
                writer.submit(source)
            with pytest.raises(StoreUnavailable, match="did not answer Upsert"):
                writer.finish()
            writer.submit(make_points(2))  # too few to be sent: what has been reported is not reported again
    assert 400 - len(list(source)) <= 3 * (config.upsert_bytes // 200) + 1
