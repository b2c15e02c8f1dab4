"""The response to a request whose replica died: 503 and when to try again, where Ray's HTTP proxy alone responds 500.

Runs in Ray Serve's proxy, which finds `middlewares` by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (jobs/run/session.py sets it).
Imports nothing of the service: models take seconds to import, and a proxy that is not ready in five seconds is started again.
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOST = "the replica that had this request is gone; send it again"


class LostReplica:
    """Responds 503 where the proxy ends a request without a response: the service itself responds to its own failures."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and respond to it where nothing has begun a response."""
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        await self._app(scope, receive, sending)
        if scope["type"] == "http" and not has_begun:
            request_id = Headers(scope=scope).get("x-request-id", "")
            body = {"error": {"message": LOST, "type": "not_ready_error", "request_id": request_id}}
            await JSONResponse(body, 503, {"Retry-After": "1"})(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return the middlewares that Ray Serve's proxy puts before its routes."""
    return [Middleware(LostReplica)]
