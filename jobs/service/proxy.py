"""What Ray's HTTP proxy lacks: a 503 to a request whose replica died, and an end of connections that send no request.

The 503 says when to try again; the proxy alone responds 500. Where a job's service is all that Ray Serve has, the 503 is also
in the place of the proxy's own 404, which every path gets before the service has started and once its end has begun.

Runs in Ray Serve's proxy, which imports what RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names: `of_one_service` in a Ray that a
job starts (jobs/run/session.py sets it), `middlewares` where `ray start` is told so (docs/serving.md). Imports nothing of the
service: models take seconds to import, and a proxy that is not ready in time is started again.
"""

import asyncio
from http import HTTPStatus

import uvicorn.config
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

LOST = "the replica that had this request is gone; send it again"
ENDING = "the service has not started or is ending; send it again"

HEAD_S = 10.0
"""Seconds that a request's head may take to arrive; its body has the request's deadline, in the replica."""


class HeadDeadline(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which closes a connection whose request's head has not arrived in time: uvicorn waits without end."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Give the first head its time."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and give a head that they begin its time."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self._has_request():
            self._stop()
        elif self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_S, self._close)

    def _stop(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _has_request(self) -> bool:
        """Whether a request's head has arrived and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _close(self) -> None:
        self._overdue = None
        if not self._has_request():
            self.transport.close()


class LostReplica:
    """Responds 503 where the proxy ends a request without a response: the service itself responds to its own failures.

    Where the service `is_alone`, with nothing else deployed, so it does where the proxy knows no route: all paths are its own.
    """

    def __init__(self, app: ASGIApp, is_alone: bool = False) -> None:
        self._app, self._is_alone = app, is_alone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and respond to it where the service has not begun a response."""
        has_begun = is_hidden = False

        async def sending(message: Message) -> None:
            nonlocal has_begun, is_hidden
            is_hidden = is_hidden or (self._is_alone and _is_of_the_proxy(message))
            if not is_hidden:
                has_begun = True
                await send(message)

        await self._app(scope, receive, sending)
        if scope["type"] == "http" and not has_begun:
            request_id = Headers(scope=scope).get("x-request-id", "")
            body = {
                "error": {"message": ENDING if is_hidden else LOST, "type": "not_ready_error", "request_id": request_id}
            }
            await JSONResponse(body, 503, {"Retry-After": "1"})(scope, receive, send)


def _is_of_the_proxy(message: Message) -> bool:
    """Whether this begins the proxy's own 404, which is text: the service's are JSON."""
    is_json = Headers(raw=message.get("headers", [])).get("content-type", "").startswith("application/json")
    return message.get("status") == HTTPStatus.NOT_FOUND and not is_json


def middlewares(is_alone: bool = False) -> list[Middleware]:
    """Return the middlewares that Ray Serve's proxy puts before its routes; it asks before it makes its server."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{HeadDeadline.__module__}:{HeadDeadline.__name__}"
    return [Middleware(LostReplica, is_alone=is_alone)]


def of_one_service() -> list[Middleware]:
    """Return those of a Ray Serve that a job starts for its service alone."""
    return middlewares(is_alone=True)
