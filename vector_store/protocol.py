"""Qdrant's gRPC messages and stubs, as `api`, without the rest of its client.

The client's package imports an HTTP library and its models first: a second of processor time, in every process of a job and in
every embedded server. What imports `qdrant_client` itself, before or after, shares these modules.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

PACKAGE = "qdrant_client"


def _messages() -> ModuleType:
    """Import the subpackage in an empty package of the name, which is taken away again."""
    spec = None if PACKAGE in sys.modules else find_spec(PACKAGE)
    if spec is None:  # imported whole already, or not installed
        return import_module(f"{PACKAGE}.grpc")
    empty = sys.modules[PACKAGE] = ModuleType(PACKAGE)
    empty.__path__ = list(spec.submodule_search_locations or ())
    try:
        return import_module(f"{PACKAGE}.grpc")
    finally:
        del sys.modules[PACKAGE]


if TYPE_CHECKING:
    from qdrant_client import grpc as api
else:
    api = _messages()
