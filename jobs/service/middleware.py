"""The middleware around the HTTP API: CORS, request id, key, body limit, deadline, metrics, spans, request log, and bugs.

Plain ASGI: a request that is refused here is never parsed. The body of a POST, PUT or PATCH that needs a key is read
completely, within its limits, before the API sees it; a public route's body is not read. What a request may do is decided by
the route that the API matches it with, never by its raw path: a `route_prefix` or a proxy's `root_path` changes the path, not
the route. Nothing of a body or of a text is logged.
"""

import asyncio
import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from jobs.service import tracing
from jobs.service.errors import BUG, InvalidInput, SlowRequest, TooLarge, Unauthorised, error_response, kind_of, name_of
from jobs.service.inference import InferenceService

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)

PUBLIC_ROUTES = frozenset(
    ("/", "/docs", "/docs/oauth2-redirect", "/health", "/healthz", "/metrics", "/openapi.json", "/playground.css",
     "/playground.js", "/readyz", "/static-offline-docs")
)  # fmt: skip
"""Routes that need no key, by the path that the API registers them with. Every other needs one, and so does no route at all."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

CORS_HEADERS = ("Retry-After", "X-Request-Id")
"""Headers of a response that a page of another origin may read."""

DISCONNECTED = 499
"""Status of a request whose client left before the response began, as nginx counts it."""


class RequestMiddleware:
    """ASGI around the API of a service. Without `sends_request_id` something else puts a request's id into its response."""

    def __init__(self, service: InferenceService, api: Any, *, sends_request_id: bool = True) -> None:
        self.service = service
        self.api = api
        self.sends_request_id = sends_request_id
        self._app: Any = self._hand_over
        if origins := service.limits.cors_origins:
            # Around everything: a browser asks without a key whether it may ask, and hides a refusal without the headers.
            self._app = CORSMiddleware(
                self._hand_over,
                origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),
                expose_headers=CORS_HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a browser that asks whether a page may ask, where serve.cors_origins allow some; hand on everything else."""
        await self._app(scope, receive, send)

    async def _hand_over(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one request to the API, or refuse it."""
        if scope["type"] == "lifespan":
            await self.api(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket, which no route takes: closed here, before any could
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        request = RequestContext(scope, matched_route(self.api, scope), send, self.sends_request_id)
        started_s = time.perf_counter()
        with tracing.request_span(request.route, request.headers):
            try:
                await self._call_api(request, receive)
            except Exception as error:  # an edge: the last one before the caller
                if kind_of(error) is BUG:
                    log.error("request %s: %s", request.id, traceback_without_message(error))
                await request.refuse(error)
        took_s = time.perf_counter() - started_s
        error_name = str(request.state.get("error", "http")) if request.status >= 400 else None
        self.service.metrics.count_request(request.route, str(request.status), took_s, error_name)
        if self.service.limits.request_log:
            print(json.dumps(request.log_line(took_s)), file=sys.stderr, flush=True)

    async def _call_api(self, request: "RequestContext", receive: Receive) -> None:
        service, key = self.service, api_key(request.headers)
        request.state["deadline"] = deadline = service.deadline(request.headers.get("x-timeout-ms"))
        body = b""  # a public route's is not read: nobody without a key is to fill this process's memory
        if request.matched not in PUBLIC_ROUTES:
            if not service.keys.accept(key):
                missing = "a key is required: send the header `Authorization: Bearer KEY`"
                raise Unauthorised("this key is not accepted" if key else missing)
            if request.scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._body(request, receive, deadline)
        await self.api(request.scope, _receive_after(body, receive), request.send)

    async def _body(self, request: "RequestContext", receive: Receive, deadline: float) -> bytes:
        most = self.service.limits.max_request_bytes
        refusal = TooLarge(f"the body has more than {most} bytes; send fewer texts at once")
        announced = request.headers.get("content-length", "0")
        if not announced.isdigit():
            raise InvalidInput("Content-Length is not a number")
        if int(announced) > most:
            raise refusal
        chunks, size = [], 0
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise SlowRequest("the client disconnected before its body had arrived")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > most:
                        raise refusal
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise SlowRequest("the body did not arrive before the request's deadline") from None


class RequestContext:
    """One request: the route that matches it, its headers and id, and the status of its response."""

    def __init__(self, scope: Scope, matched: str | None, send: Send, sends_id: bool) -> None:
        self.scope = scope
        self.sends_id = sends_id
        self.matched = matched
        self.route = matched or "other"  # counted by route, or a scanner's paths would fill the metrics
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.id = request_id(self.headers)
        self.state: dict[str, Any] = {**(scope.get("state") or {}), "request_id": self.id}
        self.status = DISCONNECTED
        scope["state"] = self.state
        self._send = send

    async def send(self, message: Message) -> None:
        """Send on, with the request's id among the headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.sends_id:
                message = {**message, "headers": [*message["headers"], (b"x-request-id", self.id.encode())]}
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Respond with an error, unless a response has begun."""
        if self.status != DISCONNECTED:
            return
        self.state["error"] = name_of(error)
        response: Any = error_response(error, self.id)
        await response(self.scope, None, self.send)

    def log_line(self, took_s: float) -> dict[str, Any]:
        """Return what the log says of the request: no text, no key, no query."""
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": self.id,
            "method": self.scope["method"],
            "route": self.route,
            "status": self.status,
            "ms": round(1000 * took_s, 2),
            **self.state.get("log", {}),
        }


def matched_route(api: Any, scope: Scope) -> str | None:
    """Return the path of the route that the API will hand a request to; None where it has none.

    As its router decides: the first route that fits, else the first one that fits but for the method.
    """
    for_other_method: str | None = None
    for route in api.routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return str(route.path)
        if match is Match.PARTIAL and for_other_method is None:
            for_other_method = str(route.path)
    return for_other_method


def request_id(headers: Mapping[str, str]) -> str:
    """Return the id in a request's headers or metadata, where it is fit to be logged; else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def api_key(headers: Mapping[str, str]) -> str | None:
    """Return the key in a request's headers or metadata: as OpenAI's clients send it, or in a header of its own."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def traceback_without_message(error: BaseException) -> str:
    """Return where an error happened and its class, but not its message, which may quote a text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__} at\n{frames}"


def _receive_after(body: bytes, receive: Receive) -> Receive:
    """Return an ASGI `receive` that first gives the body that has been read, then whatever comes."""
    read = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> Message:
        return read.pop() if read else await receive()

    return receive_next


def _without_body(send: Send) -> Send:
    """Return an ASGI `send` that keeps a response's body back: what HEAD asks of a GET (RFC 9110, 9.3.2), as monitors do."""

    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head
