"""The index is built on a copy by a child process. For the embedded server only, in process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import qdrant_edge as engine
from qdrant_client import grpc as api

from vector_store.server import catalogue as catalogue_module
from vector_store.server.catalogue import Catalogue
from vector_store.server.index_build import build_index

DIM = 128
NUM_POINTS = 3000
THRESHOLD_KB = 500
"""The points have three times as many, so the engine wants an index."""


def upsert(collection, vectors, first=0):
    points = [engine.Point(first + i, vector.tolist(), {"n": first + i}) for i, vector in enumerate(vectors)]
    collection.write(engine.UpdateOperation.upsert_points(points), api.UpsertPoints())


def delete(collection, *ids):
    request = api.DeletePoints(
        points=api.PointsSelector(points=api.PointsIdsList(ids=[api.PointId(num=i) for i in ids]))
    )
    collection.write(engine.UpdateOperation.delete_points(list(ids)), request)


def count(collection):
    return collection.read(lambda shard: shard.count(engine.CountRequest()))


def shards(collection):
    return [path.name for path in collection.directory.glob("shard-*")]


def set_threshold(collection, kilobytes):
    update = api.UpdateCollection(collection_name="c")
    update.optimizers_config.indexing_threshold = kilobytes
    collection.update(update)


@contextlib.contextmanager
def in_background(collection, stopping=None):
    """Build meanwhile; yields the list that gets the outcome, once the copy is there."""
    built = []
    building = threading.Thread(target=lambda: built.append(build_index(collection, stopping or threading.Event())))
    building.start()
    while building.is_alive() and not collection.keeps_writes:
        time.sleep(0.001)
    yield built
    building.join(60)
    assert not building.is_alive()


def nearest(collection, vector):
    query = engine.QueryRequest(limit=1, query=engine.Query.Nearest(vector.tolist()))
    return collection.read(lambda shard: shard.query(query))[0].id


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((NUM_POINTS, DIM)).astype(np.float32)


@pytest.fixture
def catalogue(tmp_path, vectors):
    catalogue = Catalogue(tmp_path)
    settings = api.CreateCollection(collection_name="c")
    settings.vectors_config.params.size, settings.vectors_config.params.distance = DIM, api.Distance.Cosine
    settings.optimizers_config.indexing_threshold = THRESHOLD_KB
    catalogue.create(settings)
    for start in range(0, NUM_POINTS, 1000):
        upsert(catalogue.find("c"), vectors[start : start + 1000], start)
    yield catalogue
    catalogue.close()


def test_the_indexed_copy_replaces_the_shard_and_is_used_after_a_restart(catalogue, tmp_path, vectors):
    collection = catalogue.find("c")
    assert build_index(collection, threading.Event())
    assert collection.read(engine.EdgeShard.info).indexed_vectors_count >= NUM_POINTS
    assert nearest(collection, vectors[77]) == 77
    upsert(collection, vectors[:1] + 1, first=NUM_POINTS)
    catalogue.close()

    again = Catalogue(tmp_path)
    collection = again.find("c")
    assert collection.indexed_points == NUM_POINTS
    assert collection.read(engine.EdgeShard.info).points_count == NUM_POINTS + 1
    assert nearest(collection, vectors[77]) == 77
    assert [path.name for path in collection.directory.glob("shard-*")] == ["shard-1"]
    again.close()


def test_points_whose_payload_changes_leave_the_index_and_get_another(catalogue, vectors):
    ids = list(range(NUM_POINTS))
    by_filter, by_ids = api.DeletePayloadPoints(keys=["absent"]), api.SetPayloadPoints()
    by_filter.points_selector.filter.SetInParent()
    by_ids.points_selector.points.ids.extend(api.PointId(num=i) for i in ids)
    collection = catalogue.find("c")
    assert build_index(collection, threading.Event())
    assert not collection.wants_index()
    collection.write(engine.UpdateOperation.delete_payload_by_filter(engine.Filter(), ["absent"]), by_filter)
    assert collection.wants_index()
    assert collection.wants_rebuild(), "the old segment keeps what was written anew"
    assert build_index(collection, threading.Event(), rebuild=True)
    assert not collection.wants_index()
    assert not collection.wants_rebuild()
    info = collection.read(engine.EdgeShard.info)
    assert (info.points_count, info.indexed_vectors_count) == (NUM_POINTS, NUM_POINTS)
    assert nearest(collection, vectors[77]) == 77
    upsert(collection, vectors[:2] + 1, first=NUM_POINTS)
    collection.write(engine.UpdateOperation.set_payload(ids, {"more": 1}), by_ids)
    assert collection.wants_index()
    assert collection.removed == NUM_POINTS
    collection.write(engine.UpdateOperation.set_payload(ids, {"more": 2}), by_ids)
    assert collection.removed == NUM_POINTS, "points that have no index do not count again"


def test_points_whose_payload_changes_during_the_build_are_not_in_the_new_index(catalogue):
    collection = catalogue.find("c")
    with in_background(collection) as built:
        ids = list(range(NUM_POINTS * 2 // 3))
        request = api.SetPayloadPoints()
        request.points_selector.points.ids.extend(api.PointId(num=i) for i in ids)
        collection.write(engine.UpdateOperation.set_payload(ids, {"more": 1}), request)
    assert built == [True]
    assert collection.indexed_points == NUM_POINTS // 3
    assert collection.wants_index()


def test_points_that_are_added_during_the_build_are_not_in_the_new_index(catalogue, vectors):
    """They were counted as indexed: the status was green, and searches scanned them until a fifth more had come."""
    collection = catalogue.find("c")
    with in_background(collection) as built:
        upsert(collection, vectors[: NUM_POINTS // 2] + 1, first=NUM_POINTS)
    assert built == [True]
    assert collection.indexed_points == NUM_POINTS
    assert collection.wants_index()
    assert build_index(collection, threading.Event())
    assert collection.indexed_points == NUM_POINTS * 3 // 2
    assert not collection.wants_index()


def test_writes_during_the_build_are_in_the_new_shard(catalogue, tmp_path, vectors):
    collection = catalogue.find("c")
    with in_background(collection) as built:
        upsert(collection, vectors[:1] + 5, first=99_999)
        upsert(collection, -vectors[3:4], first=3)
        delete(collection, 4, 5)
        upsert(collection, vectors[4:5], first=4)
        assert nearest(collection, vectors[6]) == 6, "reads go on"
    assert built == [True]

    def check(collection):
        assert collection.read(engine.EdgeShard.info).indexed_vectors_count >= NUM_POINTS - 3
        assert count(collection) == NUM_POINTS
        assert nearest(collection, vectors[0] + 5) == 99_999
        assert nearest(collection, -vectors[3]) == 3
        assert nearest(collection, vectors[3]) != 3
        assert nearest(collection, vectors[4]) == 4
        assert nearest(collection, vectors[5]) != 5
        assert shards(collection) == ["shard-1"]

    check(collection)
    catalogue.close()
    again = Catalogue(tmp_path)
    check(again.find("c"))
    again.close()


def test_a_collection_under_constant_writes_is_indexed_and_loses_no_write(catalogue, vectors):
    collection = catalogue.find("c")
    written = 0
    with in_background(collection) as built:
        while not built:
            upsert(collection, vectors[:2], first=NUM_POINTS + 2 * written)
            written += 1
            time.sleep(0.001)
    assert built == [True]
    assert written > 20
    assert count(collection) == NUM_POINTS + 2 * written
    assert collection.shard_directory.name == "shard-1"


def test_too_many_writes_drop_the_copy_and_the_shard_stays_in_use(catalogue, vectors, monkeypatch):
    monkeypatch.setattr(catalogue_module, "KEPT_BYTES", -1)
    collection = catalogue.find("c")
    with in_background(collection) as built:
        upsert(collection, vectors[:1], first=99_999)
    assert built == [False]
    assert shards(collection) == ["shard-0"]
    assert count(collection) == NUM_POINTS + 1
    assert not collection.index_schedule.is_due(True, wrote_at=time.monotonic()), "it waits for a pause now"
    monkeypatch.undo()
    assert build_index(collection, threading.Event())


def test_a_collection_can_be_deleted_while_its_index_is_built(catalogue, tmp_path):
    with in_background(catalogue.find("c")) as built:
        assert catalogue.delete("c")
    assert built == [False]
    assert list((tmp_path / "collections").iterdir()) == []


def test_a_stopping_server_does_not_wait_for_the_build(catalogue):
    stopping = threading.Event()
    stopping.set()
    assert not build_index(catalogue.find("c"), stopping)
    assert shards(catalogue.find("c")) == ["shard-0"]


def test_a_threshold_of_zero_never_builds_and_raising_it_builds_at_once(catalogue):
    collection = catalogue.find("c")
    assert collection.wants_index()
    set_threshold(collection, 0)
    assert not collection.wants_index()
    set_threshold(collection, NUM_POINTS * DIM * 4 // 1024 + 1)
    assert not collection.wants_index()
    set_threshold(collection, THRESHOLD_KB)
    assert collection.wants_index()
    assert collection.index_schedule.is_due(True, wrote_at=time.monotonic()), "no pause of writes is waited for"


def test_changed_hnsw_options_rebuild_the_index(catalogue):
    collection = catalogue.find("c")
    assert build_index(collection, threading.Event())
    assert not collection.wants_index()
    collection.update(api.UpdateCollection(collection_name="c", hnsw_config=api.HnswConfigDiff(m=8)))
    assert collection.wants_index()
    assert build_index(collection, threading.Event())
    assert '"m":8' in (collection.shard_directory / "edge_config.json").read_text().replace(" ", "")
    assert not collection.wants_index()


_BUILDING_SERVER = """
import sys, threading
from pathlib import Path
from vector_store.server.catalogue import Catalogue
from vector_store.server.index_build import build_index

build_index(Catalogue(Path(sys.argv[1])).find("c"), threading.Event())
"""


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_killing_the_server_ends_its_index_build_and_the_store_opens_complete(catalogue, tmp_path):
    catalogue.close()
    server = subprocess.Popen([sys.executable, "-c", _BUILDING_SERVER, str(tmp_path)])
    while not (children := _children(server.pid)):
        assert server.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    again = Catalogue(tmp_path)
    assert count(again.find("c")) == NUM_POINTS
    assert shards(again.find("c")) == ["shard-0"]
    again.close()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{children[0]}"):
        assert time.monotonic() < deadline, "the builder lives on"
        time.sleep(0.05)
