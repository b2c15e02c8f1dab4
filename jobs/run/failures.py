"""The known cause of a failure, inside whatever Ray wrapped around it, and the exit code of the job."""

from refbert.errors import InputError, UnavailableError
from vector_store.errors import StoreError, StoreUnavailable

OK, BAD_INPUT, UNAVAILABLE, INTERRUPTED = 0, 2, 3, 130


def known_cause(error: BaseException) -> BaseException | None:
    """Find the user's mistake or the missing dependency inside whatever Ray wrapped around it."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        original = getattr(current, "cause", None)  # RayTaskError, which also claims to be its cause's class
        if isinstance(current, InputError | UnavailableError | StoreError) and original is None:
            return current
        failures = getattr(current, "worker_failures", None) or {}
        controller = getattr(current, "controller_failure", None)
        inner = [original, controller, current.__cause__, current.__context__, *failures.values()]
        waiting += [other for other in inner if isinstance(other, BaseException)]
    return None


def exit_code(known: BaseException) -> int:
    """Return the exit code of a known cause."""
    return UNAVAILABLE if isinstance(known, StoreUnavailable | UnavailableError) else BAD_INPUT
