"""Look-ups while the store is away or hangs: live, cached, null, and live again; or with patience."""

import contextlib
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from qdrant_client import grpc as api

from tests.chaos.faults import is_alive, kill_server, server_pid, wait_until
from tests.integration.vector_store.embedded.served import filled_store
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Parts, Query
from vector_store.server.process import embedded_server


def test_look_ups_degrade_from_live_to_cached_to_null_and_recover(tmp_path, manifest, make_points):
    with filled_store(tmp_path, manifest, make_points(20)) as (url, client, config, queries):
        retriever = Retriever(client, config, manifest, "keywords", read=Parts(text=True))
        live = retriever.neighbours(queries[:3])
        assert live.rungs == ["live"] * 3

        kill_server(tmp_path)
        gone = retriever.neighbours(queries[:4])
        assert gone.rungs == ["cached"] * 3 + ["null"]
        assert gone.ids == [*live.ids, []]
        assert gone.texts == [*live.texts, []]
        assert (gone.scores[:3] == live.scores).all()
        assert (gone.states[:3] == live.states).all()
        assert (gone.mask[:3] == live.mask).all()

        with embedded_server(tmp_path) as again:
            assert again == url
            wait_until(lambda: retriever.neighbours(queries[:4]).rungs == ["live"] * 4, "every look-up is live", 15)
        assert retriever.counts["cached"] >= 3


def test_calls_to_a_server_that_shuts_down_find_it_unavailable(tmp_path, manifest, make_points):
    with filled_store(tmp_path, manifest, make_points(20)) as (_, client, config, _):
        pid = server_pid(tmp_path)
        count = api.CountPoints(collection_name=config.collection)

        def ask_to_the_end() -> int:
            answered = 0
            while is_alive(pid):
                with contextlib.suppress(StoreUnavailable):  # any other error ends a training
                    answered += client.ask(client.points.Count, [count], 5.0)[0].result.count
            return answered

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask_to_the_end) for _ in range(8)]
            time.sleep(0.5)
            os.kill(pid, signal.SIGTERM)
            assert sum(future.result() for future in asking) > 0


def test_a_store_that_hangs_costs_one_deadline_and_opens_the_breaker(manifest, make_points):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = StoreConfig(url=url, lookup_deadline_ms=300)
        with connect(config, url) as client:
            retriever = Retriever(client, config, manifest, "keywords")
            point = make_points(1)[0]
            started = time.monotonic()
            for _ in range(5):
                assert retriever.neighbours([Query(point.id, point.keywords)]).rungs == ["null"]
            assert 0.2 < time.monotonic() - started < 0.9


def test_a_patient_look_up_waits_for_a_store_that_comes_back_and_not_for_one_that_does_not(
    tmp_path, manifest, make_points
):
    with filled_store(tmp_path, manifest, make_points(20)) as (url, client, config, queries):
        waits = Retriever(client, config, manifest, "keywords", patience_s=60)
        gives_up = Retriever(client, config, manifest, "keywords", patience_s=4)
        wanted = waits.neighbours(queries)
        kill_server(tmp_path)
        started = time.monotonic()
        assert gives_up.neighbours(queries).rungs == ["null"] * 20
        assert 1.5 < time.monotonic() - started < 30
        started = time.monotonic()
        assert gives_up.neighbours(queries).rungs == ["null"] * 20
        assert time.monotonic() - started < 3, "the wait is for the store's absence, not for each look-up"
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(waits.neighbours, queries)
            time.sleep(1)
            assert not asked.done()
            with embedded_server(tmp_path) as again:
                assert again == url
                assert asked.result().ids == wanted.ids
        assert waits.counts["live"] == 40
        assert waits.counts["cached"] == waits.counts["null"] == 0
