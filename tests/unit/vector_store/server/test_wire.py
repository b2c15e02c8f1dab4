import uuid
from types import SimpleNamespace

import pytest
from qdrant_client import grpc as api

from vector_store.server import translate
from vector_store.server.wire import Packed, retrieved_points

PAYLOADS = [
    None,
    {},
    {"a": "x" * 200, "b": "", "ünï": "çödé 😀", "long": "y" * 20_000},
    {"n": 1, "f": 1.5, "t": True, "none": None, "list": [1, "x", {}], "deep": {"er": {"est": []}}, "big": 2**62},
]


def record(point_id, payload, vector=None, order_value=None):
    return SimpleNamespace(id=point_id, payload=payload, vector=vector, order_value=order_value)


@pytest.mark.parametrize("response", [api.GetResponse, api.ScrollResponse])
def test_the_bytes_say_what_the_message_would(response):
    records = [record(n, payload) for n, payload in enumerate(PAYLOADS)]
    records.append(record(uuid.UUID(int=5), {"k": "v"}, vector={"dense": [1.0, 2.0]}, order_value=3))
    records.append(record(2**63, {"k": "v"}, vector=[[1.0], [2.0]], order_value=0.5))
    expected = response(time=0.25)
    for found in records:
        translate.fill_point(expected.result.add(), found)
    packed = Packed(retrieved_points(response.RESULT_FIELD_NUMBER, records), response(time=0.25))
    assert response.FromString(packed.encode()) == expected


def test_no_points_are_an_empty_response():
    assert Packed(retrieved_points(1, []), api.GetResponse()).encode() == b""
