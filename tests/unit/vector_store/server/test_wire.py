import uuid
from types import SimpleNamespace

import pytest
from qdrant_client import grpc as api

from vector_store.server import translate
from vector_store.server.wire import Packed, batch_results, retrieved_points, scored_points

PAYLOADS = [
    None,
    {},
    {"a": "x" * 200, "b": "", "ünï": "çödé 😀", "long": "y" * 20_000},
    {"n": 1, "f": 1.5, "t": True, "none": None, "list": [1, "x", {}], "deep": {"er": {"est": []}}, "big": 2**62},
]


def record(point_id, payload, vector=None, order_value=None, **scored):
    return SimpleNamespace(id=point_id, payload=payload, vector=vector, order_value=order_value, **scored)


def records(**scored):
    return [
        *(record(n, payload, **scored) for n, payload in enumerate(PAYLOADS)),
        *(record(uuid.UUID(int=n), payload, **scored) for n, payload in enumerate(PAYLOADS)),
        record(uuid.UUID(int=5), {"k": "v"}, vector={"dense": [1.0, 2.0]}, order_value=3, **scored),
        record(2**63, {"k": "v"}, vector=[[1.0], [2.0]], order_value=0.5, **scored),
    ]


def fill(result, points):
    """Write points as messages, field by field."""
    for point in points:
        message = result.add()
        translate.fill_point(message, point)
        translate.fill_payload(message.payload, point.payload)
        for field in {"score", "version"} & vars(point).keys():
            setattr(message, field, getattr(point, field))


@pytest.mark.parametrize("response", [api.GetResponse, api.ScrollResponse])
def test_encoded_points_equal_the_protobuf_message(response):
    expected = response(time=0.25)
    fill(expected.result, records())
    packed = Packed(retrieved_points(response.RESULT_FIELD_NUMBER, records()), response(time=0.25))
    assert response.FromString(packed.encode()) == expected


def test_encoded_results_of_a_query_and_of_a_batch_equal_the_message():
    found = [*records(score=0.25, version=0), *records(score=-1e30, version=2**40)]
    expected = api.QueryResponse(time=0.25)
    fill(expected.result, found)
    packed = Packed(scored_points(api.QueryResponse.RESULT_FIELD_NUMBER, found), api.QueryResponse(time=0.25))
    assert api.QueryResponse.FromString(packed.encode()) == expected

    batch = api.QueryBatchResponse()
    for answer in (found, [], found[:1]):
        fill(batch.result.add().result, answer)
    assert (
        api.QueryBatchResponse.FromString(
            Packed(batch_results([found, [], found[:1]]), api.QueryBatchResponse()).encode()
        )
        == batch
    )


def test_no_points_are_encoded_as_an_empty_response():
    assert Packed(retrieved_points(1, []), api.GetResponse()).encode() == b""
