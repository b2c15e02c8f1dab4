"""A channel for raw stubs: it sends the key of an embedded store with each call, as the product's client does."""

from collections import namedtuple

import grpc

from vector_store.server.access import split, stored_key


class _Call(
    namedtuple("_Call", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    pass


class _WithKey(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, key: str) -> None:
        self._key = key

    def intercept_unary_unary(self, continuation, call, request):
        metadata = [*(call.metadata or ()), ("api-key", self._key)]
        return continuation(
            _Call(call.method, call.timeout, metadata, call.credentials, call.wait_for_ready, call.compression), request
        )


def keyed_channel(url):
    """Open a channel to the server at an embedded store's URL."""
    plain, directory = split(url)
    channel = grpc.insecure_channel(plain.removeprefix("http://"), [("grpc.enable_http_proxy", 0)])
    key = stored_key(directory) if directory else None
    return grpc.intercept_channel(channel, _WithKey(key)) if key else channel
