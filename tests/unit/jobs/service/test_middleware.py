"""Who gets in: by the route that a request matches, whatever path it came by. No student is needed to be refused."""

import asyncio
import re

import pytest
import torch
from fastapi import FastAPI, WebSocket
from starlette.routing import Mount
from starlette.testclient import TestClient

from jobs.config import RunConfig
from jobs.service.api import http_api
from jobs.service.inference import InferenceService
from jobs.service.middleware import PUBLIC_ROUTES, RequestMiddleware

KEY = {"authorization": "Bearer sk-one"}

KEYED = (
    "/embed", "/info", "/v1/classify", "/v1/embeddings", "/v1/explain", "/v1/models", "/v1/models/{model}", "/v1/rerank",
    "/v1/similarity",
)  # fmt: skip

BODIES = {"/embed": {"inputs": "a text"}, "/v1/rerank": {"query": "a text", "documents": ["a text"]},
          "/v1/similarity": {"source": "a text", "input": "a text"}}  # fmt: skip


@pytest.fixture
def app(tmp_path) -> RequestMiddleware:
    """The app of a service with one key, which loads no student: a request that gets in is told to wait (503)."""
    (tmp_path / "keys").write_text("sk-one\n")
    config = RunConfig.model_validate({"corpus": {"path": "x"}, "serve": {"api_keys_file": str(tmp_path / "keys")}})
    service = InferenceService(config, torch.device("cpu"))
    return RequestMiddleware(service, http_api(service))


def request(app, path, root_path="", headers=()):
    """A request as a proxy hands it over that serves the app below `root_path`: GET for what describes, else POST."""
    client = TestClient(app, root_path=root_path, raise_server_exceptions=False)
    if path.endswith(("/models", "/models/{model}", "/info")):
        return client.get(path, headers=dict(headers))
    body = next((body for route, body in BODIES.items() if path.endswith(route)), {"input": "a text"})
    return client.post(path, json=body, headers=dict(headers))


@pytest.mark.parametrize(
    ("before", "root_path"),
    [("", ""), ("/reviews", "/reviews"), ("/a/b", "/a/b"), ("", "/reviews"), ("/v1", "/v1"), ("/healthz", "/healthz")],
)
def test_a_route_asks_for_its_key_below_every_prefix(app, before, root_path):
    for route in KEYED:
        assert request(app, before + route, root_path).status_code == 401
        assert request(app, before + route, root_path, {"authorization": "Bearer sk-two"}).status_code == 401
        assert request(app, before + route, root_path, KEY).status_code == 503  # in, and there is no student yet
        counted = app.service.metrics.text()
        assert f'refbert_requests_total{{route="{route}",status="401"}} 2.0' in counted
        assert f'refbert_requests_total{{route="{route}",status="503"}} 1.0' in counted
        assert 'route="other"' not in counted


def test_no_other_spelling_of_a_path_gets_in_without_a_key(app):
    for path in (
        "/v1/embeddings/", "//v1/embeddings", "/V1/embeddings", "/v1//embeddings", "/healthz/../v1/embeddings",
        "/static-offline-docs/../v1/embeddings", "/%76%31/embeddings", "/reviews/v1/embeddings", "/nowhere",
    ):  # fmt: skip
        assert request(app, path).status_code in (401, 405), path


def test_a_route_that_nobody_called_public_needs_a_key(app):
    async def added() -> str:
        return "here"

    app.api.add_api_route("/health/details", added)
    client = TestClient(app)
    assert client.get("/health/details").status_code == 401
    assert client.get("/health/details", headers=KEY).json() == "here"


def test_the_public_routes_are_those_that_show_neither_texts_nor_vectors(app):
    assert {route.path for route in app.api.routes} - PUBLIC_ROUTES == set(KEYED)
    assert {route.path for route in app.api.routes} >= PUBLIC_ROUTES
    page = app.api.openapi()
    keyed = {path for path, operations in page["paths"].items() for one in operations.values() if "security" in one}
    assert keyed == set(KEYED)


def test_head_answers_as_get_does_without_a_body_and_with_the_same_key(app):
    client = TestClient(app)
    for path in ("/", "/healthz", "/openapi.json", "/playground.css"):
        head, whole = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert client.head("/readyz").status_code == client.get("/readyz").status_code == 503  # no student yet
    assert client.head("/v1/models").status_code == 401
    assert client.head("/v1/models", headers=KEY).status_code == client.get("/v1/models", headers=KEY).status_code
    assert client.head("/v1/embeddings", headers=KEY).status_code == 405  # has no GET


def test_a_public_routes_body_is_not_read(app):
    read, sent = [], []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/healthz", "raw_path": b"/healthz", "root_path": "", "query_string": b"",
        "headers": [(b"content-length", b"1000000")], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 5))
    assert sent[0]["status"] == 405
    assert not read


def preflight(client, origin, path="/v1/embeddings"):
    asks = {"origin": origin, "access-control-request-method": "POST"}
    return client.options(path, headers={**asks, "access-control-request-headers": "authorization,x-stainless-os"})


def test_a_page_of_another_origin_may_ask_only_where_an_option_names_it(app, tmp_path):
    mine, other = "https://search.example.com", "https://other.example.com"
    serve = {"api_keys_file": str(tmp_path / "keys"), "cors_origins": [mine]}
    config = RunConfig.model_validate({"corpus": {"path": "x"}, "serve": serve})
    service = InferenceService(config, torch.device("cpu"))
    allowing = TestClient(RequestMiddleware(service, http_api(service)), raise_server_exceptions=False)
    asked = preflight(allowing, mine)  # a browser asks without a key
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == mine
    assert "authorization,x-stainless-os" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in preflight(allowing, other).headers
    refused = allowing.post("/v1/embeddings", json={"input": "a text"}, headers={"origin": mine})
    assert refused.status_code == 401  # which the page can read
    assert refused.headers["access-control-allow-origin"] == mine
    assert "X-Request-Id" in refused.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in allowing.get("/healthz", headers={"origin": other}).headers
    closed = preflight(TestClient(app), mine)  # by default no page may
    assert closed.status_code in (401, 405)
    assert "access-control-allow-origin" not in closed.headers
    for wrong in ("search.example.com", "https://search.example.com/page"):
        with pytest.raises(ValueError, match="cors_origins"):
            RunConfig.model_validate({"corpus": {"path": "x"}, "serve": {"cors_origins": [wrong]}})


def test_websockets_are_closed_whatever_the_api_would_do_with_them(app):
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    @app.api.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()

    scope = {"type": "websocket", "path": "/socket", "headers": [], "query_string": b"", "subprotocols": []}
    asyncio.run(app(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_page_and_its_files_are_sent_below_a_prefix_and_for_any_host(app):
    outer = FastAPI(routes=[Mount("/reviews", app)])
    with TestClient(outer, raise_server_exceptions=False) as client:
        page = client.get("/reviews/")
        assert "RefBERT" in page.text
        for file in re.findall(r'(?:href|src)="(playground[^"]+)"', page.text):
            assert client.get(f"/reviews/{file}").status_code == 200
        for file in re.findall(r'(?:href|src)="([^"]+)"', client.get("/reviews/docs").text):
            assert client.get(file).status_code == 200, file
        assert client.get("/reviews/openapi.json").status_code == 200
        for host in ("x/..?", "x/README.md#", "[::1"):
            assert "RefBERT" in client.get("/reviews/", headers={"host": host}).text
