"""Handles every call around its servicer: API key, unimplemented methods and fields, status of an error, time taken.

Knows nothing of collections.
"""

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from vector_store.server.fields import require_known
from vector_store.server.status import CollectionNotFoundError, StatusError, invalid, unimplemented
from vector_store.server.wire import Packed

log = logging.getLogger(__name__)

HEALTH_CHECK = "/qdrant.Qdrant/HealthCheck"
"""Needs no key, as in Qdrant."""


class CallInterceptor(grpc.ServerInterceptor):
    """Checks a call and wraps its handler; `implemented` are the full names of the methods that the servicers define.

    A call needs one of the keys.
    """

    def __init__(self, implemented: frozenset[str], keys: Sequence[str]) -> None:
        self._implemented = implemented
        self._keys = [key.encode() for key in keys]

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> grpc.RpcMethodHandler:
        """Return the handler of a call."""
        if details.method != HEALTH_CHECK and not self._has_key(details.invocation_metadata):
            return _refusing(
                StatusError(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key in `api-key` metadata")
            )
        if details.method not in self._implemented:
            return _refusing(unimplemented(details.method.strip("/")))
        handler = continuation(details)
        return grpc.unary_unary_rpc_method_handler(
            _answering(handler.unary_unary), handler.request_deserializer, _encode
        )

    def _has_key(self, metadata: Any) -> bool:
        given = next((value for key, value in metadata if key == "api-key"), "")
        return any(hmac.compare_digest(given.encode(), key) for key in self._keys)


def methods(service: str, servicer: object, declared: type) -> set[str]:
    """Full names of the service's methods that `servicer` defines itself."""
    return {
        f"/{service}/{name}"
        for name, default in vars(declared).items()
        if not name.startswith("_") and getattr(type(servicer), name) is not default
    }


def _refusing(error: StatusError) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(lambda request, context: context.abort(error.code, str(error)))


def _encode(response: Message | Packed) -> bytes:
    return response.encode() if isinstance(response, Packed) else response.SerializeToString()


def _status_of(error: BaseException, request: Any) -> StatusError:
    if (
        type(error) is ValueError
    ):  # so the engine's objects, and protobuf's enums, refuse what a caller sent; files do not
        return invalid(str(error))
    log.exception("%s failed", type(request).__name__)
    return StatusError(grpc.StatusCode.INTERNAL, f"Service internal error: {error}; see the server's log")


def _answering(behaviour: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        started = time.perf_counter()
        try:
            require_known(request)
            try:
                response = behaviour(request, context)
            except CollectionNotFoundError:  # raised before anything is done
                response = behaviour(request, context)
        except StatusError as error:
            status = error
        except BaseException as error:  # the edge of the process; the engine's panics are not Exceptions
            status = _status_of(error, request)
        else:
            fields = response.rest if isinstance(response, Packed) else response
            if "time" in fields.DESCRIPTOR.fields_by_name:
                fields.time = time.perf_counter() - started
            return response
        return context.abort(status.code, str(status))

    return answer
