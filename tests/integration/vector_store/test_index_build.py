"""The index is built on a copy in a process of its own. For the embedded server only, in process."""

import threading

import numpy as np
import pytest
import qdrant_edge as engine
from qdrant_client import grpc as api

from vector_store.server.catalogue import Catalogue
from vector_store.server.index_build import build_index

DIM = 512
NUM_POINTS = 6000
"""Enough bytes for the engine to want an index."""


def write(collection, vectors, first=0):
    points = [engine.Point(first + i, vector.tolist(), {"n": first + i}) for i, vector in enumerate(vectors)]
    collection.write(engine.UpdateOperation.upsert_points(points))


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
    catalogue.create(settings)
    for start in range(0, NUM_POINTS, 1000):
        write(catalogue.find("c"), vectors[start : start + 1000], start)
    yield catalogue
    catalogue.close()


def test_the_indexed_copy_takes_the_place_of_the_shard_and_stays_after_a_restart(catalogue, tmp_path, vectors):
    collection = catalogue.find("c")
    assert build_index(collection, threading.Event())
    assert collection.read(engine.EdgeShard.info).indexed_vectors_count >= NUM_POINTS
    assert nearest(collection, vectors[77]) == 77
    write(collection, vectors[:1] + 1, first=NUM_POINTS)
    catalogue.close()

    again = Catalogue(tmp_path)
    collection = again.find("c")
    assert collection.indexed_points == NUM_POINTS
    assert collection.read(engine.EdgeShard.info).points_count == NUM_POINTS + 1
    assert nearest(collection, vectors[77]) == 77
    assert [path.name for path in collection.directory.glob("shard-*")] == ["shard-1"]
    again.close()


def test_a_write_during_the_build_wins_and_reads_go_on(catalogue, vectors):
    collection = catalogue.find("c")
    built = []
    building = threading.Thread(target=lambda: built.append(build_index(collection, threading.Event())))
    building.start()
    while building.is_alive() and not list(collection.directory.glob("shard-1")):
        assert nearest(collection, vectors[5]) == 5
    write(collection, vectors[:1], first=99_999)
    building.join(30)
    assert built == [False]
    assert [path.name for path in collection.directory.glob("shard-*")] == ["shard-0"]
    assert collection.read(lambda shard: shard.count(engine.CountRequest())) == NUM_POINTS + 1
    assert build_index(collection, threading.Event())


def test_a_stopping_server_does_not_wait_for_the_build(catalogue):
    stopping = threading.Event()
    stopping.set()
    assert not build_index(catalogue.find("c"), stopping)
    assert [path.name for path in catalogue.find("c").directory.glob("shard-*")] == ["shard-0"]
