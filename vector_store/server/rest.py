"""A part of Qdrant's REST API on a port of its own: HTTP in front of the calls that gRPC has, and probes.

Keys, limits of size and errors of a call are those of gRPC: a request is checked here, converted (`rest_messages`), and
answered by the same servicers. Only a server that is told to serve REST imports this file, and with it an HTTP library and
Qdrant's client.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import grpc
import uvicorn
from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vector_store.protocol import api
from vector_store.server.access import is_key
from vector_store.server.interceptor import Behaviour, answered, status_of
from vector_store.server.rest_messages import CALLS, RestCall, grpc_request, json_error, json_response, version
from vector_store.server.status import StatusError, invalid, too_large, unimplemented
from vector_store.server.wire import Packed

HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}
"""HTTP statuses of the servicers' errors, as Qdrant has them; any other is 500."""

PROBES = {"/healthz": "healthz check passed", "/livez": "livez check passed", "/readyz": "all shards are ready"}
"""What needs no key, as in Qdrant, beside `/`. The port is opened when every collection is."""

NO_KEY, WRONG_KEY = "Must provide an API key or an Authorization bearer token", "Invalid API key or JWT"

NOT_DISTRIBUTED = {"status": "disabled"}
"""`GET /cluster` of a server that is not one of several."""

STOP_S = 5
"""Time for the calls that run when the server is stopped."""

STOPPING = "the server is stopping"


class RestServer:
    """The REST port, which answers in a thread of its own from `start` to `stop`. The caller binds the socket."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        # h11 bounds the size of a request's head; httptools does not.
        config = uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="warning",
            access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=STOP_S,
        )  # fmt: skip
        self._listener, self._backlog = listener, config.backlog
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)

    def start(self) -> None:
        """Listen, and answer from now on; OSError where another process has begun to listen there meanwhile."""
        self._listener.listen(self._backlog)
        self._thread.start()

    def stop(self) -> None:
        """Take no more calls, and wait for those that run."""
        self._server.should_exit = True
        self._thread.join(2 * STOP_S)


def rest_app(behaviours: Mapping[str, Behaviour], keys: Sequence[str], most_bytes: int, num_threads: int) -> ASGIApp:
    """The REST API as an ASGI application.

    `behaviours` are the servicers' methods by full name (`/qdrant.Points/Upsert`); a call needs one of the keys. Neither a
    body, nor its request in protobuf, nor an answer in protobuf is larger than `most_bytes`.
    """
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="rest")

    def route(call: RestCall) -> Route:
        behaviour = behaviours[f"/qdrant.{call.method}"]

        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            names = {name: _decoded(part) for name, part in request.path_params.items()}
            content = await _body(request, most_bytes)
            query = list(request.query_params.multi_items())

            def answer() -> Response:
                try:
                    asked = grpc_request(call, names, content, query, most_bytes)
                    return _json(_result(call, answered(behaviour, asked), most_bytes, started))
                except StatusError as error:
                    return _refusal(error, started)
                except Exception as error:
                    return _refusal(status_of(error, call.path), started)

            return await asyncio.get_running_loop().run_in_executor(executor, answer)

        return Route(call.path, endpoint, methods=[call.verb])

    async def root(request: Request) -> Response:
        return _json(version(answered(behaviours["/qdrant.Qdrant/HealthCheck"], api.HealthCheckRequest())))

    async def cluster(request: Request) -> Response:
        return _json(json_response(NOT_DISTRIBUTED, 0.0))

    app = Starlette(
        routes=[
            Route("/", root),
            *(Route(path, _probe) for path in PROBES),
            Route("/cluster", cluster),
            *map(route, CALLS),
        ],
        exception_handlers={HTTPException: _unknown, StatusError: _refused, ClientDisconnect: _gone},
    )
    app.router.redirect_slashes = False
    return _Gate(app, keys)


class _Gate:
    """Around every request: its path is matched as it was sent, undecoded, and it needs a key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Decoded before, the name `a%2Fpoints` of a collection would lead to another call.
        path = scope["raw_path"].decode("latin-1")
        app = self._app
        if path != "/" and path not in PROBES:
            headers = Headers(scope=scope)
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = headers.get("api-key") or (token.strip() if scheme.lower() == "bearer" else "")
            if not is_key(given, self._keys):
                app = PlainTextResponse(WRONG_KEY if given else NO_KEY, 401)
        try:
            await app({**scope, "path": path}, receive, send)
        except asyncio.CancelledError:  # the server stops, and has waited for STOP_S; no answer has begun
            await PlainTextResponse(STOPPING, 503)(scope, receive, send)


async def _probe(request: Request) -> Response:
    return PlainTextResponse(PROBES[request.url.path])


async def _body(request: Request, most_bytes: int) -> bytes:
    """The body; StatusError as soon as it is known to be too large."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most_bytes:
        raise too_large("JSON payload", int(said), most_bytes)
    parts, num_bytes = [], 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > most_bytes:
            raise too_large("JSON payload", num_bytes, most_bytes)
        parts.append(part)
    return b"".join(parts)


def _decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise invalid(f"{part[:100]!r} in the path is not UTF-8") from None


def _result(call: RestCall, response: Message | Packed, most_bytes: int, started: float) -> bytes:
    """The body of an answer."""
    if isinstance(response, Packed):
        content = response.encode()
        num_bytes, message = len(content), type(response.rest).FromString(content)
    else:
        num_bytes, message = response.ByteSize(), response
    if num_bytes > most_bytes:
        raise too_large("The answer", num_bytes, most_bytes)
    return json_response(call.result(message), time.perf_counter() - started)


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


def _refusal(error: StatusError, started: float) -> Response:
    return _json(json_error(str(error), time.perf_counter() - started), HTTP_STATUS.get(error.code, 500))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StatusError)
    return _refusal(error, time.perf_counter())


async def _unknown(request: Request, error: Exception) -> Response:
    """No call has this path and verb: some of Qdrant's, and what is none of its calls."""
    return _refusal(unimplemented(f"{request.method} {request.url.path[:200]}"), time.perf_counter())


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # which nobody reads
