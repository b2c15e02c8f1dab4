"""Handles every call around its servicer: unimplemented methods and fields, status of an error, time; gRPC's key.

A call whose collection is not found is tried once more: an alias may have been switched meanwhile. Calls by REST go through
`answered` alone. Opens no collection.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from vector_store.server.access import is_key
from vector_store.server.fields import require_known
from vector_store.server.status import CollectionNotFoundError, StatusError, invalid, unimplemented
from vector_store.server.wire import Packed

log = logging.getLogger(__name__)

HEALTH_CHECK = "/qdrant.Qdrant/HealthCheck"
"""Needs no key, as in Qdrant."""

Behaviour: TypeAlias = Callable[[Any, Any], Message | Packed]
"""A servicer's method, of a request and the context of its call."""


class CallInterceptor(grpc.ServerInterceptor):
    """Checks a call and wraps its handler; `implemented` are the full names of the methods that the servicers define.

    A call needs one of the keys.
    """

    def __init__(self, implemented: frozenset[str], keys: Sequence[str]) -> None:
        self._implemented = implemented
        self._keys = keys

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> grpc.RpcMethodHandler:
        """Return the handler of a call."""
        if details.method != HEALTH_CHECK and not self._has_key(details.invocation_metadata):
            return _refusing(
                StatusError(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key in `api-key` metadata")
            )
        if details.method not in self._implemented:
            return _refusing(unimplemented(details.method.strip("/")))
        handler = continuation(details)
        if details.method == HEALTH_CHECK:
            asked = handler.request_deserializer(b"")
            answer = _answering(handler.unary_unary)
            return _without_message(lambda _, context: answer(asked, context), _encode)
        return grpc.unary_unary_rpc_method_handler(
            _answering(handler.unary_unary), handler.request_deserializer, _encode
        )

    def _has_key(self, metadata: Any) -> bool:
        given = next((value for key, value in metadata if key == "api-key"), "")
        return is_key(given, self._keys)


def methods(service: str, servicer: object, declared: type) -> dict[str, Behaviour]:
    """The service's methods that `servicer` defines itself, by their full names."""
    return {
        f"/{service}/{name}": getattr(servicer, name)
        for name, default in vars(declared).items()
        if not name.startswith("_") and getattr(type(servicer), name) is not default
    }


def answered(behaviour: Behaviour, request: Message, context: Any = None) -> Any:
    """What a servicer's method answers, with the time that it took; StatusError for whatever goes wrong."""
    started = time.perf_counter()
    try:
        require_known(request)
        try:
            response = behaviour(request, context)
        except CollectionNotFoundError:  # raised before anything is done
            response = behaviour(request, context)
    except StatusError:
        raise
    except BaseException as error:  # the edge of the process; the engine's panics are not Exceptions
        raise status_of(error, type(request).__name__) from error
    fields = response.rest if isinstance(response, Packed) else response
    if "time" in fields.DESCRIPTOR.fields_by_name:
        fields.time = time.perf_counter() - started
    return response


def status_of(error: BaseException, what: str) -> StatusError:
    """The status of an error that is none yet, and is logged as the failure of `what`."""
    if (
        type(error) is ValueError
    ):  # so the engine's objects, and protobuf's enums, refuse what a caller sent; files do not
        return invalid(str(error))
    log.error("%s failed", what, exc_info=error)
    return StatusError(grpc.StatusCode.INTERNAL, f"Service internal error: {error}; see the server's log")


def _refusing(error: StatusError) -> grpc.RpcMethodHandler:
    return _without_message(lambda _, context: context.abort(error.code, str(error)), None)


def _without_message(behaviour: Callable[[Any, Any], Any], serializer: Any) -> grpc.RpcMethodHandler:
    """The handler of a call that is answered before its message has come.

    Whoever has no key could otherwise hold every thread of the server by calls that never send one.
    """
    return grpc.stream_unary_rpc_method_handler(behaviour, response_serializer=serializer)


def _encode(response: Message | Packed) -> bytes:
    return response.encode() if isinstance(response, Packed) else response.SerializeToString()


def _answering(behaviour: Behaviour) -> Behaviour:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answered(behaviour, request, context)
        except StatusError as error:
            return context.abort(error.code, str(error))

    return answer
