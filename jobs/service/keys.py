"""API keys from an environment variable and a file, compared in constant time.

The file is read again when a key is asked about, once a second at most, and compared by content: keys rotate without a restart,
and a revoked one ends whatever the file's time of change says. Keeps digests only. `wants_keys` decides whether a service needs
keys at all. A request's key is read in `middleware`, not here.
"""

import codecs
import hashlib
import hmac
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.sections import ServeConfig
from refbert.errors import InputError
from vector_store.nodes import is_loopback

log = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""The file is read at most this often."""

KEY = re.compile(rb"[!-~]+")
"""A key is printable ASCII: a header's other bytes reach no two servers alike."""


NO_KEY = "not one key of printable ASCII without spaces; write one key per line, in a file saved as UTF-8"


class Keys:
    """The keys that are accepted now. Without keys in the variable and without a file, none is required.

    `are_wanted` is what the deployer decided: raises InputError where this process, whose environment may be another one, then
    finds none.
    """

    def __init__(self, variable: str, file: str | None, *, are_wanted: bool = False) -> None:
        self._fixed, mistakes = _keys(os.environb.get(variable.encode(), b"").replace(b",", b" ").split())
        self._file = Path(file) if file else None
        self._from_file: tuple[bytes, ...] = ()
        self._seen: bytes | None = None
        self._checked_s = 0.0
        self._lock = threading.Lock()
        if mistakes:
            raise InputError(f"${variable}, key {mistakes}: not printable ASCII; make another key")
        if self._file:
            try:
                mistakes = self._read(self._file)
            except OSError as error:
                raise InputError(f"serve.api_keys_file={file} cannot be read: {error.strerror}") from None
            if mistakes:
                raise InputError(f"serve.api_keys_file={file}, line {mistakes}: {NO_KEY}")
            if not (self._from_file or self._fixed):
                raise InputError(f"serve.api_keys_file={file} holds no key; write one per line")
        if are_wanted and not self.are_required:
            raise InputError(
                f"this service wants keys, and its replica on {socket.gethostname()} finds none in ${variable}; export "
                f"{variable} there before `ray start`, or give serve.api_keys_file, a file that every node can read"
            )

    @property
    def are_required(self) -> bool:
        """Whether requests need a key at all."""
        return bool(self._fixed) or self._file is not None

    def accept(self, key: str | None) -> bool:
        """Return whether a request with this key, or with none, is accepted."""
        if not self.are_required:
            return True
        self._refresh()
        if not key:
            return False
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, whichever fits: how long it takes says nothing about them.
        return sum(hmac.compare_digest(digest, known) for known in (*self._fixed, *self._from_file)) > 0

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() - self._checked_s < CHECK_EVERY_S:
            return
        with self._lock:
            try:
                mistakes = self._read(self._file)
            except OSError as error:  # a file that is away for a moment is no reason to lock everybody out
                log.warning("the present keys stay valid: %s cannot be read: %s", self._file, error.strerror)
            else:
                if mistakes:
                    log.error("only the other keys of %s are accepted; line %s: %s", self._file, mistakes, NO_KEY)

    def _read(self, file: Path) -> str:
        """Accept the keys that the file holds now, and no other; return the numbers of lines that hold none."""
        self._checked_s = time.monotonic()
        content = file.read_bytes()
        seen = hashlib.sha256(content).digest()
        if seen == self._seen:
            return ""
        lines = [line.strip() for line in content.removeprefix(codecs.BOM_UTF8).splitlines()]
        self._from_file, mistakes = _keys([b"" if line.startswith(b"#") else line for line in lines])
        self._seen = seen
        log.info("%d API keys in %s", len(self._from_file), file)
        return mistakes


def wants_keys(config: ServeConfig, *, is_public: bool, is_deployed: bool = False) -> bool:
    """Return whether requests shall need a key: replicas are told so, and refuse to start without one.

    Raises InputError for a service that anyone on the network could use without a key, unless serve.allow_public_without_key is
    set. `is_deployed` says that Ray Serve's own configuration has the address, so that advice about it is none.
    """
    if Keys(config.api_keys_env, config.api_keys_file).are_required:
        return True
    if not is_public or config.allow_public_without_key:
        return False
    if is_deployed:
        remedy = (
            f"under args.overrides set serve.api_keys_file=FILE, or serve.allow_public_without_key=true; or export "
            f"{config.api_keys_env} before `ray start` on every node"
        )
    else:
        remedy = (
            f"export {config.api_keys_env}, give serve.api_keys_file, serve on 127.0.0.1 without serve.grpc_port and by a Ray "
            "Serve of its own, or set serve.allow_public_without_key=true"
        )
    raise InputError(f"the service would answer the network without a key; {remedy}")


def is_public(config: ServeConfig) -> bool:
    """Return whether other machines can reach the service."""
    return config.grpc_port is not None or not is_loopback(config.host)


def _keys(lines: Sequence[bytes]) -> tuple[tuple[bytes, ...], str]:
    """Return the digests of the keys among `lines`, and the numbers of those that are none, from 1. Empty lines are neither."""
    found = {number: line for number, line in enumerate(lines, 1) if line}
    good = tuple(hashlib.sha256(line).digest() for line in found.values() if KEY.fullmatch(line))
    bad = [str(number) for number, line in found.items() if not KEY.fullmatch(line)]
    return good, ", ".join(bad[:5]) + (" and more" if len(bad) > 5 else "")
