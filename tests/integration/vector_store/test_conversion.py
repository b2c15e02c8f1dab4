"""A collection of format 2 is converted without its texts being encoded again; elsewhere it is refused with that command."""

import numpy as np
import pytest
from qdrant_client import grpc as api

from vector_store.codec import TOKEN_IDS, as_text, encode
from vector_store.conversion import convert
from vector_store.errors import CollectionMismatch
from vector_store.schema import Parts
from vector_store.store import Store
from vector_store.verification import OTHER_ID, verify

NEW_FIELDS = ("vector_datatype", "token_bytes", "words_dim")


@pytest.fixture
def old(store, client, config, manifest, make_points):
    """A collection as the release before wrote it, with 30 points."""
    store.ensure(manifest)
    points = make_points(30)
    described = manifest.model_dump(exclude=set(NEW_FIELDS)) | {"format_version": 2, "dense_index": True}
    store.delete_collection()
    request = api.CreateCollection(collection_name=config.collection)
    request.sparse_vectors_config.map["keywords"].modifier = api.Modifier.Idf
    request.vectors_config.params_map.map["sentence"].size = 4
    request.vectors_config.params_map.map["sentence"].distance = api.Distance.Cosine
    for key, value in described.items():
        kind = {str: "string", bool: "bool", int: "integer", float: "double"}[type(value)]
        setattr(request.metadata[key], f"{kind}_value", value)
    client.call(client.collections.Create, request, 10)
    messages = [encode(point, manifest) for point in points]
    for message, point in zip(messages, points, strict=True):
        del message.payload["vector"]
        message.payload[TOKEN_IDS].string_value = as_text(point.token_ids.astype("<i4").tobytes())
    client.call(
        client.points.Upsert, api.UpsertPoints(collection_name=config.collection, wait=True, points=messages), 10
    )
    return points


@pytest.fixture
def new(client, config):
    store = Store(client, config.model_copy(update={"collection": f"{config.collection}-3"}))
    yield store
    store.delete_collection()


def test_every_point_is_converted_and_its_vector_is_the_mean_of_its_states(store, old, new):
    assert convert(store, new, vocabulary=30_522) == len(old)
    assert convert(store, new, vocabulary=30_522) == 0, "run again, nothing is left to do"
    assert new.manifest().token_bytes == 2
    assert new.manifest().words_dim == 4
    found = new.fetch([point.id for point in old], Parts(text=True, vector=True))
    for row, point in enumerate(old):
        length = len(point.states)
        assert np.array_equal(found.states[row, :length], point.states)
        assert np.array_equal(found.token_ids[row, :length], point.token_ids)
        assert found.texts[row] == [point.text]
        mean = point.states.mean(0, dtype=np.float32)
        np.testing.assert_allclose(found.vectors[row, 0], mean, atol=np.abs(mean).max() / 200)
    assert set(verify(new).reasons) == {OTHER_ID}  # these points' ids are hashes of something else


def test_what_was_deleted_from_the_converted_collection_is_not_converted_again(store, old, new):
    convert(store, new, vocabulary=30_522)
    num_deleted = new.delete(("document", old[0].document))
    assert num_deleted > 0
    assert convert(store, new, vocabulary=30_522) == 0
    assert new.count() == len(old) - num_deleted
    new.readmit()
    assert convert(store, new, vocabulary=30_522) == num_deleted


def test_a_collection_of_format_2_is_refused_with_the_command_that_converts_it(store, old, config):
    with pytest.raises(
        CollectionMismatch,
        match=rf"has format 2, this release reads 3; convert it: `python -m vector_store convert LOCATION NEW --collection "
        rf"{config.collection}`",
    ):
        store.manifest()


def test_what_gives_no_sentence_vector_or_is_converted_already_is_refused(store, old, new, client, config):
    convert(store, new, vocabulary=100_000)
    assert new.manifest().token_bytes == 4
    with pytest.raises(CollectionMismatch, match="has format 3, wanted 2: there is nothing to convert"):
        convert(new, store, vocabulary=100_000)
    request = api.UpdateCollection(collection_name=config.collection)
    request.metadata["tokens"].integer_value = 5
    client.call(client.collections.Update, request, 10)
    with pytest.raises(CollectionMismatch, match="states that were cut or projected"):
        convert(store, new, vocabulary=100_000)
