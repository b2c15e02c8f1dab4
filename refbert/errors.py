"""Errors that a user can fix. By convention a message is one line: what was found, what was wanted, what to do next."""


class InputError(ValueError):
    """Bad input or configuration; jobs end with exit code 2."""


class UnavailableError(RuntimeError):
    """Something the run depends on cannot be reached; jobs end with exit code 3."""
