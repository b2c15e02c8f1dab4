"""Several nodes in one URL: embedded servers with the same points stand in for a cluster whose shards have copies."""

import os
import signal
import time
from contextlib import ExitStack

import pytest

from tests.chaos.faults import server_pid
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Query
from vector_store.server.process import embedded_server
from vector_store.store import Store

KEY = "of-both"


@pytest.fixture
def copies(tmp_path, manifest, make_points, monkeypatch):
    """Two servers with one key and the same twenty points: their folders and addresses."""
    monkeypatch.setenv(StoreConfig().api_key_env, KEY)
    with ExitStack() as stack:
        folders = [tmp_path / "a", tmp_path / "b"]
        urls = [stack.enter_context(embedded_server(folder, api_key=KEY)) for folder in folders]
        for url in urls:
            config = StoreConfig(url=url)
            with connect(config, url) as client:
                store = Store(client, config)
                store.ensure(manifest)
                store.upsert(make_points(20))
        yield folders, urls


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_look_ups_fail_over_to_the_next_node_when_one_dies_or_hangs(copies, manifest, make_points, how):
    folders, urls = copies
    config = StoreConfig(url=",".join(urls), cache_bytes=1, lookup_deadline_ms=2000)
    queries = [Query(point.id, point.keywords, point.sentence, point.document) for point in make_points(20)]
    with connect(config, config.url, rank=0) as client:  # both are on this machine: the first it is
        retriever = Retriever(client, config, manifest, "keywords")
        wanted = retriever.neighbours(queries).ids
        victim = server_pid(folders[0])
        os.kill(victim, how)
        try:
            started_s = time.monotonic()
            found = retriever.neighbours(queries)
            assert found.rungs == ["live"] * 20
            assert found.ids == wanted
            assert time.monotonic() - started_s < 2.5
            started_s = time.monotonic()
            retriever.neighbours(queries)
            assert time.monotonic() - started_s < 0.5, "the dead node is not asked again at once"
        finally:
            if how == signal.SIGSTOP:
                os.kill(victim, signal.SIGCONT)


def test_writes_fail_over_to_the_next_node_and_none_is_lost(copies, manifest, make_points):
    folders, urls = copies
    config = StoreConfig(url=",".join(urls), upsert_bytes=2000, upserts_in_flight=3)
    points = make_points(200, seed=1)
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.manifest()
        with store.writer() as writer:
            writer.submit(points[:50])
            os.kill(server_pid(folders[0]), signal.SIGKILL)
            writer.submit(points[50:])
            written, rejected = writer.finish()
    assert (written, rejected) == (200, [])
    with connect(config, urls[1]) as client:
        assert len(Store(client, config).existing([point.id for point in points[50:]])) == 150


def test_an_error_names_all_addresses_when_every_node_is_away(manifest):
    config = StoreConfig(url="http://127.0.0.1:1,http://127.0.0.1:2", write_deadline_s=0.5)
    with (
        connect(config, config.url) as client,
        pytest.raises(StoreUnavailable, match=r"127.0.0.1:1,http://127.0.0.1:2"),
    ):
        Store(client, config).count()
