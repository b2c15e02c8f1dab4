"""Errors of a request, and the table from them to HTTP status, gRPC code and OpenAI's error type.

Every message is for the caller: one line, without a traceback, and without a text of the request.
"""
# ruff: noqa: N818  (the names say what is wrong; an `Error` at their end would add nothing)

import math
from typing import NamedTuple

import grpc
from starlette.responses import JSONResponse

from refbert.errors import InputError


class InvalidInput(InputError):
    """The request cannot be answered as it stands."""


class UnknownModel(Exception):
    """The service has no student of this name."""


class TooLarge(Exception):
    """The body is too large."""


class SlowRequest(Exception):
    """The body did not arrive in time."""


class Unauthorised(Exception):
    """No key, or one that is not accepted."""


class NotReady(Exception):
    """The student is not loaded yet, or the replica is shutting down."""


class DeadlineExceeded(Exception):
    """The request's deadline passed before the student came to it."""


class NonFiniteAnswer(Exception):
    """The student's answer holds NaN or infinity: nothing that a caller could use."""


class Overloaded(Exception):
    """Too many texts wait; `Retry-After` says when there is likely room."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Kind(NamedTuple):
    """How callers see an error: HTTP status, gRPC code, and OpenAI's name for its type."""

    status: int
    code: grpc.StatusCode
    type: str


KINDS: dict[type[Exception], Kind] = {
    InputError: Kind(422, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error"),
    UnknownModel: Kind(404, grpc.StatusCode.NOT_FOUND, "not_found_error"),
    TooLarge: Kind(413, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request_error"),
    SlowRequest: Kind(408, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_error"),
    Unauthorised: Kind(401, grpc.StatusCode.UNAUTHENTICATED, "authentication_error"),
    Overloaded: Kind(429, grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded_error"),
    NotReady: Kind(503, grpc.StatusCode.UNAVAILABLE, "not_ready_error"),
    NonFiniteAnswer: Kind(500, grpc.StatusCode.INTERNAL, "internal_error"),
    DeadlineExceeded: Kind(504, grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_error"),
}

BUG = Kind(500, grpc.StatusCode.INTERNAL, "internal_error")


def kind_of(error: Exception) -> Kind:
    """Return the kind of an error; BUG for an unexpected one."""
    return next((kind for known, kind in KINDS.items() if isinstance(error, known)), BUG)


def name_of(error: Exception) -> str:
    """Return the name that an error is counted by."""
    return "bug" if kind_of(error) is BUG else type(error).__name__


def error_body(message: str, kind: str, request_id: str) -> dict[str, dict[str, str]]:
    """Return the body of an error response, as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "request_id": request_id}}


def message_of(error: Exception, request_id: str) -> str:
    """Return what the caller is told: the error's own line; of a bug only where to look it up."""
    if kind_of(error) is BUG:
        return f"this is a bug of the service; its log has the details under request {request_id}"
    return " ".join(str(error).split())


def headers_of(error: Exception) -> dict[str, str]:
    """Return the headers that go with an error."""
    if isinstance(error, Overloaded):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, NotReady):
        return {"Retry-After": "1"}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else {}


def error_response(error: Exception, request_id: str) -> JSONResponse:
    """Return the HTTP response for an error."""
    kind = kind_of(error)
    return JSONResponse(
        error_body(message_of(error, request_id), kind.type, request_id), kind.status, headers_of(error)
    )
