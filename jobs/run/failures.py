"""The known cause of a failure, inside whatever Ray wrapped around it, and the exit code of the job."""

import errno
from pathlib import Path

from safetensors import SafetensorError

from refbert.errors import InputError, UnavailableError
from vector_store.errors import StoreError, StoreUnavailable

OK, BAD_INPUT, UNAVAILABLE, INTERRUPTED, TERMINATED = 0, 2, 3, 130, 143


def known_cause(error: BaseException) -> BaseException | None:
    """Find the user's mistake or the missing dependency inside whatever Ray wrapped around it."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        original = getattr(current, "cause", None)  # RayTaskError, which also claims to be its cause's class
        if original is None and (isinstance(current, InputError | UnavailableError | StoreError)):
            return current
        if original is None and _is_full_disk(current):
            return _full_disk(current)
        failures = getattr(current, "worker_failures", None) or {}
        controller = getattr(current, "controller_failure", None)
        inner = [original, controller, current.__cause__, current.__context__, *failures.values()]
        waiting += [other for other in inner if isinstance(other, BaseException)]
    return None


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and f"os error {errno.ENOSPC}" in str(error)


def _full_disk(error: BaseException) -> UnavailableError:
    """One line for a disk without room. Files are written whole or not at all, so that what was there before is still there."""
    where = getattr(error, "filename", None)
    of = f" of {Path(str(where)).parent}" if where else ""
    return UnavailableError(
        f"no space is left on the disk{of}; what was written before is kept: free some, and start the same command again"
    )


def exit_code(known: BaseException) -> int:
    """Return the exit code of a known cause."""
    return UNAVAILABLE if isinstance(known, StoreUnavailable | UnavailableError) else BAD_INPUT
