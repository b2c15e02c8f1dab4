"""The REST port in process, over the real servicers: no way round the key, the limits or a refusal that gRPC has."""

import importlib
import inspect
import pkgutil
import re
import socket
import time

import grpc
import pytest
import qdrant_client.http.api
from google.protobuf.message import DecodeError
from qdrant_client import grpc as api
from starlette.testclient import TestClient

from vector_store.server import rest
from vector_store.server.catalogue import Catalogue
from vector_store.server.interceptor import answered, methods
from vector_store.server.rest import rest_app
from vector_store.server.rest_messages import CALLS
from vector_store.server.servicers import Collections, Health, Points, SnapshotsService
from vector_store.server.snapshots import Snapshots
from vector_store.server.status import StatusError

KEY = "k" * 32
MOST_BYTES = 64 * 2**10
VECTOR = [1.0, 0.0]


class Served:
    """One store with a collection `c`: `ask` over REST, `call` as gRPC does."""

    def __init__(self, root):
        catalogue = Catalogue(root)
        self.behaviours = (
            methods("qdrant.Qdrant", Health("one"), api.QdrantServicer)
            | methods("qdrant.Collections", Collections(catalogue), api.CollectionsServicer)
            | methods("qdrant.Points", Points(catalogue), api.PointsServicer)
            | methods("qdrant.Snapshots", SnapshotsService(catalogue, Snapshots(root)), api.SnapshotsServicer)
        )
        app = rest_app(self.behaviours, ["unused" * 8, KEY], MOST_BYTES, num_threads=2)
        self.client = TestClient(app, raise_server_exceptions=False)
        self.ask("PUT", "/collections/c", {"vectors": {"size": 2, "distance": "Dot"}}).raise_for_status()

    def ask(self, verb, path, body=None, **more):
        more = {"headers": {"api-key": KEY}, **more}
        return self.client.request(verb, path, **({} if body is None else {"json": body}), **more)

    def refused(self, verb, path, body=None, **more):
        answer = self.ask(verb, path, body, **more)
        assert set(answer.json()) == {"status", "time"}
        return answer.status_code, answer.json()["status"]["error"]

    def call(self, method, request):
        """The refusal of a call over gRPC."""
        with pytest.raises(StatusError) as caught:
            answered(self.behaviours[f"/qdrant.{method}"], request)
        return caught.value.code, str(caught.value)

    def count(self):
        return self.ask("POST", "/collections/c/points/count", {}).json()["result"]["count"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("served"))


def path_of(call, collection="c"):
    names = {"collection": collection, "point": "1", "field": "f", "snapshot": "s"}
    return call.path.format(**names)


EVERY_CALL = pytest.mark.parametrize("call", [pytest.param(call, id=f"{call.verb} {call.path}") for call in CALLS])


NO_KEY, WRONG_KEY = "Must provide an API key or an Authorization bearer token", "Invalid API key or JWT"


@EVERY_CALL
def test_no_call_is_answered_without_a_key(served, call):
    for headers, complaint in (
        ({}, NO_KEY),
        ({"api-key": "wrong"}, WRONG_KEY),
        ({"api-key": "wrong", "authorization": f"Bearer {KEY}"}, WRONG_KEY),
        ({"authorization": f"Bearer {KEY[:-1]}"}, WRONG_KEY),
        ({"authorization": f"Basic {KEY}"}, NO_KEY),
        ({"authorization": KEY}, NO_KEY),
        ({"api-key": "k\xe9".encode("latin-1")}, WRONG_KEY),
    ):
        answer = served.client.request(call.verb, path_of(call), headers=headers, content=b"not read")
        assert (answer.status_code, answer.text) == (401, complaint)


def test_a_key_is_taken_from_either_header(served):
    for headers in ({"api-key": KEY}, {"authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}):
        assert served.client.get("/collections", headers=headers).json()["result"] == {"collections": [{"name": "c"}]}


def test_only_probes_and_the_version_need_no_key(served):
    for path in ("/healthz", "/livez", "/readyz"):
        assert served.client.get(path).status_code == 200
    version = served.client.get("/").json()
    assert version == {"title": "vector_store embedded server", "version": "1.20.0", "commit": "one"}
    for path in (
        "/cluster",
        "/telemetry",
        "/metrics",
        "/dashboard",
        "/healthz/",
        "/nothing",
        "/healthz/../cluster",
    ):
        assert served.client.get(path).status_code == 401


def test_every_call_of_the_official_client_is_answered_or_refused_by_name(served):
    """Over what the client's own modules send, so that a later release's calls are found, too."""
    sent = set()
    for module in pkgutil.iter_modules(qdrant_client.http.api.__path__):
        source = inspect.getsource(importlib.import_module(f"qdrant_client.http.api.{module.name}"))
        sent |= set(re.findall(r'method="([A-Z]+)",\s+url="([^"]+)"', source))
    assert len(sent) > 60
    ours = {(call.verb, re.sub(r"\{\w+\}", "x", call.path)) for call in CALLS}
    alone = {("GET", path) for path in ("/", "/healthz", "/livez", "/readyz", "/cluster")}
    asked = {(verb, re.sub(r"\{\w+\}", "x", url)) for verb, url in sent}
    searches = {("POST", "/collections/x/points/search"), ("POST", "/collections/x/points/search/batch")}
    assert ours - asked == searches, "calls of earlier clients"
    for verb, path in asked - ours - alone:
        code, text = served.refused(verb, path, {})
        assert code == 501, path
        assert text == f"{verb} {path} is not implemented by the embedded server; use a Qdrant server"


@EVERY_CALL
def test_a_missing_collection_is_refused_as_over_grpc(served, call):
    bodies = {
        "/collections/{collection}": {"hnsw_config": {"m": 8}},
        "/collections/{collection}/index": {"field_name": "f", "field_schema": "keyword"},
        "/collections/{collection}/points": {"ids": [1]} if call.verb == "POST" else {"points": []},
        "/collections/{collection}/points/delete": {"points": [1]},
        "/collections/{collection}/points/payload": {"payload": {}, "points": [1]},
        "/collections/{collection}/points/payload/delete": {"keys": ["a"], "points": [1]},
        "/collections/{collection}/points/batch": {"operations": []},
        "/collections/{collection}/points/query/batch": {"searches": []},
        "/collections/{collection}/points/search": {"vector": VECTOR},
        "/collections/{collection}/points/search/batch": {"searches": []},
    }
    body = bodies.get(call.path, {}) if call.body is not None else None
    answer = served.ask(call.verb, path_of(call, "nowhere"), body)
    if "nowhere" not in path_of(call, "nowhere") or call.method.endswith(("Create", "Aliases", "Exists")):
        if call.method == "Snapshots/Create":
            assert answer.status_code == 404
        return  # these need no collection
    if call.method == "Collections/Delete":
        assert answer.json()["result"] is False
        return
    assert answer.status_code == 404
    assert answer.json()["status"]["error"] == "Not found: Collection `nowhere` doesn't exist!"
    count = api.CountPoints(collection_name="nowhere")
    assert served.call("Points/Count", count) == (grpc.StatusCode.NOT_FOUND, answer.json()["status"]["error"])


@pytest.mark.parametrize(
    ("path", "content", "complaint"),
    [
        ("points/count", b"", "Invalid JSON: EOF while parsing a value"),
        ("points/count", b"{", "Invalid JSON: EOF while parsing an object"),
        ("points/count", b'{"a": \xff}', "Invalid JSON: expected value"),
        ("points/count", b"[]", "the body: Input should be an object"),
        ("points/count", b'{"fliter": {}}', "unknown field `fliter`"),
        ("points/query", b'{"query": [1, 2], "filter": {"must": [{"key": "a", "match": {"valu": 1}}]}}',
         "unknown field `filter.must.0.match.valu`"),
        ("points/query", b'{"query": {"nearest": [1, 2]}, "limt": 1}', "unknown field `limt`"),
        ("points/delete", b'{"points": [1], "filter": {}}', "unknown field `filter`"),
        ("points/delete", b'{"points": [1.5]}', "points.0: Input should be a valid integer"),
        ("points/search", b'{"limit": 1}', "missing field `vector`"),
        ("points", b'{"ids": [1], "with_payload": 3}', "with_payload: Input should be a valid boolean"),
    ],
)  # fmt: skip
def test_a_body_that_is_none_of_the_calls_is_refused_by_what_is_wrong_with_it(served, path, content, complaint):
    code, text = served.refused("POST", f"/collections/c/{path}", content=content)
    assert code == 400
    assert text.startswith("Wrong input: Format error in JSON body: ")
    assert complaint in text
    assert "\n" not in text
    assert "pydantic" not in text


@pytest.mark.parametrize(
    ("point", "complaint"),
    [
        ({"id": -1, "vector": VECTOR}, "Wrong input: Value out of range: -1"),
        ({"id": "one", "vector": VECTOR}, "point id 'one' is neither an unsigned integer nor a UUID"),
        ({"id": 1, "vector": [1.0]}, "Vector dimension error: expected dim: 2, got 1"),
        ({"id": 1, "vector": [1.0, 1e39]}, "has NaN or infinite values"),
        ({"id": 1, "vector": VECTOR, "payload": {"a": 2**64}}, "Value out of range: 18446744073709551616"),
        ({"id": 1, "vector": {"other": VECTOR}}, "Not existing vector name error: other"),
        ({"id": 1}, "Format error in JSON body: missing field `points.0.vector`"),
        ({"id": 1, "vector": VECTOR, "paylod": {}}, "Format error in JSON body: unknown field `points.0.paylod`"),
    ],
)
def test_an_invalid_point_is_refused_and_none_is_stored(served, point, complaint):
    code, text = served.refused("PUT", "/collections/c/points", {"points": [{"id": 7, "vector": VECTOR}, point]})
    place = "points.1" if "points.0" in complaint else ""
    assert code == 400
    assert complaint.replace("points.0", place) in text
    assert served.count() == 0


def test_not_a_number_is_refused_in_every_spelling(served):
    for number in ("NaN", "Infinity", "-Infinity", "1e400"):
        for point in (f'"vector": [1, {number}]', f'"vector": [1, 0], "payload": {{"a": {number}}}'):
            code, _ = served.refused("PUT", "/collections/c/points", content=f'{{"points": [{{"id": 1, {point}}}]}}')
            assert code == 400
    assert served.count() == 0


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"filter": {"must": [{"key": "a", "match": {"value": 1}, "range": {"gt": 5}}]}},
         "the condition on 'a' has match and range of match, range,"),
        ({"filter": {"must": {"should": [{"key": "a"}]}}}, "the condition on 'a' has none of match, range,"),
        ({"prefetch": [{"filter": {"must_not": [{"key": "b", "is_null": True, "is_empty": True}]}}]},
         "the condition on 'b' has is_empty and is_null of match,"),
    ],
)  # fmt: skip
def test_a_second_condition_on_a_field_is_refused_and_not_left_out(served, body, complaint):
    code, text = served.refused("POST", "/collections/c/points/query", body)
    assert code == 400
    assert complaint in text


@pytest.mark.parametrize("selection", [{}, {"points": [1], "filter": {"must": []}}])
def test_points_beside_a_filter_are_refused_and_not_left_out(served, selection):
    for path, body in (("payload", {"payload": {"a": 1}}), ("payload/delete", {"keys": ["a"]})):
        code, text = served.refused("POST", f"/collections/c/points/{path}", {**body, **selection})
        assert code == 400
        assert "of points, filter; give one" in text
    batch = {"operations": [{"set_payload": {"payload": {}, **selection}}]}
    assert served.refused("POST", "/collections/c/points/batch", batch)[0] == 400


@pytest.mark.parametrize(
    ("verb", "path", "body", "method", "request_"),
    [
        ("POST", "points/query", {"query": {"recommend": {"positive": [1]}}}, "Points/Query",
         api.QueryPoints(query=api.Query(recommend=api.RecommendInput(positive=[api.VectorInput(id=api.PointId(num=1))])))),
        ("POST", "points/count", {"shard_key": "a"}, "Points/Count",
         api.CountPoints(shard_key_selector=api.ShardKeySelector(shard_keys=[api.ShardKey(keyword="a")]))),
        ("POST", "points/delete", {"points": [1], "shard_key": 3}, "Points/Delete",
         api.DeletePoints(shard_key_selector=api.ShardKeySelector(shard_keys=[api.ShardKey(number=3)]))),
        ("POST", "points/batch", {"operations": [{"clear_payload": {"points": [1]}}]}, "Points/UpdateBatch",
         api.UpdateBatchPoints(operations=[api.PointsUpdateOperation(clear_payload=api.PointsUpdateOperation.ClearPayload())])),
        ("PATCH", "", {"params": {"on_disk_payload": True}}, "Collections/Update",
         api.UpdateCollection(params=api.CollectionParamsDiff(on_disk_payload=True))),
        ("PUT", "", {"strict_mode_config": {"enabled": True}}, "Collections/Create",
         api.CreateCollection(strict_mode_config=api.StrictModeConfig(enabled=True))),
    ],
)  # fmt: skip
def test_what_the_server_does_not_implement_is_refused_in_grpcs_words(served, verb, path, body, method, request_):
    request_.collection_name = "c"
    code, text = served.refused(verb, f"/collections/c/{path}".rstrip("/"), body)
    assert code == 501
    assert (grpc.StatusCode.UNIMPLEMENTED, text) == served.call(method, request_)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("points/count?wait=true", "unknown parameter `wait` of CountPoints"),
        ("points/count?pretty", "unknown parameter `pretty` of CountPoints"),
        ("points/count?timeout=soon", "parameter timeout='soon': Input should be a valid integer"),
        ("points/count?timeout=-1", "Value out of range: -1"),
        ("points/delete?ordering=some", "parameter ordering='some': Input should be 'weak', 'medium' or 'strong'"),
    ],
)
def test_a_parameter_that_has_no_effect_is_refused_by_name(served, path, complaint):
    code, text = served.refused("POST", f"/collections/c/{path}", {"points": [1]} if "delete" in path else {})
    assert code == 400
    assert complaint in text


def test_parameters_that_the_client_sends_are_taken(served):
    for consistency in ("1", "majority", "quorum", "all"):
        assert served.ask("POST", f"/collections/c/points/count?consistency={consistency}&timeout=5", {}).is_success
    for ordering in ("weak", "medium", "strong"):
        assert served.ask(
            "POST", f"/collections/c/points/delete?wait=false&ordering={ordering}", {"points": [1]}
        ).is_success


def test_a_body_over_the_limit_is_refused_before_it_is_read_whole(served):
    read = []

    def parts():
        for _ in range(1000):
            read.append(1)
            yield b" " * 2**10

    for content in (parts(), b" " * (MOST_BYTES + 1)):
        code, text = served.refused("PUT", "/collections/c/points", content=content)
        assert code == 413
        assert f"is larger than allowed (limit: {MOST_BYTES} bytes)" in text
    assert served.ask("POST", "/collections/c/points/count", content=b"{}".ljust(MOST_BYTES)).status_code == 200


def test_a_body_within_the_limit_whose_request_is_over_it_is_refused(served):
    vector = b'{"points": [{"id": 1, "vector": [' + b",".join([b"1"] * (MOST_BYTES // 4 + 1)) + b"]}]}"
    assert len(vector) < MOST_BYTES
    code, text = served.refused("PUT", "/collections/c/points", content=vector)
    assert code == 413
    assert text.startswith("UpsertPoints (")


def test_an_answer_over_the_limit_is_refused(tmp_path):
    served = Served(tmp_path)
    for number in range(3):
        point = {"id": number, "vector": VECTOR, "payload": {"text": "x" * 30_000}}
        served.ask("PUT", "/collections/c/points", {"points": [point]}).raise_for_status()
    assert len(served.ask("POST", "/collections/c/points/scroll", {"limit": 2}).json()["result"]["points"]) == 2
    code, text = served.refused("POST", "/collections/c/points/scroll", {})
    assert code == 413
    assert text.startswith("The answer (")


def nested(depth):
    """The bytes of an upsert whose payload is a list in a list, `depth` times."""

    def field(number, content):
        length = len(content)
        return bytes([number << 3 | 2, *([length] if length < 128 else [length & 127 | 128, length >> 7])]) + content

    value = api.Value(integer_value=1).SerializeToString()
    for _ in range(depth):
        value = field(api.Value.LIST_VALUE_FIELD_NUMBER, field(api.ListValue.VALUES_FIELD_NUMBER, value))
    payload = field(api.PointStruct.PAYLOAD_FIELD_NUMBER, field(1, b"a") + field(2, value))
    return field(api.UpsertPoints.POINTS_FIELD_NUMBER, payload)


def test_a_payload_is_let_in_as_deep_as_over_grpc(tmp_path):
    served, taken = Served(tmp_path), {}
    for depth in range(44, 54):
        try:
            api.UpsertPoints.FromString(nested(depth))
            taken[depth] = 200
        except DecodeError:
            taken[depth] = 400
    assert set(taken.values()) == {200, 400}
    for depth, code in taken.items():
        payload = "[" * depth + "1" + "]" * depth
        point = f'{{"points": [{{"id": 1, "vector": [1, 0], "payload": {{"a": {payload}}}}}]}}'
        assert served.ask("PUT", "/collections/c/points", content=point).status_code == code, depth
        assert served.ask("GET", "/collections/c/points/1").is_success


@pytest.mark.parametrize("depth", [60, 150, 5000])
def test_a_body_nested_deeper_than_grpc_lets_in_is_refused(served, depth):
    payload = '{"a":' * depth + "1" + "}" * depth
    point = f'{{"points": [{{"id": 1, "vector": [1, 0], "payload": {payload}}}]}}'
    condition = '{"must":' * depth + "{}" + "}" * depth
    for verb, path, content in (("PUT", "points", point), ("POST", "points/count", f'{{"filter": {condition}}}')):
        code, text = served.refused(verb, f"/collections/c/{path}", content=content)
        assert code == 400
        assert "nested too deeply" in text or "recursion limit exceeded" in text
    assert served.count() == 0


def test_payload_and_vectors_are_read_as_written(tmp_path):
    served = Served(tmp_path)
    payload = {
        "none": None,
        "nested": {"none": None, "list": [1, None, True, 0.5, "x", {}]},
        "whole": 2.0,
        "ä": "\u2028",
    }
    points = [{"id": 1, "vector": [0.5, -2.25], "payload": payload}, {"id": 2, "vector": VECTOR}]
    served.ask("PUT", "/collections/c/points", {"points": points}).raise_for_status()
    assert served.ask("GET", "/collections/c/points/1").json()["result"] == points[0]
    found = served.ask("POST", "/collections/c/points", {"ids": [1]}).json()["result"]
    assert found == [{"id": 1, "payload": payload}]
    found = served.ask("POST", "/collections/c/points", {"ids": [1], "with_payload": False, "with_vector": True})
    assert found.json()["result"][0]["vector"] == [0.5, -2.25]
    assert served.refused("GET", "/collections/c/points/3") == (404, "Not found: Point does not exist!")


def test_earlier_clients_searches_give_what_a_query_gives(tmp_path):
    served = Served(tmp_path)
    points = [{"id": number, "vector": [1.0, float(number)], "payload": {"n": number}} for number in range(4)]
    served.ask("PUT", "/collections/c/points", {"points": points}).raise_for_status()
    wanted = {"limit": 2, "with_payload": True, "filter": {"must": [{"key": "n", "range": {"lt": 3}}]}}
    found = served.ask("POST", "/collections/c/points/query", {"query": [0.0, 1.0], **wanted}).json()["result"][
        "points"
    ]
    assert [point["id"] for point in found] == [2, 1]
    search = {"vector": [0.0, 1.0], **wanted}
    assert served.ask("POST", "/collections/c/points/search", search).json()["result"] == found
    batch = served.ask("POST", "/collections/c/points/search/batch", {"searches": [search, search]})
    assert batch.json()["result"] == [found, found]
    code, text = served.refused("POST", "/collections/c/points/search", {"vector": {"name": "b", "vector": VECTOR}})
    assert (code, "b" in text) == (400, True)


def test_a_name_in_a_path_is_one_name_and_leads_nowhere_else(tmp_path):
    served = Served(tmp_path / "store")
    secret = tmp_path / "store" / "key"
    secret.write_text("k")
    for name in ("..%2F..%2F..%2Fkey", "..%2f..%2fkey", "%2e%2e%2f%2e%2e%2fkey", "%2Fetc%2Fpasswd", "%2E%2E"):
        code, _ = served.refused("DELETE", f"/collections/c/snapshots/{name}")
        assert code in (404, 501)
        assert secret.exists()
    for name in ("..%2F..%2Fx", "%2Ftmp%2Fx", "a%2Fb", "a%00b", "%0A", "x" * 129):
        code, text = served.refused("PUT", f"/collections/{name}", {"vectors": {"size": 2, "distance": "Dot"}})
        assert (code, "collection name" in text) == (400, True)
    assert served.ask("GET", "/collections").json()["result"] == {"collections": [{"name": "c"}]}
    assert served.refused("GET", "/collections/c%2Fexists") == (404, "Not found: Collection `c/exists` doesn't exist!")
    assert served.refused("GET", "/collections/%ff")[0] == 400
    assert sorted(path.name for path in (tmp_path / "store" / "collections").iterdir()) == ["cc"]


def test_snapshots_are_created_listed_and_deleted(tmp_path):
    served = Served(tmp_path)
    made = served.ask("POST", "/collections/c/snapshots?wait=true").json()["result"]
    assert made["name"].startswith("c-")
    assert len(made["checksum"]) == 64
    assert served.ask("GET", "/collections/c/snapshots").json()["result"] == [made]
    assert served.refused("GET", f"/collections/c/snapshots/{made['name']}")[0] == 501
    assert served.ask("DELETE", f"/collections/c/snapshots/{made['name']}").json()["result"] is True
    assert served.ask("GET", "/collections/c/snapshots").json()["result"] == []


def test_a_damaged_collection_is_refused_by_its_file_without_a_traceback(tmp_path):
    Served(tmp_path)
    settings = tmp_path / "collections" / "cc" / "settings.json"
    settings.write_text("{")
    catalogue = Catalogue(tmp_path)
    points = methods("qdrant.Points", Points(catalogue), api.PointsServicer)
    others = dict.fromkeys([f"/qdrant.{call.method}" for call in CALLS], None)
    health = methods("qdrant.Qdrant", Health("one"), api.QdrantServicer)
    client = TestClient(rest_app(others | points | health, [KEY], MOST_BYTES, 1))
    answer = client.post("/collections/c/points/count", json={}, headers={"api-key": KEY})
    assert answer.status_code == 500
    assert str(settings) in answer.json()["status"]["error"]


def test_a_call_that_never_ends_does_not_keep_a_server_from_stopping(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rest, "STOP_S", 1)
    app = Served(tmp_path).client.app
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        server = rest.RestServer(app, listener)
        server.start()
        with socket.create_connection(address, timeout=20) as caller:
            head = f"POST /collections/c/points HTTP/1.1\r\nhost: x\r\napi-key: {KEY}\r\ncontent-length: 9\r\n\r\n"
            caller.sendall(head.encode() + b"half")
            time.sleep(0.3)  # the call has begun
            server.stop()
            assert b"503 Service Unavailable" in caller.recv(1000)
    assert "Traceback" not in caplog.text
