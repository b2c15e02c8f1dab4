"""Every call passes here: the key is checked, missing methods are named, refusals become statuses, time is taken.

Knows nothing of collections.
"""

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from vector_store.server.refusal import MissingCollection, Refusal, unimplemented

log = logging.getLogger(__name__)

HEALTH_CHECK = "/qdrant.Qdrant/HealthCheck"
"""Answers without a key, as in Qdrant."""


class Gate(grpc.ServerInterceptor):
    """Stands before the servicers; `implemented` are the full names of the methods they define."""

    def __init__(self, implemented: frozenset[str], api_key: str | None) -> None:
        self._implemented = implemented
        self._api_key = api_key.encode() if api_key else None

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> grpc.RpcMethodHandler:
        """Pick what answers a call."""
        if details.method != HEALTH_CHECK and not self._has_key(details.invocation_metadata):
            return _refused(Refusal(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key in `api-key` metadata"))
        if details.method not in self._implemented:
            return _refused(unimplemented(details.method.strip("/")))
        handler = continuation(details)
        return grpc.unary_unary_rpc_method_handler(
            _answering(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _has_key(self, metadata: Any) -> bool:
        if self._api_key is None:
            return True
        given = next((value for key, value in metadata if key == "api-key"), "")
        return hmac.compare_digest(given.encode(), self._api_key)


def methods(service: str, servicer: object, declared: type) -> set[str]:
    """Full names of the service's methods that `servicer` defines itself."""
    return {
        f"/{service}/{name}"
        for name, default in vars(declared).items()
        if not name.startswith("_") and getattr(type(servicer), name) is not default
    }


def _refused(refusal: Refusal) -> grpc.RpcMethodHandler:
    def refuse(request: bytes, context: grpc.ServicerContext) -> None:
        context.abort(refusal.code, str(refusal))

    return grpc.unary_unary_rpc_method_handler(refuse)


def _answering(behaviour: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        started = time.perf_counter()
        try:
            try:
                response = behaviour(request, context)
            except MissingCollection:  # raised before anything is done
                response = behaviour(request, context)
        except Refusal as error:
            refusal = error
        except BaseException as error:  # the edge of the process; the engine's panics are not Exceptions
            log.exception("%s failed", type(request).__name__)
            refusal = Refusal(grpc.StatusCode.INTERNAL, f"Service internal error: {error}; see the server's log")
        else:
            if "time" in response.DESCRIPTOR.fields_by_name:
                response.time = time.perf_counter() - started
            return response
        return context.abort(refusal.code, str(refusal))

    return answer
