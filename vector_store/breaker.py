"""Circuit breaker: says how long a store that has failed is not called, so that not every look-up waits for its deadline.

The pause doubles with each failure up to LONGEST_OPEN_S, and begins anew after a success. Makes and stops no calls: the
retriever asks `is_open` before it calls, and reports successes and failures.
"""

import logging
import threading
import time

from vector_store.errors import StoreUnavailable

log = logging.getLogger(__name__)

SHORTEST_OPEN_S = 1.0
LONGEST_OPEN_S = 5.0


class CircuitBreaker:
    """Open (no calls) for some seconds after a failure, closed otherwise. Threads may share it."""

    def __init__(self) -> None:
        self._open_s = SHORTEST_OPEN_S
        self._open_until = 0.0
        self._lock = threading.Lock()

    def is_open(self) -> bool:
        """Whether the store must not be called now."""
        return time.monotonic() < self._open_until

    def failed(self, error: StoreUnavailable) -> None:
        """Open. Look-ups that were in flight together fail together, and count as one failure."""
        with self._lock:
            if self.is_open():
                return
            open_s, self._open_s = self._open_s, min(2 * self._open_s, LONGEST_OPEN_S)
            self._open_until = time.monotonic() + open_s
        log.warning("no look-ups for %g s: %s", open_s, error)

    def succeeded(self) -> None:
        """The store has answered: after the next failure it opens for the shortest time."""
        self._open_s = SHORTEST_OPEN_S

    def reset(self) -> None:
        """Close now: another caller has had an answer from the store."""
        with self._lock:
            self._open_until = 0.0
