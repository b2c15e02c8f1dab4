"""Exceptions that end a call with a gRPC status: a code, and a message for the user, in Qdrant's wording where it has one.

Opens no collection and imports no engine; the interceptor makes the call's status of an exception, `rest` an HTTP status.
"""

import grpc


class StatusError(Exception):
    """Ends a call with the status `code`; the message is for the user."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> StatusError:
    """INVALID_ARGUMENT: the user's input is wrong."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {message}")


def unimplemented(what: str) -> StatusError:
    """UNIMPLEMENTED: `what` names a part of Qdrant's API that the embedded server lacks."""
    return StatusError(
        grpc.StatusCode.UNIMPLEMENTED, f"{what} is not implemented by the embedded server; use a Qdrant server"
    )


def already_exists(name: str) -> StatusError:
    """ALREADY_EXISTS: a collection has this name."""
    return StatusError(grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!")


def too_large(what: str, num_bytes: int, most_bytes: int) -> StatusError:
    """RESOURCE_EXHAUSTED, as gRPC ends a call with a message over its limit: `what` has more bytes than are taken."""
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{what} ({num_bytes} bytes) is larger than allowed (limit: {most_bytes} bytes); send less at once, or serve with a "
        "larger --message-bytes",
    )


class DamagedError(StatusError):
    """DATA_LOSS: a file of the store is damaged; the message names it and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(grpc.StatusCode.DATA_LOSS, message)


class CollectionNotFoundError(StatusError):
    """NOT_FOUND: no collection has this name.

    The collection may have been dropped just after the alias was switched to another one, so the interceptor retries once.
    """

    def __init__(self, name: str) -> None:
        super().__init__(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
