"""Collections: created, listed, described, updated, indexed and deleted."""

import time
import uuid

import numpy as np
import pytest
from qdrant_client import models

from tests.integration.vector_store.contract.collection import NAME, OVER_GRPC, VECTORS, group, ids
from tests.store_clients import REFUSALS, refusal


def test_a_collections_settings_and_metadata_are_returned(filled):
    info = filled.get_collection(NAME)
    assert info.status == models.CollectionStatus.GREEN
    assert info.points_count == 10
    assert info.config.metadata == {"made_by": "tests", "version": 3}
    assert info.config.params.vectors["dense"].size == 4
    assert info.config.params.vectors["dense"].distance == models.Distance.COSINE
    assert info.config.params.vectors["many"].multivector_config is not None
    assert info.config.params.sparse_vectors["words"].modifier == models.Modifier.IDF


def test_metadata_is_merged(filled):
    filled.update_collection(NAME, metadata={"version": 4, "more": [1]})
    assert filled.get_collection(NAME).config.metadata == {"made_by": "tests", "version": 4, "more": [1]}


def test_collections_are_listed_found_and_deleted(filled):
    assert NAME in [collection.name for collection in filled.get_collections().collections]
    assert filled.collection_exists(NAME)
    assert filled.delete_collection(NAME)
    assert not filled.collection_exists(NAME)
    assert NAME not in [collection.name for collection in filled.get_collections().collections]


def test_creating_a_collection_twice_is_already_exists(filled):
    with pytest.raises(REFUSALS, match="already exists"):
        filled.create_collection(NAME, vectors_config=VECTORS)


def test_a_deleted_collection_can_be_created_again_and_is_empty(filled):
    filled.delete_collection(NAME)
    filled.create_collection(NAME, vectors_config=VECTORS)
    assert filled.count(NAME).count == 0


def test_a_missing_collection_is_not_found_by_name(official):
    with pytest.raises(REFUSALS) as caught:
        official.count("nowhere")
    code, text = refusal(caught.value)
    assert code == "NOT_FOUND"
    assert "`nowhere` doesn't exist" in text


def test_a_collection_may_have_one_unnamed_vector(official):
    name = f"plain-{uuid.uuid4()}"
    official.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    official.upsert(name, [models.PointStruct(id=i, vector=[float(i), 1.0]) for i in range(3)])
    found = official.query_points(name, query=[1.0, 0.0], limit=1, with_vectors=True).points[0]
    assert (found.id, found.vector) == (2, [2.0, 1.0])
    official.delete_collection(name)


def test_payload_indexes_are_created_and_deleted(filled):
    filled.create_payload_index(NAME, "group", models.PayloadSchemaType.KEYWORD, wait=True)
    assert filled.get_collection(NAME).payload_schema["group"].data_type == models.PayloadSchemaType.KEYWORD
    assert filled.count(NAME, count_filter=group("a")).count == 5
    filled.delete_payload_index(NAME, "group", wait=True)
    assert "group" not in filled.get_collection(NAME).payload_schema


def test_indexing_can_be_switched_off_and_on_and_is_shown(filled):
    filled.update_collection(NAME, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0))
    info = filled.get_collection(NAME)
    assert info.config.optimizer_config.indexing_threshold == 0
    assert info.status == models.CollectionStatus.GREEN, "nothing is due where nothing is to be indexed"
    assert info.config.metadata["version"] == 3, "what was not named is kept"
    filled.update_collection(NAME, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=20_000))
    assert filled.get_collection(NAME).config.optimizer_config.indexing_threshold == 20_000


def test_hnsw_options_can_be_changed_and_are_shown(filled):
    filled.update_collection(NAME, hnsw_config=models.HnswConfigDiff(m=24))
    config = filled.get_collection(NAME).config.hnsw_config
    assert (config.m, config.ef_construct) == (24, 100)


@OVER_GRPC
def test_a_bulk_load_is_indexed_once_the_threshold_is_back(official):
    """Enough vectors to want an index (10 MB), loaded without one; green then means indexed."""
    name, size, num_points = f"bulk-{uuid.uuid4()}", 512, 6000
    vectors = np.random.default_rng(0).standard_normal((num_points, size)).astype(np.float32)
    official.create_collection(
        name,
        vectors_config=models.VectorParams(size=size, distance=models.Distance.DOT),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0, default_segment_number=1),
    )
    for start in range(0, num_points, 500):
        points = [models.PointStruct(id=i, vector=vectors[i].tolist()) for i in range(start, start + 500)]
        official.upsert(name, points, wait=True)
    info = official.get_collection(name)
    assert (info.status, info.indexed_vectors_count) == (models.CollectionStatus.GREEN, 0)
    official.update_collection(name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=5_000))
    deadline = time.monotonic() + 120
    while (info := official.get_collection(name)).status != models.CollectionStatus.GREEN:
        assert time.monotonic() < deadline, info
        time.sleep(0.1)
    assert info.indexed_vectors_count >= 0.9 * num_points
    official.upsert(name, [models.PointStruct(id=7, vector=(-vectors[7]).tolist())])
    for point_id, vector in ((7, -vectors[7]), (5, vectors[5])):
        assert ids(official.query_points(name, query=vector.tolist(), limit=1).points) == [point_id]
    assert official.count(name).count == num_points
    official.delete_collection(name)
