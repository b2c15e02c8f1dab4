"""A gRPC client of a Qdrant server, or of a cluster's nodes; the only place that repeats a call because the store is away.

Sends requests, finds the key and the socket of an embedded store, and turns gRPC statuses into the store's errors. Knows
nothing of what points mean.
"""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import grpc

from vector_store.config import EMBEDDED, StoreConfig, nodes_in
from vector_store.errors import (
    CollectionExists,
    CollectionMissing,
    InvalidPoint,
    PointMissing,
    StoreError,
    StoreUnavailable,
)
from vector_store.nodes import Nodes, compresses_unasked, first_node, is_away, is_loopback, speaks_no_grpc
from vector_store.protocol import api
from vector_store.server.access import split, stored_key
from vector_store.server.address import NOWHERE, served_socket

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
SHORTEST_ATTEMPT_S = 5.0

RETRY_AFTER = "retry-after"
"""Trailing metadata, in seconds, of a refusal by Qdrant's rate limits."""

NO_POINT = "No point with id"
"""What a change of a point's payload is refused with where the point is not there, whatever the status."""

_ERRORS = {
    grpc.StatusCode.ALREADY_EXISTS: CollectionExists,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidPoint,
}


class Client:
    """Stubs over one channel. Threads may share it, processes may not: open one in each process, after the fork.

    Every call is idempotent (points are written whole, under their own ids), so any call may be repeated, also at another
    node. Reads use the consistency that the config asks for.
    """

    def __init__(
        self,
        channel: Nodes,
        url: str,
        api_key: str | None,
        read_consistency: api.ReadConsistency | None = None,
        api_key_env: str = StoreConfig.model_fields["api_key_env"].default,
    ) -> None:
        self.url = url
        self.points = api.PointsStub(channel)
        self.collections = api.CollectionsStub(channel)
        self.snapshots = api.SnapshotsStub(channel)
        self._channel = channel
        self._read_consistency = read_consistency
        self._process = os.getpid()
        self._api_key, self._api_key_env = api_key, api_key_env
        self._metadata = (("api-key", api_key),) if api_key else ()

    def call(self, stub_method: Any, request: Any, deadline_s: float) -> Any:
        """Return the response; retry with growing pauses while the store is away. StoreUnavailable after `deadline_s`."""
        self._check_process()
        self._set_consistency(request)
        deadline = time.monotonic() + deadline_s
        pause_s = FIRST_PAUSE_S
        said: grpc.RpcError | None = (
            None  # why the store cannot, which an attempt that is cut off at the deadline does not say
        )
        while True:
            left_s = deadline - time.monotonic()
            # Short enough for another attempt after a lost response, long enough for a slow write.
            attempt_s = min(left_s, max(SHORTEST_ATTEMPT_S, deadline_s / 3))
            try:
                return stub_method(request, timeout=attempt_s, metadata=self._metadata)
            except grpc.RpcError as error:
                said = said if said and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED else error
                wait_s = max(pause_s * random.uniform(0.5, 1.0), _retry_after_s(error))
                if not _is_transient(error) or time.monotonic() + wait_s >= deadline:
                    raise self._error(said, request, deadline_s, self.silent()) from error
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def ask(self, stub_method: Any, requests: Sequence[Any], deadline_s: float) -> list[Any]:
        """Return the responses to several requests, sent at once without retries: for callers that degrade instead of waiting.

        With several nodes, the next node is tried after a failure; the attempts share `deadline_s` evenly.
        StoreUnavailable where no node answers.
        """
        self._check_process()
        for request in requests:
            self._set_consistency(request)
        deadline = time.monotonic() + deadline_s
        nodes_left = len(self._channel)
        while True:
            try:
                return self._attempt(stub_method, requests, (deadline - time.monotonic()) / nodes_left)
            except grpc.RpcError as error:
                if not compresses_unasked(error):  # which the next attempt accepts
                    nodes_left -= 1
                if not _is_transient(error) or not nodes_left or time.monotonic() >= deadline:
                    raise self._error(error, requests[0], deadline_s) from error

    def _attempt(self, stub_method: Any, requests: Sequence[Any], timeout_s: float) -> list[Any]:
        options: dict[str, Any] = {"timeout": timeout_s, "metadata": self._metadata}
        if len(requests) == 1:  # without waking another thread: 0.34 ms of CPU instead of 0.57 for 32 searches
            return [stub_method(requests[0], **options)]
        futures = [stub_method.future(request, **options) for request in requests]
        try:
            return [future.result() for future in futures]
        except grpc.RpcError:
            for future in futures:
                future.cancel()
            raise

    def of_each_node(self) -> list["Client"]:
        """Clients that ask one node each and read one copy, its own where it has one; they share this client's channels."""
        return [Client(node, node.url, self._api_key, api_key_env=self._api_key_env) for node in self._channel.each()]

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_consistency(self, request: Any) -> None:
        if self._read_consistency is None or "read_consistency" not in request.DESCRIPTOR.fields_by_name:
            return
        if not request.HasField("read_consistency"):  # what a caller has set stays
            request.read_consistency.CopyFrom(self._read_consistency)

    def _check_process(self) -> None:
        # gRPC's threads stay in the parent process, so a channel that is used after a fork would hang.
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this client of {self.url} was opened by process {self._process} and is used by {os.getpid()}; open one in "
                "each process, after the fork"
            )

    def silent(self) -> list[str]:
        """Of several nodes, the addresses of those that do not answer now."""
        return self._channel.silent() if len(self._channel) > 1 else []

    def _error(self, error: Any, request: Any, deadline_s: float, silent: Sequence[str] = ()) -> StoreError:
        code, details, what = error.code(), " ".join((error.details() or "").split()), type(request).__name__
        names = f"; {', '.join(silent)} {'does' if len(silent) == 1 else 'do'} not answer at all" if silent else ""
        if code == grpc.StatusCode.INTERNAL and is_away(error):
            return StoreUnavailable(
                f"{self.url} answers, and could not do {what} within {deadline_s:g} s, because a shard has no living copy or a "
                f"node is away ({details}){names}; start the node that is gone, then the same command again"
            )
        if speaks_no_grpc(error):
            return StoreError(
                f"{self.url} answers HTTP and no gRPC, as Qdrant's REST port does (6333 by default); give the address of its "
                "gRPC port (6334 by default)"
            )
        if _is_transient(error):
            return StoreUnavailable(
                f"{self.url} did not answer {what} within {deadline_s:g} s ({code.name}: {details}){names}; "
                "check that the store runs, and that this is the address of its gRPC port"
            )
        if NO_POINT in details:
            return PointMissing(
                f"{self.url} refused {what}: {details}; it was deleted meanwhile, or a copy of its shard lacks it: "
                "`python -m vector_store verify --repair`, then the same command again"
            )
        if code == grpc.StatusCode.NOT_FOUND:
            return CollectionMissing(
                f"{self.url} refused {what}: {details.rstrip('!')}; name one that is there in store.collection "
                "(`python -m vector_store info` lists them), or make it first: `python jobs/ingest.py`"
            )
        if code in _ERRORS:
            return _ERRORS[code](f"{self.url} refused {what}: {details}")
        if code == grpc.StatusCode.PERMISSION_DENIED:
            return StoreError(
                f"{self.url} refused {what}: this key may not write ({details}); set ${self._api_key_env} to one that may"
            )
        if code == grpc.StatusCode.UNAUTHENTICATED:
            sent = "the API key sent is not accepted" if self._metadata else "no API key was sent"
            return StoreError(
                f"{self.url} refused {what}: {sent}; set ${self._api_key_env} to its key: that of an embedded store is "
                "in the file `key` of its directory, which may also be named instead of the URL"
            )
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return InvalidPoint(f"{self.url}: {what} or its answer is too large ({details}); raise store.message_bytes")
        return StoreError(f"{self.url} failed {what} ({code.name}): {details}")


def connect(config: StoreConfig, url: str, api_key: str | None = None, rank: int | None = None) -> Client:
    """Open a client of the store at `url`, with the key `api_key` or else the variable that config.api_key_env names.

    `url` is http(s)://host:port, or those of a cluster's nodes, separated by commas: a node on this machine is used first, else
    the one of this `rank`. That of an embedded store comes from `embedded_server` and names its directory: the key is read
    there and sent to the directory's own socket, where no other user of the machine can listen.
    Nothing is sent yet. StoreError where the directory's key is not for this user.
    """
    parts = [split(node) for node in nodes_in(url)]
    urls, directories = [node for node, _ in parts], dict(parts)
    api_key = api_key or _key_of([directory for _, directory in parts if directory], config.api_key_env)

    def channel(node: str, accepts_compression: bool = config.compression) -> grpc.Channel:
        return _channel(config, node, directories[node], accepts_compression)

    nodes = Nodes(urls, [channel(node) for node in urls], first_node(urls, rank), lambda node: channel(node, True))
    return Client(nodes, ",".join(urls), api_key, _read_consistency(config), config.api_key_env)


def _key_of(directories: Sequence[Path], variable: str) -> str | None:
    """The key of these directories' servers, else the one in the environment; None where there is none."""
    keys = {key for directory in directories if (key := stored_key(directory))}
    if len(keys) == 1:
        return next(iter(keys))
    given = key_in(variable)
    if keys and not given:
        names = ", ".join(map(str, directories))
        raise StoreError(
            f"the stores {names} have keys of their own: serve them with one key, in ${variable}, to use them as nodes"
        )
    return given


def key_in(variable: str) -> str | None:
    """The key in an environment variable, without the white space that a file or an editor leaves around it.

    StoreError, which does not show it, where it can be no key.
    """
    key = os.environ.get(variable, "").strip()
    if not all(" " <= character <= "~" for character in key):
        raise StoreError(
            f"${variable} holds line breaks or characters beyond printable ASCII, which no key can have; set it to one key"
        )
    return key or None


def _channel(config: StoreConfig, url: str, directory: Path | None, accepts_compression: bool) -> grpc.Channel:
    parts = urlsplit(url)
    if url == EMBEDDED or parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(
            f"cannot connect to {url!r}, wanted http(s)://host:port; start an embedded server to get its URL"
        )
    target = f"{parts.hostname}:{parts.port or 6334}"
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", config.message_bytes),
        ("grpc.max_send_message_length", config.message_bytes),
        # By default gRPC waits up to two minutes before it tries to reconnect to a restarted server.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A cut link drops packets silently: the kernel would keep the connection for a quarter of an hour.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    ]
    if not accepts_compression:
        # The algorithms as bits, of which the first is none; by default a channel accepts every one.
        options.append(("grpc.compression_enabled_algorithms_bitset", 1))
    # The port of a server that has ended is anybody's, and a channel sends the key again to whatever answers.
    own = served_socket(directory) if directory and parts.scheme == "http" else None
    if is_loopback(parts.hostname):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's loopback
        target = own or target
    elif own and own != NOWHERE:  # else another machine's, whose directory may be called like one of this
        target = own
    if parts.scheme == "https":
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
    return grpc.insecure_channel(target, options)


def _read_consistency(config: StoreConfig) -> api.ReadConsistency | None:
    wanted = config.read_consistency
    if wanted is None:
        return None
    if isinstance(wanted, int):
        return api.ReadConsistency(factor=wanted)
    return api.ReadConsistency(type=api.ReadConsistencyType.Value(wanted.capitalize()))


def _is_transient(error: Any) -> bool:
    # A message over the size limit is RESOURCE_EXHAUSTED, too, and retrying cannot help.
    return (
        compresses_unasked(error)
        or (is_away(error) and not speaks_no_grpc(error))
        or (error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in (error.details() or ""))
    )


def _retry_after_s(error: Any) -> float:
    """Seconds after which a store that limits calls wants to be asked again; 0 where it does not say."""
    if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
        return 0.0
    said = next((value for key, value in error.trailing_metadata() or () if key == RETRY_AFTER), "")
    return float(said) if said.isdecimal() else 0.0
