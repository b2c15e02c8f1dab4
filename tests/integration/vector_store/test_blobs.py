"""Bytes that are kept with a collection come back whole, travel with it, and are none of its points."""

import dataclasses

import numpy as np
import pytest
from qdrant_client import grpc as api

from vector_store.codec import FIRST_POINT
from vector_store.comparison import compare
from vector_store.errors import InvalidPoint
from vector_store.retriever import Retriever
from vector_store.schema import Parts, Query, SparseVector
from vector_store.store import Store
from vector_store.transfer import export_points, import_points

STUDENT = "0123456789ab"


@pytest.fixture
def filled(store, manifest, make_points):
    """Twelve points, each with a residual."""
    store.ensure(manifest)
    points = [
        dataclasses.replace(point, residuals={STUDENT: point.vector / 2}) for point in make_points(12, per_document=1)
    ]
    store.upsert(points)
    return points


@pytest.mark.parametrize("size", [0, 1, 2**20, 2_500_000])
def test_bytes_of_any_size_come_back(store, filled, size):
    content = np.random.default_rng(0).bytes(size)
    store.keep("a map", content)
    assert store.kept("a map") == content
    assert store.kept("another") is None


def test_what_is_kept_again_replaces_what_was(store, filled):
    for content in (b"x" * 2_500_000, b"short", b"y" * 1_200_000):
        store.keep("a map", content)
        assert store.kept("a map") == content
    assert dict(store.blobs()) == {"a map": b"y" * 1_200_000}


def test_blobs_are_no_points(store, filled, client, config, manifest):
    store.keep("a map", b"x" * 2_500_000)
    assert store.count() == 12
    assert [point.id for page in store.pages(5) for point in page] == sorted(point.id for point in filled)
    assert store.bytes_estimate() < 12_000
    asking = Query(
        FIRST_POINT, SparseVector(np.arange(50, dtype=np.uint32), np.ones(50, np.float32)), np.ones(4, np.float32)
    )
    for criterion in ("keywords", "dense", "hybrid", "random"):
        found = Retriever(client, config, manifest, criterion, count=100).neighbours([asking])
        assert len(found.ids[0]) == 12, criterion
        assert min(found.ids[0]) > FIRST_POINT


def test_a_blob_that_is_forgotten_is_gone_and_others_stay(store, filled):
    store.keep("a map", b"x" * 1_200_000)
    store.keep("another", b"y")
    store.forget("a map")
    assert dict(store.blobs()) == {"another": b"y"}
    assert store.count() == 12


def test_residuals_are_set_and_dropped_without_touching_the_rest(store, filled):
    ids = [point.id for point in filled]
    before = list(store.pages())
    new = {point.id: np.float32(1) + point.vector for point in filled[:8]}
    store.set_residuals("another", new)
    found = store.fetch(ids, Parts(states=False, residual_of="another")).residuals[:, 0]
    np.testing.assert_allclose(found[:8], np.stack(list(new.values())), atol=0.03)
    assert np.isnan(found[8:]).all()
    for reader in (STUDENT, "another"):
        store.drop_residuals(reader)
    assert np.isnan(store.fetch(ids, Parts(states=False, residual_of=STUDENT)).residuals).all()
    for page, page_before in zip(store.pages(), before, strict=True):
        for point, was in zip(page, page_before, strict=True):
            assert not point.residuals
            assert np.array_equal(point.states, was.states)
            assert np.array_equal(point.vector, was.vector)
            assert np.array_equal(point.sentence, was.sentence)


def test_points_that_are_gone_get_no_residual_and_the_others_do(store, filled, monkeypatch):
    monkeypatch.setattr(
        "vector_store.store.IDS_PER_CALL", 4
    )  # some calls have a point that is gone, some have only such
    gone = [filled[number] for number in (1, 4, 5, 6, 7)]
    for point in gone:
        store.delete(("document", point.document))
    assert store.set_residuals("r", {point.id: point.vector for point in filled}) == 7
    residuals = store.fetch([point.id for point in filled], Parts(states=False, residual_of="r")).residuals[:, 0]
    ids_gone = {point.id for point in gone}
    there = [point.id not in ids_gone for point in filled]
    np.testing.assert_array_equal(np.isfinite(residuals).all(axis=1), there)


@pytest.mark.parametrize("damage", [np.nan, np.inf, 7e4])
def test_a_residual_that_cannot_be_kept_is_refused_before_any_is_written(store, filled, damage):
    good, bad = filled[0], filled[1]
    with pytest.raises(InvalidPoint, match=f"residual of point {bad.id} is no vector of 4 finite numbers"):
        store.set_residuals("r", {good.id: good.vector, bad.id: np.full(4, damage, np.float32)})
    assert np.isnan(store.fetch([good.id], Parts(states=False, residual_of="r")).residuals).all()


def test_a_blob_whose_part_is_gone_is_refused(store, filled, client, config, monkeypatch):
    monkeypatch.setattr("vector_store.blobs.BETWEEN_READS_S", 0.0)
    store.keep("a map", b"x" * 2_500_000)
    page = client.call(client.points.Scroll, api.ScrollPoints(collection_name=config.collection, limit=3), 10).result
    gone = api.PointsSelector(points=api.PointsIdsList(ids=[page[2].id]))
    client.call(client.points.Delete, api.DeletePoints(collection_name=config.collection, wait=True, points=gone), 10)
    with pytest.raises(InvalidPoint, match=r"blob 'a map' of collection .* is incomplete; write it again"):
        store.kept("a map")


def test_residuals_and_blobs_are_exported_and_imported(store, filled, client, config, tmp_path):
    store.keep("a map", b"some bytes")
    export_points(store, tmp_path / "out", 100)
    target = Store(client, config.model_copy(update={"collection": f"{config.collection}-copy"}))
    try:
        import_points(target, tmp_path / "out")
        assert dict(target.blobs()) == {"a map": b"some bytes"}
        assert compare(store, target).is_equal
        read = Parts(states=False, vector=True, residual_of=STUDENT)
        found = target.fetch([point.id for point in filled], read)
        np.testing.assert_allclose(found.residuals, found.vectors / 2, atol=0.03)
        store.upsert([dataclasses.replace(filled[0], residuals={})])
        difference = compare(store, target)
        assert dict(difference.fields) == {f"residual of {STUDENT}": 1}
    finally:
        target.delete_collection()
