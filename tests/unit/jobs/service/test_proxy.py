"""The middleware in Ray's proxy: a request without a response gets a 503 and a time to retry."""

import asyncio
import contextlib
import subprocess
import sys
import time

import pytest
import uvicorn
import uvicorn.config
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from jobs.service import proxy
from jobs.service.errors import NotReady, error_body, headers_of, kind_of
from jobs.service.proxy import ENDING, LOST, LostReplica, middlewares, of_one_service


def test_a_lost_request_is_a_503_in_the_services_own_form():
    async def lost(scope, receive, send):
        assert scope["type"] == "http"

    answer = TestClient(LostReplica(lost)).get("/", headers={"x-request-id": "mine"})
    error = NotReady(LOST)
    assert answer.status_code == kind_of(error).status == 503
    assert answer.json() == error_body(str(error), kind_of(error).type, "mine")
    assert headers_of(error).items() <= {("Retry-After", answer.headers["retry-after"])}


def test_a_response_passes_unchanged():
    async def answer(request):
        return PlainTextResponse("here", 500)

    app = Starlette(routes=[Route("/", answer)], middleware=middlewares())
    found = TestClient(app).get("/")
    assert (found.status_code, found.text) == (500, "here")


def test_where_the_service_is_alone_a_path_without_a_route_is_a_503_and_the_services_own_404_passes():
    async def answer(request):
        return JSONResponse("no such model", 404)

    app = Starlette(routes=[Route("/v1/models/x", answer)], middleware=of_one_service())
    client = TestClient(app)
    assert client.get("/v1/models/x").json() == "no such model"
    ending = client.get("/v1/embeddings")
    assert (ending.status_code, ending.json()["error"]["message"]) == (503, ENDING)
    assert ending.headers["retry-after"] == "1"
    beside_others = Starlette(routes=[], middleware=middlewares())
    assert TestClient(beside_others).get("/v1/embeddings").status_code == 404


def test_the_proxy_imports_neither_torch_nor_transformers():
    code = "import sys, jobs.service.proxy; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
def address(monkeypatch):
    """Start a server as Ray's proxy makes its own; a head has 0.3 s, a response takes 0.6 s."""
    monkeypatch.setattr(proxy, "HEAD_S", 0.3)
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))

    async def answer(request):
        await request.body()
        await asyncio.sleep(0.6)
        return PlainTextResponse("here")

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])], middleware=middlewares())

    @contextlib.asynccontextmanager
    async def serve():
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_keep_alive=20))
        task = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        await task

    return serve


def test_a_connection_whose_requests_head_does_not_arrive_is_closed(address):
    async def closed_after_s(port, *parts):
        """Send parts of a head, 0.2 s apart, and return when the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started_s = time.monotonic()
        with contextlib.suppress(ConnectionError):  # a part that was sent after the end
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.2)
            assert await asyncio.wait_for(reader.read(), 5) == b""
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()
        return time.monotonic() - started_s

    async def check():
        async with address() as port:
            for parts in ((), (HEAD,), (HEAD[:10], HEAD[10:], b"a: b\r\n", b"c: d\r\n")):
                assert 0.2 < await closed_after_s(port, *parts) < 2

    asyncio.run(check())


def test_a_slow_response_and_a_slow_body_are_not_cut_off_and_the_next_head_has_its_time(address):
    async def check():
        async with address() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\na")
                await asyncio.sleep(0.5)
                writer.write(b"b")
                assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.5)  # idle between two requests: that is uvicorn's keep-alive
            writer.write(HEAD)
            assert await asyncio.wait_for(reader.read(), 2) == b""
            writer.close()
            await writer.wait_closed()

    asyncio.run(check())
