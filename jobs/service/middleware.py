"""What every HTTP request passes before the API and after: its id, key, size and time; counting, the log, the last resort.

Plain ASGI around the API: a request that is refused here costs no parsing. Its body is read as a whole, within its limits,
before the API sees it. Nothing of a body or of a text is logged.
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

from jobs.service import tracing
from jobs.service.errors import (
    InvalidInput,
    SlowRequest,
    TooLarge,
    Unauthorised,
    error_body,
    headers_of,
    kind_of,
    line_of,
)
from jobs.service.inference import Desk

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)

ROUTES = frozenset(
    ("/", "/docs", "/healthz", "/metrics", "/openapi.json", "/playground.css", "/playground.js", "/readyz", "/v1/classify",
     "/v1/embeddings", "/v1/explain", "/v1/models", "/v1/similarity")
)  # fmt: skip
"""Paths that are counted by name; any other is `other`, or a scanner would fill the metrics."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Gate:
    """ASGI around the API of one desk. Without `names_requests` somebody else puts a request's id into its answer."""

    def __init__(self, desk: Desk, api: Any, *, names_requests: bool = True) -> None:
        self.desk = desk
        self.api = api
        self.names_requests = names_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request, or refuse it."""
        if scope["type"] != "http":
            await self.api(scope, receive, send)
            return
        passing = Passing(scope, send, self.names_requests)
        metrics, started_s = self.desk.metrics, time.perf_counter()
        with tracing.request_span(passing.route, passing.headers):
            try:
                await self._pass(passing, receive)
            except Exception as error:  # an edge: the last one before the caller
                if kind_of(error).status == 500:
                    log.error("request %s: %s", passing.request_id, bug_report(error))
                await passing.refuse(error)
        took_s = time.perf_counter() - started_s
        metrics.requests.labels(passing.route, str(passing.status)).inc()
        metrics.request_s.labels(passing.route).observe(took_s)
        if passing.status >= 400:
            metrics.errors.labels(str(scope["state"].get("error", "http"))).inc()
        if self.desk.limits.request_log:
            print(json.dumps(passing.log_line(took_s)), file=sys.stderr, flush=True)

    async def _pass(self, passing: "Passing", receive: Receive) -> None:
        desk, scope = self.desk, passing.scope
        deadline = desk.deadline(passing.headers.get("x-timeout-ms"))
        state = scope.setdefault("state", {})
        state["deadline"], state["request_id"] = deadline, passing.request_id
        if passing.path.startswith("/v1/") and not desk.keys.accept(passing.key):
            raise Unauthorised(
                "this key is not accepted"
                if passing.key
                else "a key is wanted: send the header `Authorization: Bearer KEY`"
            )
        body = b""
        if scope["method"] in ("POST", "PUT", "PATCH"):
            body = await self._body(passing, receive, deadline)
        await self.api(scope, _replayed(body, receive), passing.send)

    async def _body(self, passing: "Passing", receive: Receive, deadline: float) -> bytes:
        most = self.desk.limits.max_request_bytes
        refusal = TooLarge(f"the body has more than {most} bytes; send fewer texts at once")
        announced = passing.headers.get("content-length", "0")
        if not announced.isdigit():
            raise InvalidInput("Content-Length is no number")
        if int(announced) > most:
            raise refusal
        chunks, size = [], 0
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise SlowRequest("the caller went away before its body was here")
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > most:
                        raise refusal
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise SlowRequest("the body did not arrive within the request's time") from None


class Passing:
    """One request on its way: who it is, and what was answered."""

    def __init__(self, scope: Scope, send: Send, is_named: bool) -> None:
        self.scope = scope
        self.is_named = is_named
        scope["state"] = dict(scope.get("state") or {})
        self.path: str = scope["path"]
        self.route = self.path if self.path in ROUTES else "other"
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.request_id = request_id(self.headers)
        self.status = 499  # where the caller leaves before anything is sent
        self._send = send

    @property
    def key(self) -> str | None:
        """The key that was sent, if any."""
        return sent_key(self.headers)

    async def send(self, message: Message) -> None:
        """Send on, with the request's id in the head."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.is_named:
                message = {**message, "headers": [*message["headers"], (b"x-request-id", self.request_id.encode())]}
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status != 499:
            return
        kind = kind_of(error)
        self.scope["state"]["error"] = type(error).__name__ if kind.status != 500 else "bug"
        body = json.dumps(error_body(line_of(error, self.request_id), kind.type, self.request_id)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(error)}
        coded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": kind.status, "headers": coded})
        await self.send({"type": "http.response.body", "body": body})

    def log_line(self, took_s: float) -> dict[str, Any]:
        """What the log says of it: no text, no key, no query."""
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": self.request_id,
            "method": self.scope["method"],
            "route": self.route,
            "status": self.status,
            "ms": round(1000 * took_s, 2),
            **self.scope["state"].get("answered", {}),
        }


def request_id(sent: Mapping[str, str]) -> str:
    """The id that came with a request's headers or metadata, where it is fit to be logged; else a new one."""
    given = sent.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def sent_key(sent: Mapping[str, str]) -> str | None:
    """The key in a request's headers or metadata: OpenAI's way, or in a header of its own."""
    scheme, _, key = sent.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else sent.get("x-api-key")


def bug_report(error: BaseException) -> str:
    """Where an error happened and of which class it is. Not its message: it may quote a text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__} at\n{frames}"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the API receives: the body that is here already, then whatever comes."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again
