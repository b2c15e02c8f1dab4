"""Let a dead store rest, for longer each time it fails again, so that it does not cost a deadline per look-up.

Knows only successes, failures and the clock.
"""

import logging
import threading
import time

from vector_store.errors import StoreUnavailable

log = logging.getLogger(__name__)

SHORTEST_REST_S = 1.0
LONGEST_REST_S = 5.0


class Breaker:
    """Open for some seconds after a failure. Threads may share it."""

    def __init__(self) -> None:
        self._rest_s = SHORTEST_REST_S
        self._rests_until = 0.0
        self._lock = threading.Lock()

    def lets_through(self) -> bool:
        """Whether the store may be asked now."""
        return time.monotonic() >= self._rests_until

    def failed(self, error: StoreUnavailable) -> None:
        """Start a rest. Look-ups that were in flight together fail together, and count as one failure."""
        with self._lock:
            if not self.lets_through():
                return
            rest_s, self._rest_s = self._rest_s, min(2 * self._rest_s, LONGEST_REST_S)
            self._rests_until = time.monotonic() + rest_s
        log.warning("look-ups rest for %g s: %s", rest_s, error)

    def succeeded(self) -> None:
        """The store answers again: the next rest is a short one."""
        self._rest_s = SHORTEST_REST_S

    def reset(self) -> None:
        """The store was seen to answer by somebody else: do not rest any longer."""
        with self._lock:
            self._rests_until = 0.0
