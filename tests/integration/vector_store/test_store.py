import numpy as np
import pytest
from qdrant_client import grpc as api

from vector_store.codec import encode
from vector_store.errors import CollectionMismatch, CollectionMissing, InvalidPoint
from vector_store.schema import Parts
from vector_store.store import Store, collection_names


def test_a_new_collection_carries_its_manifest_and_indexes(store, client, config, manifest):
    store.ensure(manifest)
    assert Store(client, config).manifest() == manifest
    assert config.collection in collection_names(client)
    info = client.call(
        client.collections.Get, api.GetCollectionInfoRequest(collection_name=config.collection), 10
    ).result
    assert set(info.payload_schema) == {"document", "source", "split"}
    assert "sentence" in info.config.params.vectors_config.params_map.map


def test_without_a_dense_index_there_is_no_dense_vector(store, manifest, make_points):
    without = manifest.model_copy(update={"words_dim": 0})
    store.ensure(without)
    with pytest.raises(InvalidPoint, match="no dense index"):
        store.upsert(make_points(1))


def test_ensure_keeps_an_existing_collections_points(store, manifest, make_points):
    store.ensure(manifest)
    store.upsert(make_points(5))
    store.ensure(manifest)
    assert store.count() == 5


def test_another_manifest_is_refused_field_by_field_with_advice(store, manifest):
    store.ensure(manifest)
    other = manifest.model_copy(update={"fingerprint": "f2", "tokens": 64})
    with pytest.raises(CollectionMismatch) as caught:
        store.ensure(other)
    message = str(caught.value)
    assert "was written by test with fingerprint='f1', tokens=8; this run wants fingerprint='f2', tokens=64" in message
    assert "python jobs/ingest.py" in message
    assert "layer" not in message


def test_a_missing_collection_raises_its_own_error(store):
    with pytest.raises(CollectionMissing):
        store.manifest()
    with pytest.raises(CollectionMissing):
        store.count()


def test_a_collection_without_a_manifest_is_a_mismatch(store, client, config):
    request = api.CreateCollection(collection_name=config.collection)
    request.vectors_config.params.size, request.vectors_config.params.distance = 4, api.Distance.Dot
    client.call(client.collections.Create, request, 10)
    with pytest.raises(
        CollectionMismatch, match=r"is no memory, something else wrote it; .* `refbert adopt STUDENT"
    ) as found:
        store.manifest()
    assert "delete" not in str(found.value)


def test_points_are_fetched_as_written_and_rows_of_missing_ones_are_empty(store, manifest, make_points):
    store.ensure(manifest)
    points = make_points(20)
    assert store.upsert(points) == 20
    absent = make_points(1, seed=9)[0].id
    found = store.fetch([points[7].id, absent, points[4].id], Parts(text=True))
    assert found.ids == [[points[7].id], [], [points[4].id]]
    assert found.texts == [["text 7"], [], [("text 4", "its second 4")]]
    assert found.mask.sum(1).tolist() == [len(points[7].states), 0, len(points[4].states)]
    for row, point in ((0, points[7]), (2, points[4])):
        assert np.array_equal(found.states[row][found.mask[row]], point.states)
        assert np.array_equal(found.token_ids[row][found.mask[row]], point.token_ids)
    assert store.fetch([points[0].id]).texts == [[None]]


def test_existing_returns_the_ids_that_are_stored(store, manifest, make_points):
    store.ensure(manifest)
    points = make_points(1500)
    store.upsert(points[:1200])
    assert store.existing([point.id for point in points]) == {point.id for point in points[:1200]}
    assert store.existing([]) == set()


def test_a_load_is_to_store_what_is_neither_stored_nor_deleted(store, manifest, make_points, client, config):
    store.ensure(manifest)
    points = make_points(20, per_document=5)
    ids = [point.id for point in points]
    store.upsert(points[:15])
    assert store.known(ids) == (set(ids[:15]), set(), ids[15:])
    store.delete(("document", "d1"))
    assert store.known([*ids, *ids]) == (set(ids[:5] + ids[10:15]), set(ids[5:10]), ids[15:])
    assert store.known(ids[5:12]) == (set(ids[10:12]), set(ids[5:10]), [])
    store.upsert(points[5:6])  # by its writer's own will
    assert store.known(ids) == Store(client, config).known(ids) == (set(ids[:6] + ids[10:15]), set(ids[6:10]), ids[15:])
    store.readmit()
    assert store.known(ids) == (set(ids[:6] + ids[10:15]), set(), ids[6:10] + ids[15:])
    assert store.known([]) == (set(), set(), [])


def test_writing_again_changes_nothing(store, manifest, make_points):
    store.ensure(manifest)
    points = make_points(10)
    store.upsert(points)
    store.upsert(points)
    assert store.count() == 10


def test_batches_stay_under_the_byte_limit(client, config, manifest, make_points):
    sizes = []

    class Watched:
        def __init__(self, inner):
            self.points, self.collections, self.url = inner.points, inner.collections, inner.url
            self._inner = inner

        def call(self, stub_method, request, deadline_s):
            if isinstance(request, api.UpsertPoints):
                sizes.append(request.ByteSize())
            return self._inner.call(stub_method, request, deadline_s)

    limit = 2000
    small = Store(Watched(client), config.model_copy(update={"upsert_bytes": limit}))
    small.ensure(manifest)
    assert small.upsert(make_points(50)) == 50
    assert small.count() == 50
    small.delete_collection()
    assert len(sizes) > 3
    assert max(sizes) < limit * 1.1


def test_one_invalid_point_prevents_the_whole_upsert(store, manifest, make_points):
    store.ensure(manifest)
    points = make_points(10)
    points[9].states[:] = np.nan
    with pytest.raises(InvalidPoint, match=points[9].id):
        store.upsert(points)
    assert store.count() == 0


def test_the_byte_estimate_is_close_to_the_exact_size(store, manifest, make_points):
    store.ensure(manifest)
    assert store.bytes_estimate() == 0
    points = make_points(300)
    store.upsert(points)
    truth = sum(encode(point, manifest).ByteSize() for point in points)
    assert store.bytes_estimate() == pytest.approx(truth, rel=0.1)


def test_deleting_a_collection_returns_whether_it_existed(store, manifest):
    store.ensure(manifest)
    assert store.delete_collection()
    assert not store.delete_collection()
