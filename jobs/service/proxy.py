"""What callers are told whose request died with its replica: 503 and when to try again, where Ray's HTTP proxy alone says 500.

Runs in Ray Serve's proxy, which finds `middlewares` by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (jobs/run/session.py sets it).
Imports nothing of the service: models take seconds to import, and a proxy that is not ready in five is started anew.
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOST = "the replica that had this request is gone; send it again"


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
            request_id = Headers(scope=scope).get("x-request-id", "")
            body = {"error": {"message": LOST, "type": "not_ready_error", "request_id": request_id}}
            await JSONResponse(body, 503, {"Retry-After": "1"})(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy puts before its routes."""
    return [Middleware(LostReplica)]
