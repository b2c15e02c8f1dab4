"""Where a directory's server listens: at a port, for everybody, and at a Unix socket, for the user who runs it.

    <store>/address.json              where the last server listens or listened, whoever started it
    <tmp>/vector-store-.../socket     its socket, in a folder that the server made for its owner alone

A client that finds the server by its directory sends its calls, and the key, to the socket that `address.json` names, or
nowhere if that is gone: the port of a server that has ended is anybody's on this machine. Only where the server could make no
socket, of which it warns, or where its address is not loopback and no socket is here, do they go to the port. The socket is not
in the store, where many programs that copy a folder would stop at it. Its folder is named at random, so that nobody else has it
first. While that folder exists the directory's next server listens there again; the server of a copy of the directory does not.
"""

import contextlib
import functools
import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from vector_store.atomic import write_whole
from vector_store.server.access import identity

ADDRESS_FILE, SOCKET_FILE = "address.json", "socket"

LONGEST_PATH = 100
"""Bytes of a socket's path: Linux takes 107, macOS 103."""

NOWHERE = "unix:/dev/null/no-server"
"""A name at which nobody can listen."""

SHORT = "/tmp"
"""Where the folder is made when the one for temporary files has too long a path."""


def read_address(root: Path) -> dict[str, Any]:
    """What `write_address` wrote, with `socket` None where the server had none; in a copy of the directory without `socket`.

    Nothing where that is missing or damaged.
    """
    try:
        address = json.loads((root / ADDRESS_FILE).read_text(encoding="utf-8"))
        for url in (address["url"], address.get("rest") or address["url"]):
            int(url.removeprefix("http://").rsplit(":", 1)[1])
        is_own, path = address.get("directory") == identity(root), address.get("socket")
        found = {"url": address["url"], "instance": address["instance"], "rest": address.get("rest")}
        return found | ({"socket": path if isinstance(path, str) else None} if is_own else {})
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def write_address(root: Path, address: dict[str, Any]) -> None:
    """Say where this server listens: `url`, `instance` (which start it is), `pid`, and the `rest` and `socket` that it has."""
    write_whole(root / ADDRESS_FILE, json.dumps(address | {"directory": identity(root)}), mode=0o600, sync=False)


def served_socket(root: Path) -> str | None:
    """gRPC's name, in this process, of the socket of the directory's last server; None where that server could make none.

    NOWHERE where no server of this very directory has said where it listens, since another user may have the port. On Linux the
    socket is found through its folder, kept open: another user who makes a folder of this name, once it is gone, is not reached
    by a channel that connects again. Where the folder is gone already, or others may enter it, nothing is.
    """
    address = read_address(root)
    if "socket" not in address:
        return NOWHERE
    if address["socket"] is None:
        return None
    path = Path(address["socket"])
    if not _is_private(path.parent):
        return NOWHERE
    if sys.platform != "linux":
        return f"unix:{path}"
    try:
        return f"unix:/proc/self/fd/{_opened(path.parent, path.parent.stat().st_ino)}/{path.name}"
    except OSError:
        return NOWHERE


@functools.cache
def _opened(folder: Path, _inode: int) -> int:
    """The folder, open for as long as this process lives."""
    return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)


def socket_path(root: Path) -> Path | None:
    """Where a server of the directory is to listen: where the last one did, else in a new folder; None where none can be."""
    last = read_address(root).get("socket")
    if last and _is_private(Path(last).parent):
        return Path(last)
    for folder in (tempfile.gettempdir(), SHORT):
        if len(os.fsencode(folder)) + len("/vector-store-12345678/") + len(SOCKET_FILE) <= LONGEST_PATH:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="vector-store-", dir=folder)) / SOCKET_FILE
    return None


def remove_socket(path: Path) -> None:
    """Remove the socket's folder, once nobody uses the server."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _is_private(folder: Path) -> bool:
    """Whether this is a folder, and no link to one, that this user alone may enter."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
