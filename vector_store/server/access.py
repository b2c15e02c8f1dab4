"""Who may use a directory's server: the key that it asks for, and which directory it is that a server serves.

    <store>/key    the store's key, for its owner alone; the server makes it, and who uses the directory reads it

The URL of an embedded server on loopback names its directory behind `#`: whoever gets the URL finds the key there, and nobody
reads the key in the URL. A directory's identity comes from its real path, device and inode, so a copy of the directory has
another identity, though it has all files that say where a server answers. Imports no engine.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag

from vector_store.errors import StoreError

KEY_FILE = "key"
KEY_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_")
SHORTEST_KEY = 32


def identity(directory: Path) -> str:
    """Digest of a directory's real path, device and inode; a health check shows it to everybody."""
    status = directory.stat()
    named = f"{directory.resolve()}\0{status.st_dev}\0{status.st_ino}"
    return hashlib.sha256(os.fsencode(named)).hexdigest()[:16]


def stored_key(directory: Path) -> str | None:
    """The directory's key; None where there is none. StoreError where this user may not read it."""
    path = directory / KEY_FILE
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); only the store's owner may use it") from error
    return key if len(key) >= SHORTEST_KEY and set(key) <= KEY_CHARACTERS else None


def make_key(directory: Path) -> str:
    """The directory's key, made where there is none, or a damaged one. For the server that holds the directory's lock."""
    path = directory / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mode & 0o077:  # others could have read it
            path.unlink()
    if key := stored_key(directory):
        return key
    key = secrets.token_urlsafe(SHORTEST_KEY)
    path.unlink(missing_ok=True)
    with open(path, "x", encoding="ascii", opener=private) as file:
        file.write(key)
    return key


def is_key(given: str, keys: Iterable[str]) -> bool:
    """Whether what a caller gives is one of the keys, compared in constant time."""
    return any(hmac.compare_digest(given.encode(), key.encode()) for key in keys)


def make_private(root: Path) -> None:
    """Make the store's directory, where it is not there, for its owner alone: other users of the machine read no memory."""
    root.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(mode=0o700, exist_ok=True)


def private(path: str, flags: int) -> int:
    """An opener for `open`: a new file is for its owner alone."""
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """While the block runs, what this process makes is for its owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def with_directory(url: str, directory: Path) -> str:
    """The URL, naming the directory whose key its server asks for."""
    return f"{url}#{quote(str(directory))}"


def split(url: str) -> tuple[str, Path | None]:
    """A URL without the directory that it names, and the directory; None for a URL that names none."""
    plain, directory = urldefrag(url)
    return plain, Path(unquote(directory)) if directory else None
