"""The one way a call is refused: a gRPC status code and a line for the user.

Knows no collection and no engine; the gate turns a refusal into the call's status.
"""

import grpc


class Refusal(Exception):  # noqa: N818
    """Ends a call with `code`; the message is for the user."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> Refusal:
    """Bad user input, in the words Qdrant uses."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {message}")


def unimplemented(what: str) -> Refusal:
    """A part of Qdrant's API that the embedded server leaves out, by name."""
    return Refusal(
        grpc.StatusCode.UNIMPLEMENTED, f"{what} is not implemented by the embedded server; use a Qdrant server"
    )


def already_exists(name: str) -> Refusal:
    """The words Qdrant uses where a name is a collection's already."""
    return Refusal(grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!")


class MissingCollection(Refusal):
    """No collection has this name, in Qdrant's words.

    It may just have been dropped behind an alias that now leads elsewhere, so the gate asks a second time.
    """

    def __init__(self, name: str) -> None:
        super().__init__(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
