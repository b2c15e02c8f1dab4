"""The known cause of a failure, inside whatever Ray wrapped around it, and the exit code of the job."""

import errno
import sys
from pathlib import Path

from safetensors import SafetensorError

from refbert.errors import InputError, UnavailableError
from vector_store.errors import StoreError, StoreUnavailable

OK, BAD_INPUT, UNAVAILABLE, INTERRUPTED, TERMINATED = 0, 2, 3, 130, 143


LOST = ("WorkerCrashedError", "OutOfMemoryError", "ActorDiedError", "ActorUnavailableError", "NodeDiedError")
"""Ray's errors that say that a process is gone."""

KNOWN = (InputError.__module__, StoreError.__module__)
"""Modules whose errors are known causes."""


class LostProcessError(UnavailableError):
    """A worker's process ended amid its work: killed, out of memory or crashed. Another try may succeed."""


def known_cause(error: BaseException) -> BaseException | None:
    """Find the user's mistake or the missing dependency inside whatever Ray wrapped around it.

    A process that is gone is the last that is looked for: LostProcessError.
    """
    waiting, seen = [error], set()
    lost: BaseException | None = None
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
        if original is None and _is_rays(current) and type(current).__name__ in LOST:
            if said := _said_at_start(current):
                return said
            if not getattr(current, "actor_init_failed", False):  # else it raised what nobody knows: a bug
                lost = lost or current
    return _lost_process(lost) if lost else None


def _is_rays(error: BaseException) -> bool:
    return type(error).__module__.startswith("ray.")


def _said_at_start(error: BaseException) -> BaseException | None:
    """Return the known error that a worker raised as it started: of that Ray keeps only the text."""
    for line in reversed(str(error).splitlines()):
        name, _, message = line.strip().partition(": ")
        module, _, kind = name.rpartition(".")
        if module in KNOWN and message:
            return getattr(sys.modules[module], kind)(message)
    return None


def _lost_process(error: BaseException) -> LostProcessError:
    where = next((line.strip() for line in str(error).splitlines() if line.strip().startswith("ip:")), "")
    return LostProcessError(
        f"a worker's process ended amid its work{' on ' + where.removeprefix('ip:').strip() if where else ''} "
        f"({type(error).__name__}): killed, crashed or out of memory, which the end of `dmesg` there tells; start the same "
        "command again, with fewer workers or smaller batches if the memory is short"
    )


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
