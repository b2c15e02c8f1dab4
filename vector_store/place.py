"""Where a memory is, as a user names it: a store's directory or the URL of a server, and a connection to either.

Knows no verbs and no points.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pydantic import ValidationError

from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError
from vector_store.server.process import embedded_server


def is_url(place: str) -> bool:
    """Whether the place is a server's address; any other is a directory."""
    return place.startswith(("http://", "https://"))


@contextmanager
def open_place(place: str, config: StoreConfig, create: bool = False) -> Iterator[Client]:
    """A client of the memory at `place`; the server of a directory is started, or found running, for as long.

    A directory without a store is refused unless it may be created: a mistyped path should not become an empty store.
    """
    if not is_url(place) and not create and not (Path(place) / "collections").is_dir():
        raise StoreError(
            f"there is no store in {place!r}; give a store's directory, or http(s)://host:port of a server"
        )
    server = nullcontext(place) if is_url(place) else embedded_server(place, message_bytes=config.message_bytes)
    with server as url, connect(config, url) as client:
        yield client


def config_of(api_key_env: str, collection: str | None = None) -> StoreConfig:
    """The config of one command; StoreError for a collection name that no collection can have."""
    changes = {"collection": collection} if collection is not None else {}
    try:
        return StoreConfig(api_key_env=api_key_env, **changes)
    except ValidationError as error:
        raise StoreError(
            f"{collection!r} cannot be a collection's name ({error.errors()[0]['msg']}); "
            "use letters, digits, dots, dashes and underscores"
        ) from error
