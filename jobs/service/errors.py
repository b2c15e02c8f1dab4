"""What can go wrong with a request, and the one table from it to an HTTP status and a gRPC code.

Every message is for the caller: one line, no traceback, none of its texts.
"""
# ruff: noqa: N818  (the names say what is wrong; an `Error` at their end would add nothing)

import math
from typing import NamedTuple

import grpc

from refbert.errors import InputError


class InvalidInput(InputError):
    """A request that cannot be answered as it stands."""


class TooLarge(Exception):
    """A body of more bytes than are taken."""


class SlowRequest(Exception):
    """A body that did not arrive in time."""


class Unauthorised(Exception):
    """No key, or one that is not accepted."""


class NotReady(Exception):
    """The student is not loaded yet, or the replica is going."""


class DeadlineExceeded(Exception):
    """The request's time ran out before the student came to it."""


class Overloaded(Exception):
    """More texts wait than may; `retry_after_s` says when there is likely room."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Kind(NamedTuple):
    """How an error reads to callers: HTTP status, gRPC code, and OpenAI's name for its type."""

    status: int
    code: grpc.StatusCode
    type: str


KINDS: dict[type[Exception], Kind] = {
    InputError: Kind(422, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error"),
    TooLarge: Kind(413, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error"),
    SlowRequest: Kind(408, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_error"),
    Unauthorised: Kind(401, grpc.StatusCode.UNAUTHENTICATED, "authentication_error"),
    Overloaded: Kind(429, grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded_error"),
    NotReady: Kind(503, grpc.StatusCode.UNAVAILABLE, "not_ready_error"),
    DeadlineExceeded: Kind(504, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_error"),
}

BUG = Kind(500, grpc.StatusCode.INTERNAL, "internal_error")


def kind_of(error: Exception) -> Kind:
    """How an error reads; BUG for one that nobody expected."""
    return next((kind for known, kind in KINDS.items() if isinstance(error, known)), BUG)


def error_body(message: str, kind: str, request_id: str) -> dict[str, dict[str, str]]:
    """The body of an answer that is none, as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "request_id": request_id}}


def line_of(error: Exception, request_id: str) -> str:
    """What the caller is told: the error's own line, of a bug only where to find it."""
    if kind_of(error) is BUG:
        return f"this is a bug of the service; its log says more about request {request_id}"
    return " ".join(str(error).split())


def headers_of(error: Exception) -> dict[str, str]:
    """Headers that go with an error."""
    if isinstance(error, Overloaded):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, NotReady):
        return {"Retry-After": "1"}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else {}
