"""Several nodes of one Qdrant cluster as a single gRPC channel, with failover: one node is used, and the next after a failure.

Every node takes every request and forwards it to the shards concerned, so the choice of the node affects latency and the
distribution of work, and the response only where copies differ, scores are equal or an alias has just changed. Makes no calls
of its own but health checks; retries are the client's.
"""

import ipaddress
import itertools
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import grpc

from vector_store.protocol import api

log = logging.getLogger(__name__)

AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""Status codes of a call to a node that is dead, cut off, hanging or (CANCELLED) shutting down."""

AWAY_IN_WORDS = ("unavailable", "operations failed", "shards failed", "consensus", "timeout", "timed out")
"""In the text of INTERNAL: a node answers, and another one that it needs does not (Qdrant 1.18.3)."""

FULL_DISK = "No space left"

NO_GRPC = re.compile(r"http1\.x server \(HTTP status (?!429|50[0234])\d+\)|http2 header with status: 4(00|04|05|15)")
"""In the text of a status that gRPC's client makes itself, where a web server answers. One that is busy, or in front of a store
that is away (429, 50x), is waited for."""

FAIL_BACK_S = 60.0
"""Time after a failover until the first node is tried again: otherwise, after a rolling restart, the last has all the work."""

HEALTH_S = 1.0
"""Time for a node to say that it lives, when an error is to name those that do not."""


class Nodes(grpc.Channel):
    """A channel over several, of which one is in use. Threads may share it.

    Has only what Qdrant's stubs need: unary calls, made directly or as a future.
    """

    def __init__(
        self,
        urls: Sequence[str],
        channels: Sequence[grpc.Channel],
        first: int,
        reopen: Callable[[str], grpc.Channel] | None = None,
    ) -> None:
        self._urls, self._channels, self._reopen = tuple(urls), list(channels), reopen
        self._compressing: set[int] = set()
        self._warned_s: dict[int, float] = {}
        self._silent_s: dict[int, float] = {}
        self._first = self._current = first % len(channels)
        self._failed_over_s = 0.0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def url(self) -> str:
        """The address in use."""
        return self._urls[self._current]

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """A method of a service, on the node that is in use at the time of a call."""
        return _Call(self, lambda channel: channel.unary_unary(*arguments, **options))

    def channel(self, node: int) -> grpc.Channel:
        """The channel to a node."""
        return self._channels[node]

    def accept_compression(self, node: int) -> None:
        """Open a channel anew that accepts compressed answers, for a node that sends nothing else."""
        with self._lock:
            if node in self._compressing or self._reopen is None:
                return
            self._compressing.add(node)
            self._channels[node] = self._reopen(self._urls[node])  # the old one closes with its last call
        log.warning(
            "%s compresses its answers, accepted or not, which costs it most of a look-up's time: turn that off there, or set "
            "store.compression=true for a slow link", self._urls[node],
        )  # fmt: skip

    def choose(self) -> int:
        """Number of the node to call now."""
        with self._lock:
            if self._current != self._first and time.monotonic() - self._failed_over_s > FAIL_BACK_S:
                self._current = self._first
            return self._current

    def failed(self, node: int, answers: bool = False) -> None:
        """Fail over from a node that is of no use now, unless another thread has; said once per node and FAIL_BACK_S.

        A node that `answers` lacks one that it needs. The next node is one that has not been silent lately, if there is any.
        """
        with self._lock:
            now = time.monotonic()
            if not answers:
                self._silent_s[node] = now
            if node != self._current or len(self._channels) == 1:
                return
            others = [(node + step) % len(self._channels) for step in range(1, len(self._channels))]
            self._current = next(
                (other for other in others if now - self._silent_s.get(other, -FAIL_BACK_S) >= FAIL_BACK_S), others[0]
            )
            self._failed_over_s = now
            is_new = now - self._warned_s.get(node, -FAIL_BACK_S) >= FAIL_BACK_S
            self._warned_s[node] = now if is_new else self._warned_s[node]
        if is_new:
            why = "cannot reach a node that it needs" if answers else "does not answer"
            log.warning("%s %s; using %s", self._urls[node], why, self._urls[self._current])

    def each(self) -> list["Nodes"]:
        """Each node alone, over the same channels."""
        return [Nodes([url], [self._channels[node]], 0) for node, url in enumerate(self._urls)]

    def silent(self) -> list[str]:
        """The addresses at which nothing answers; asks all of them at once, and waits for HEALTH_S."""
        asked = {
            url: api.QdrantStub(channel).HealthCheck.future(api.HealthCheckRequest(), timeout=HEALTH_S)
            for url, channel in zip(self._urls, self._channels, strict=True)
        }
        return [
            url
            for url, answer in asked.items()
            if isinstance(error := answer.exception(), grpc.RpcError) and is_away(error)
        ]

    def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """Not implemented: nobody needs the connectivity of several channels."""
        raise NotImplementedError("subscribe")

    unsubscribe = unary_stream = stream_unary = stream_stream = subscribe


class _Call:
    """One method of a service on every node."""

    def __init__(self, nodes: Nodes, method_of: Callable[[grpc.Channel], Any]) -> None:
        self._nodes, self._method_of = nodes, method_of
        self._methods: dict[int, tuple[grpc.Channel, Any]] = {}

    def __call__(self, request: Any, **options: Any) -> Any:
        node = self._nodes.choose()
        try:
            return self._method(node)(request, **options)
        except grpc.RpcError as error:
            self._note(node, error)
            raise

    def future(self, request: Any, **options: Any) -> Any:
        node = self._nodes.choose()
        future = self._method(node).future(request, **options)
        future.add_done_callback(lambda done: None if done.cancelled() else self._note(node, done.exception()))
        return future

    def _method(self, node: int) -> Any:
        channel = self._nodes.channel(node)
        known, method = self._methods.get(node, (None, None))
        if known is not channel:
            method = self._method_of(channel)
            self._methods[node] = channel, method
        return method

    def _note(self, node: int, error: Any) -> None:
        if not isinstance(error, grpc.RpcError):
            return
        if error.code() in AWAY:
            self._nodes.failed(node)
        elif is_away(error):
            self._nodes.failed(node, answers=True)
        elif compresses_unasked(error):
            self._nodes.accept_compression(node)


def is_away(error: Any) -> bool:
    """Whether a call failed because a node is away: the one that was asked, or one that it had to ask."""
    if error.code() in AWAY:
        return True
    text = error.details() or ""
    return (
        error.code() == grpc.StatusCode.INTERNAL
        and FULL_DISK not in text
        and any(words in text.lower() for words in AWAY_IN_WORDS)
    )


def speaks_no_grpc(error: Any) -> bool:
    """Whether a call failed because a web server listens at the address, such as a store's REST port."""
    return bool(NO_GRPC.search(error.details() or ""))


def compresses_unasked(error: Any) -> bool:
    """Whether a call failed because its answer was compressed though the channel does not accept that."""
    return error.code() == grpc.StatusCode.INTERNAL and "Compression algorithm" in (error.details() or "")


_turns = itertools.count()


def first_node(urls: Sequence[str], rank: int | None = None, is_here: Callable[[str], bool] | None = None) -> int:
    """Number of the node that a process uses first: one on its own machine, else by its rank, else any.

    `rank` distributes the workers of a job evenly over the nodes. Without it, processes are distributed by their ids, and the
    clients of one process take the nodes in turn.
    """
    is_here = is_here or is_this_machine
    if len(urls) == 1:
        return 0
    for number, url in enumerate(urls):
        if is_here(urlsplit(url).hostname or ""):
            return number
    return (os.getpid() + next(_turns) if rank is None else rank) % len(urls)


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is this machine's, so that a socket can be bound to it; False for an unknown name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as listener:
            try:
                listener.bind((address[0], 0))
                return True
            except OSError:
                continue
    return False


def is_loopback(host: str) -> bool:
    """Whether the host is the loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
