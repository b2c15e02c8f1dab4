"""When an index is built: soon where somebody waits for it, else once writes pause or have gone on for long.

Knows no shard; a collection keeps one, the builder asks it.
"""

import math
import time

QUIET_S = 10.0
"""Writes pause this long before a build starts,"""

PATIENCE_S = 60.0
"""unless an index has been wanted for this long."""


class IndexWish:
    """How soon a collection's index should be built, and what came of the last attempt.

    `is_building` and `error` are for those who ask for the collection's status.
    """

    def __init__(self) -> None:
        self.is_building = False
        self.error = ""
        self._patience_s = PATIENCE_S
        self._wanted_at: float | None = None

    def is_time(self, wants_index: bool, wrote_at: float) -> bool:
        """Whether to build now, given whether there is anything to build."""
        if not wants_index:
            self._wanted_at, self.error = None, ""
            return False
        now = time.monotonic()
        if self._wanted_at is None:
            self._wanted_at = now
        return now - wrote_at > QUIET_S or now - self._wanted_at >= self._patience_s

    def hurry(self) -> None:
        """Somebody waits for the index."""
        self._patience_s = 0.0

    def failed(self, error: str = "") -> None:
        """Wait for a pause of writes before the next attempt."""
        self._patience_s, self.error = math.inf, error

    def succeeded(self) -> None:
        """Start over."""
        self._patience_s, self._wanted_at, self.error = PATIENCE_S, None, ""
