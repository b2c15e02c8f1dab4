"""Other clients than the product's, which find an embedded store's key as that one does: the official one, and raw stubs'."""

import os
import warnings
from collections import namedtuple
from contextlib import contextmanager
from urllib.parse import urlsplit

import grpc
from qdrant_client import QdrantClient

from vector_store.server.access import split, stored_key


@contextmanager
def official_client(url):
    """Qdrant's own client over gRPC. The key of a server that is not embedded is in $QDRANT_API_KEY."""
    plain, directory = split(url)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a key without TLS
        client = QdrantClient(
            url=plain,
            grpc_port=urlsplit(plain).port or 6334,
            prefer_grpc=True,
            check_compatibility=False,
            timeout=30,
            api_key=stored_key(directory) if directory else os.environ.get("QDRANT_API_KEY"),
        )
    yield client
    client.close()


class _Call(
    namedtuple("_Call", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    pass


class _WithKey(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    def __init__(self, key: str) -> None:
        self._key = key

    def intercept_unary_unary(self, continuation, call, request):
        metadata = [*(call.metadata or ()), ("api-key", self._key)]
        return continuation(
            _Call(call.method, call.timeout, metadata, call.credentials, call.wait_for_ready, call.compression), request
        )

    intercept_stream_stream = intercept_unary_unary


def keyed_channel(url):
    """Open a channel for raw stubs to the server at an embedded store's URL."""
    plain, directory = split(url)
    channel = grpc.insecure_channel(plain.removeprefix("http://"), [("grpc.enable_http_proxy", 0)])
    key = stored_key(directory) if directory else None
    return grpc.intercept_channel(channel, _WithKey(key)) if key else channel
