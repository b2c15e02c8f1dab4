"""When to build a collection's index: at once where somebody waits for it, otherwise when writes pause or have long gone on.

After an attempt that failed, the next one waits for a pause of writes, and after an error also for PATIENCE_S, unless somebody
waits for the index again. Knows no shard: a collection has a schedule, and the builder asks it.
"""

import math
import time

QUIET_S = 10.0
"""A build waits until there has been no write for this long,"""

PATIENCE_S = 60.0
"""or until an index has been wanted for this long."""


class IndexSchedule:
    """When to build one collection's index, and the result of the last attempt.

    `is_building` and `error` (empty after a success) are shown in the collection's status.
    """

    def __init__(self) -> None:
        self.is_building = False
        self.error = ""
        self._patience_s = PATIENCE_S
        self._wanted_since: float | None = None
        self._retry_at = 0.0

    def is_due(self, wants_index: bool, wrote_at: float) -> bool:
        """Whether to build now. `wants_index`: there is something to build; `wrote_at`: last write, in monotonic seconds."""
        if not wants_index:
            self._wanted_since, self.error = None, ""
            return False
        now = time.monotonic()
        if now < self._retry_at:
            return False
        if self._wanted_since is None:
            self._wanted_since = now
        return now - wrote_at > QUIET_S or now - self._wanted_since >= self._patience_s

    def hurry(self) -> None:
        """Build as soon as possible: somebody waits for the index."""
        self._patience_s, self._retry_at = 0.0, 0.0

    def failed(self, error: str = "") -> None:
        """Wait for a pause of writes before the next attempt, after an error at least PATIENCE_S: each attempt costs a copy."""
        self._patience_s, self.error = math.inf, error
        if error:
            self._retry_at = time.monotonic() + PATIENCE_S

    def succeeded(self) -> None:
        """Forget earlier attempts."""
        self._patience_s, self._wanted_since, self.error = PATIENCE_S, None, ""
