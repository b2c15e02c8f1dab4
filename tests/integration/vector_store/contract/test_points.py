"""Points: stored, read, changed, deleted, and refused where they are invalid."""

import uuid

import numpy as np
import pytest
from qdrant_client import grpc as api
from qdrant_client import models

from tests.integration.vector_store.contract.collection import NAME, group, ids
from vector_store.errors import InvalidPoint


def test_points_are_read_as_written(filled):
    (point,) = filled.retrieve(NAME, [3], with_payload=True, with_vectors=True)
    assert point.payload == {"group": "b", "n": 3, "nested": {"list": [3, None, True, 0.5, "x"]}}
    assert np.isclose(np.linalg.norm(point.vector["dense"]), 1), "cosine normalises on upload"
    assert point.vector["many"] == [[3.0, 1.0], [0.0, 1.0]]
    assert dict(zip(point.vector["words"].indices, point.vector["words"].values, strict=True)) == {3: 1.0, 100: 0.5}


def test_selectors_choose_payload_fields_and_vectors(filled):
    (point,) = filled.retrieve(NAME, [3], with_payload=["n"], with_vectors=["many"])
    assert point.payload == {"n": 3}
    assert list(point.vector) == ["many"]
    (point,) = filled.retrieve(
        NAME, [3], with_payload=models.PayloadSelectorExclude(exclude=["nested"]), with_vectors=False
    )
    assert point.payload == {"group": "b", "n": 3}
    assert not point.vector


def test_missing_ids_are_left_out(filled):
    assert sorted(ids(filled.retrieve(NAME, [2, 77, 4]))) == [2, 4]


def test_uuids_are_ids(filled):
    point_id = str(uuid.uuid4())
    filled.upsert(NAME, [models.PointStruct(id=point_id, vector={}, payload={"n": 1})])
    assert ids(filled.retrieve(NAME, [point_id])) == [point_id]


def test_upserting_an_id_again_replaces_the_point(filled):
    filled.upsert(NAME, [models.PointStruct(id=3, vector={}, payload={"new": 1})])
    assert filled.count(NAME).count == 10
    assert filled.retrieve(NAME, [3])[0].payload == {"new": 1}


def test_deletion_by_id_and_by_filter(filled):
    filled.delete(NAME, models.PointIdsList(points=[1, 2]))
    assert filled.count(NAME).count == 8
    filled.delete(NAME, models.FilterSelector(filter=group("a")))
    assert set(ids(filled.scroll(NAME, limit=100)[0])) == {3, 5, 7, 9}


def test_setting_payload_keeps_the_other_fields(filled):
    filled.set_payload(NAME, {"extra": "yes"}, points=[1])
    filled.set_payload(NAME, {"extra": "all"}, points=group("a"))
    assert filled.retrieve(NAME, [1])[0].payload["extra"] == "yes"
    assert filled.retrieve(NAME, [1])[0].payload["n"] == 1
    assert filled.retrieve(NAME, [2])[0].payload["extra"] == "all"


def test_deleting_payload_keeps_the_other_fields(filled):
    filled.delete_payload(NAME, ["n", "none_of_these"], points=[1])
    assert sorted(filled.retrieve(NAME, [1])[0].payload) == ["group", "nested"]
    filled.delete_payload(NAME, ["nested"], points=models.Filter())
    assert [sorted(point.payload) for point in filled.retrieve(NAME, [1, 3])] == [["group"], ["group", "n"]]


def test_a_batch_of_writes_is_applied_in_order(filled):
    def to(*points):
        return {"points": list(points)}

    answers = filled.batch_update_points(
        NAME,
        [
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"extra": 1}, **to(1, 2))),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"extra": 2}, **to(2))),
            models.DeletePayloadOperation(delete_payload=models.DeletePayload(keys=["nested"], **to(1))),
            models.UpsertOperation(upsert=models.PointsList(points=[models.PointStruct(id=99, vector={}, payload={})])),
            models.DeleteOperation(delete=models.PointIdsList(points=[4])),
        ],
    )
    assert [answer.status for answer in answers] == [models.UpdateStatus.COMPLETED] * 5
    one, two = filled.retrieve(NAME, [1, 2])
    assert (one.payload["extra"], two.payload["extra"]) == (1, 2)
    assert "nested" not in one.payload
    assert set(ids(filled.retrieve(NAME, [4, 99]))) == {99}


def upsert(name="dense", vector=None, point_id=None):
    point = api.PointStruct(id=point_id or api.PointId(num=50))
    point.vectors.vectors.vectors[name].CopyFrom(vector or api.Vector(dense=api.DenseVector(data=[1, 2, 3, 4])))
    return api.UpsertPoints(collection_name=NAME, wait=True, points=[point])


@pytest.mark.parametrize(
    "request_",
    [
        upsert(vector=api.Vector(dense=api.DenseVector(data=[1, 2]))),
        upsert(name="nothing"),
        upsert(point_id=api.PointId(uuid="not a uuid")),
        upsert(name="words", vector=api.Vector(sparse=api.SparseVector(indices=[1, 1], values=[1, 1]))),
    ],
)
def test_invalid_points_are_invalid_arguments_and_not_stored(filled, client, request_):
    with pytest.raises(InvalidPoint):
        client.call(client.points.Upsert, request_, 10)
    assert filled.count(NAME).count == 10
