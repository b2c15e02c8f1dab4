"""What callers are told whose request died with its replica: 503 and when to try again, where Ray's HTTP proxy alone says 500.

Runs in Ray Serve's proxy, which finds `middlewares` by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (cluster/session.py sets it).
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.service.errors import NotReady, error_body, headers_of, kind_of

LOST = NotReady("the replica that had this request is gone; send it again")


class LostReplica:
    """Answers where the proxy ends a request without an answer: a service's own failures always have one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer it where nobody has begun to."""
        is_answered = False

        async def sending(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        await self._app(scope, receive, sending)
        if scope["type"] == "http" and not is_answered:
            kind, request_id = kind_of(LOST), Headers(scope=scope).get("x-request-id", "")
            body = error_body(str(LOST), kind.type, request_id)
            await JSONResponse(body, kind.status, headers_of(LOST))(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy puts before its routes."""
    return [Middleware(LostReplica)]
