"""What can go wrong with a memory. Each message says what was found, what was wanted, and what to do."""
# ruff: noqa: N818  (the names say what is wrong; an `Error` at their end would add nothing)


class StoreError(Exception):
    """A request the store cannot serve; the message is for the user."""


class StoreUnavailable(StoreError):
    """Nothing answers at the store's address within the deadline."""


class CollectionMissing(StoreError):
    """The collection does not exist."""


class CollectionExists(StoreError):
    """The collection to create is there already."""


class CollectionMismatch(StoreError):
    """The collection exists but another encoder, shape or format wrote it."""


class InvalidPoint(StoreError):
    """A point that would damage the collection: wrong shape, NaN or infinite values, oversized.

    `reason` says what is wrong in a few words, without the point's id and without advice: points are counted by it.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message
