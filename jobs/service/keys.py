"""API keys from an environment variable and a file, compared in constant time.

The file is read again when it changes, so keys rotate without a restart. Keeps digests only; knows nothing of requests.
"""

import hashlib
import hmac
import logging
import os
import socket
import threading
import time
from pathlib import Path

from jobs.config import ServeConfig
from refbert.errors import InputError
from vector_store.client import is_loopback

log = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""The file is checked for a change at most this often."""


class Keys:
    """The keys that are accepted now. Without keys in the variable and without a file, none is required.

    `are_wanted` is what the deployer decided: raises InputError where this process, whose environment may be another one, then
    finds none.
    """

    def __init__(self, variable: str, file: str | None, *, are_wanted: bool = False) -> None:
        self._fixed = _digests(os.environ.get(variable, "").replace(",", " "))
        self._file = Path(file) if file else None
        self._from_file: tuple[bytes, ...] = ()
        self._seen: tuple[int, int] | None = None
        self._checked_s = 0.0
        self._lock = threading.Lock()
        if self._file:
            try:
                self._read(self._file)
            except OSError as error:
                raise InputError(f"serve.api_keys_file={file} cannot be read: {error.strerror}") from None
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
                self._read(self._file)
            except OSError as error:  # a file that is away for a moment is no reason to lock everybody out
                log.warning("the present keys stay valid: %s cannot be read: %s", self._file, error.strerror)

    def _read(self, file: Path) -> None:
        self._checked_s = time.monotonic()
        state = file.stat()
        seen = state.st_mtime_ns, state.st_ino
        if seen != self._seen:
            self._from_file, self._seen = _digests(file.read_text()), seen
            log.info("%d API keys in %s", len(self._from_file), file)


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


def _digests(text: str) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.encode()).digest() for key in text.split())
