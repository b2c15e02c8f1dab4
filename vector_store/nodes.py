"""Several nodes of one Qdrant cluster as a single gRPC channel: one is asked, and the next where that one fails.

Any node takes any request and passes it on to the shards that it concerns, so which one is asked decides about hops and about
the spread of work, never about the answer. Knows neither the calls nor who retries them.
"""

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import grpc

log = logging.getLogger(__name__)

AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""What a node answers, or rather does not, that is dead, cut off or stuck; CANCELLED while it shuts down."""

HOME_AGAIN_S = 60.0
"""After so long the first node is tried again: otherwise one restart of each would leave all the work on the last."""


class Nodes(grpc.Channel):
    """A channel over several, of which one is in use. Threads may share it.

    Only what Qdrant's stubs need: calls of one request and one answer, made at once or as a future.
    """

    def __init__(self, urls: Sequence[str], channels: Sequence[grpc.Channel], first: int) -> None:
        self._urls, self._channels = tuple(urls), tuple(channels)
        self._home = self._current = first % len(channels)
        self._left_s = 0.0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def url(self) -> str:
        """The address in use."""
        return self._urls[self._current]

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """One call of a service, whichever node is asked then."""
        return _Call(self, [channel.unary_unary(*arguments, **options) for channel in self._channels])

    def choose(self) -> int:
        """The node to ask now."""
        with self._lock:
            if self._current != self._home and time.monotonic() - self._left_s > HOME_AGAIN_S:
                self._current = self._home
            return self._current

    def failed(self, node: int) -> None:
        """Move on from a node that does not answer, unless another thread has."""
        with self._lock:
            if node != self._current or len(self._channels) == 1:
                return
            self._current = (node + 1) % len(self._channels)
            self._left_s = time.monotonic()
        log.warning("%s does not answer; asking %s", self._urls[node], self._urls[self._current])

    def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """Not offered: nobody follows the state of several channels."""
        raise NotImplementedError("subscribe")

    unsubscribe = unary_stream = stream_unary = stream_stream = subscribe


class _Call:
    """One method of a service on every node."""

    def __init__(self, nodes: Nodes, calls: Sequence[Any]) -> None:
        self._nodes, self._calls = nodes, calls

    def __call__(self, request: Any, **options: Any) -> Any:
        node = self._nodes.choose()
        try:
            return self._calls[node](request, **options)
        except grpc.RpcError as error:
            self._note(node, error)
            raise

    def future(self, request: Any, **options: Any) -> Any:
        node = self._nodes.choose()
        future = self._calls[node].future(request, **options)
        future.add_done_callback(lambda done: None if done.cancelled() else self._note(node, done.exception()))
        return future

    def _note(self, node: int, error: Any) -> None:
        if isinstance(error, grpc.RpcError) and error.code() in AWAY:
            self._nodes.failed(node)


_turns = itertools.count()


def first_node(urls: Sequence[str], rank: int | None = None, is_here: Callable[[str], bool] | None = None) -> int:
    """Which node a process asks first: one on its own machine, else the one of its rank, else any.

    `rank` spreads the workers of one job evenly. Without one, processes are spread by their ids, and the clients of one process
    over all nodes in turn.
    """
    is_here = is_here or is_this_machine
    if len(urls) == 1:
        return 0
    for number, url in enumerate(urls):
        if is_here(urlsplit(url).hostname or ""):
            return number
    return (os.getpid() + next(_turns) if rank is None else rank) % len(urls)


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is one of this machine's: whether one can listen there. False where it is unknown."""
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
