"""Errors of a memory. Messages say what was found and, where that is known, what was wanted and what to do."""
# ruff: noqa: N818  (the names say what is wrong without an `Error` at their end)

MISSING_POINTS = "acknowledged points are missing"
"""What a collection's warnings say, after their number, where files were damaged that held points."""


class StoreError(Exception):
    """Base of the store's errors; the message is for the user."""


class StoreUnavailable(StoreError):
    """Nothing answers at the store's address within the deadline, or a package that is needed for it is not installed."""


class CollectionMissing(StoreError):
    """The collection does not exist."""


class CollectionExists(StoreError):
    """The collection to create exists already."""


class CollectionMismatch(StoreError):
    """The collection exists, but was written by another encoder or in another shape or format."""


class PointMissing(StoreError):
    """A point to change is not there: it was deleted meanwhile, or a copy of its shard lacks it."""


class InvalidPoint(StoreError):
    """A point that the collection cannot hold: wrong shape, NaN or infinite values, too large.

    `reason` says so in a few words, without the point's id and without advice, so that points can be counted by it.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message
