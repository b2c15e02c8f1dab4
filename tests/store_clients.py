"""Other clients than the product's, which find an embedded store's key as that one does: the official one, and raw stubs'."""

import os
import subprocess
import sys
import warnings
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from vector_store.server.access import split, stored_key
from vector_store.server.process import rest_url

REFUSALS = (grpc.RpcError, UnexpectedResponse)
"""What the official client raises over gRPC and over REST."""

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    501: "UNIMPLEMENTED",
}


def installer(python):
    """The command that installs packages for this Python: uv's where this environment has it, which is faster."""
    if (uv := Path(sys.executable).with_name("uv")).exists():
        return [str(uv), "pip", "install", "--quiet", "--python", str(python)]
    return [str(python), "-m", "pip", "install", "--quiet"]


def environment_with(place, *packages):
    """Make an environment at `place` that has these packages, for clients whose versions clash; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    installed = subprocess.run([*installer(python), *packages], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"the clients cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return python


def refusal(error):
    """A refusal's status, by gRPC's name for it, and its text."""
    if isinstance(error, UnexpectedResponse):
        return _STATUS[error.status_code], error.structured()["status"]["error"]
    return error.code().name, error.details()


def rest_address(url):
    """Where the server at a URL answers REST: an embedded one says so, another's is in $QDRANT_REST_URL; None for nowhere."""
    _, directory = split(url)
    return rest_url(directory) if directory else os.environ.get("QDRANT_REST_URL")


@contextmanager
def official_client(url, over_rest=False):
    """Qdrant's own client over gRPC, or in its default mode. The key of a server that is not embedded is in $QDRANT_API_KEY."""
    plain, directory = split(url)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a key without TLS
        client = QdrantClient(
            url=rest_address(url) if over_rest else plain,
            grpc_port=urlsplit(plain).port or 6334,
            prefer_grpc=not over_rest,
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
