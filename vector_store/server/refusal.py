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
