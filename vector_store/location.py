"""Connect to a memory by its location, as a user gives it: a store's directory, or the URL of a server.

For a directory without a running server one is started. Reads and writes no points.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pydantic import ValidationError

from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError
from vector_store.server.process import embedded_server


def is_url(location: str) -> bool:
    """Whether the location is a server's URL; any other is a directory."""
    return location.startswith(("http://", "https://"))


@contextmanager
def connect_to(location: str, config: StoreConfig, create: bool = False) -> Iterator[Client]:
    """Yield a client of the memory; for a directory, the server runs at least as long (started, or found running).

    StoreError where the directory holds no store, unless `create`: a mistyped path should not become an empty store.
    """
    if not is_url(location) and not create and not (Path(location) / "collections").is_dir():
        raise StoreError(
            f"there is no store in {location!r}; give a store's directory, or http(s)://host:port of a server"
        )
    server = (
        nullcontext(location) if is_url(location) else embedded_server(location, message_bytes=config.message_bytes)
    )
    with server as url, connect(config, url) as client:
        yield client


def config_of(api_key_env: str, collection: str | None = None) -> StoreConfig:
    """Config of one command; StoreError where the collection's name is not allowed."""
    changes = {"collection": collection} if collection is not None else {}
    try:
        return StoreConfig(api_key_env=api_key_env, **changes)
    except ValidationError as error:
        raise StoreError(
            f"{collection!r} cannot be a collection's name ({error.errors()[0]['msg']}); "
            "use letters, digits, dots, dashes and underscores"
        ) from error
