"""Lifecycle of the embedded server: start it or attach to it, serve, stop it when unused, keep it away (`offline`).

A directory has at most one server, whoever starts it. Four files in the directory say who serves and who uses it:

    serve.lock     locked exclusively by the serving process
    lease.lock     locked shared by whoever is inside `embedded_server`; the kernel unlocks it when that process dies
    address.json   where the last server listens or listened (the next one tries the same port first; see `address`)
    key            what a call needs (see `access`)

About once a second a server that `embedded_server` started tries to lock the lease exclusively. Where that succeeds for
UNUSED_S, nobody holds it: the server flushes and ends, and keeps the lease locked until then, so that nobody attaches to a
server that is stopping. A client that only knows the URL holds no lease. A server that a user starts goes on until SIGTERM or
SIGINT, unless told `until_unused`. A killed user therefore needs no clean-up, and neither does a killed server: the next start
replays its log. Reads and writes no points itself.
"""

import contextlib
import fcntl
import importlib.util
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from vector_store.config import MESSAGE_BYTES
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.nodes import is_loopback
from vector_store.server.access import (
    KEY_FILE,
    identity,
    make_key,
    make_private,
    private,
    private_files,
    with_directory,
)
from vector_store.server.address import ADDRESS_FILE, read_address, remove_socket, socket_path, write_address
from vector_store.server.files import import_path

log = logging.getLogger(__name__)

ALREADY_SERVED = 75
"""Exit code where another server serves the directory; the process that started this one attaches to the other."""

SHELL_SIGNALLED = 128
"""A shell's exit code for a command that a signal ended is this plus the signal's number."""

START_S = 60.0
"""Longest wait for a server to start or to stop; replaying the log of a server that was killed under load takes longest."""

SERVE_LOCK = "serve.lock"
"""Locked by a directory's server for as long as it runs."""

PROBED_S = 1.0
"""A lock that is held for longer is a server's; a client that looks whether there is one holds it for a moment."""

POLL_S = 1.0
UNUSED_S = 2.0
FLUSH_S = 5.0
NUM_THREADS = 16

REST_PACKAGES = ("starlette", "uvicorn")
_KEY_VARIABLE = "VECTOR_STORE_SERVER_KEY"


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    message_bytes: int = MESSAGE_BYTES,
    until_unused: bool = False,
    rest_port: int | None = None,
) -> None:
    """Serve the directory until SIGTERM or SIGINT or, with `until_unused`, until nobody holds its lease.

    Every call needs a key: the directory's own, which its owner finds in it, or `api_key`.
    `port` is gRPC's; with a `rest_port` there is Qdrant's REST API, too. Port 0 is the previous port where that is free, else
    any. Blocks; call it in the main thread. AlreadyServed where another process serves the directory, StoreError where it
    cannot listen, would listen off loopback without a key, or lacks the packages for REST.
    """
    _require_key(host, api_key)
    if rest_port is not None:
        require_rest()
    root = Path(path)
    make_private(root)
    with _lock(root / SERVE_LOCK, fcntl.LOCK_EX, PROBED_S) as alone, private_files():
        if not alone:
            raise AlreadyServed(
                f"{root} is already served, see {root / ADDRESS_FILE}; use that server or stop it first"
            )
        _serve_alone(root, host, port, api_key, message_bytes, until_unused, rest_port)


@contextlib.contextmanager
def offline(path: str | Path) -> Iterator[Path]:
    """Lock the directory against servers and yield its path; StoreError where a server runs.

    The directory is created if missing. A server that is started inside the block refuses to serve it.
    """
    root = Path(path).absolute()
    make_private(root)
    with _lock(root / SERVE_LOCK, fcntl.LOCK_EX, PROBED_S) as alone:
        if not alone:
            raise StoreError(f"{root} is being served, see {root / ADDRESS_FILE}; stop its users and try again")
        yield root


class AlreadyServed(StoreError):  # noqa: N818
    """Another process serves the directory."""


def require_rest() -> None:
    """StoreUnavailable where the packages of the REST port are not installed."""
    missing = [name for name in REST_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise StoreUnavailable(
            f"the REST port needs {' and '.join(missing)}, not installed: pip install 'refbert[rest]', or leave "
            "the REST port out"
        )


def _serve_alone(
    root: Path, host: str, port: int, api_key: str | None, message_bytes: int, until_unused: bool, rest_port: int | None
) -> None:
    previous, instance = read_address(root), secrets.token_hex(8)
    if previous:  # until this server says where it listens, what has the previous port cannot be taken for it
        write_address(root, {**previous, "pid": os.getpid(), "instance": instance})
    listener = None if rest_port is None else _bound(host, rest_port, previous.get("rest"))

    # Imported here, so that only the serving process loads the engine.
    from vector_store.protocol import api
    from vector_store.server.catalogue import Catalogue
    from vector_store.server.index_build import keep_indexed
    from vector_store.server.interceptor import CallInterceptor, methods
    from vector_store.server.servicers import Collections, Health, Points, SnapshotsService
    from vector_store.server.snapshots import Snapshots
    from vector_store.server.status import StatusError

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    try:
        catalogue = Catalogue(root)
    except StatusError as error:
        raise StoreError(f"cannot open {root}: {error}") from error
    health = Health(_commit(instance, root))
    collections, points = Collections(catalogue), Points(catalogue)
    keys = [key for key in (make_key(root), api_key) if key]
    if root.stat().st_mode & 0o077:
        log.warning("%s is open to other users of this machine, who may read the memory: chmod 700 it", root)
    snapshots = SnapshotsService(catalogue, Snapshots(root))
    implemented = (
        methods("qdrant.Qdrant", health, api.QdrantServicer)
        | methods("qdrant.Collections", collections, api.CollectionsServicer)
        | methods("qdrant.Points", points, api.PointsServicer)
        | methods("qdrant.Snapshots", snapshots, api.SnapshotsServicer)
    )
    rest = None
    if listener:
        from vector_store.server.rest import RestServer, rest_app

        rest = RestServer(rest_app(implemented, keys, message_bytes, NUM_THREADS), listener)
    server = grpc.server(
        ThreadPoolExecutor(NUM_THREADS),
        interceptors=[CallInterceptor(frozenset(implemented), keys)],
        options=[
            ("grpc.so_reuseport", 0),  # two servers on one port would each get some of the calls
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", message_bytes),
        ],
    )
    api.add_QdrantServicer_to_server(health, server)
    api.add_CollectionsServicer_to_server(collections, server)
    api.add_PointsServicer_to_server(points, server)
    api.add_SnapshotsServicer_to_server(snapshots, server)
    bound = _bind(server, host, port, previous)
    private_socket = _bind_socket(server, root)
    indexing = threading.Thread(target=keep_indexed, args=(catalogue, stopping), daemon=True)
    indexing.start()
    server.start()
    address = {"url": f"http://{host}:{bound}", "pid": os.getpid(), "instance": instance}
    if private_socket:
        address["socket"] = str(private_socket)
    if rest and listener:
        rest.start()
        address["rest"] = f"http://{host}:{listener.getsockname()[1]}"
    write_address(root, address)
    rest_at = address.get("rest", "off")
    log.info("serving %s on %s:%d (gRPC), REST %s; clients' key: %s", root, host, bound, rest_at, root / KEY_FILE)

    with contextlib.ExitStack() as held:
        lease = held.enter_context(open(root / "lease.lock", "a", opener=private))
        unused_since: float | None = None
        flushed = time.monotonic()
        while not stopping.wait(POLL_S):
            now = time.monotonic()
            if now - flushed > FLUSH_S:
                flushed = now
                try:
                    catalogue.flush()
                except StatusError as error:  # such as a full disk: what is stored can still be read
                    log.error("cannot flush %s, trying again: %s", root, error)
            if not until_unused:
                continue
            if not _try_lock(lease, fcntl.LOCK_EX):
                unused_since = None
                continue
            unused_since = unused_since or now
            if now - unused_since > UNUSED_S:
                break  # the lease stays locked until this process has ended
            fcntl.flock(lease, fcntl.LOCK_UN)
        stopping.set()
        if rest:
            rest.stop()
        server.stop(grace=5.0).wait()
        indexing.join()
        catalogue.close()
        if private_socket and unused_since:
            remove_socket(private_socket)
        log.info("stopped serving %s", root)


def _bind(server: grpc.Server, host: str, port: int, previous: dict[str, Any]) -> int:
    wanted = [port] if port else [int(previous["url"].rsplit(":", 1)[1])] if previous else []
    for candidate in [*wanted, *([] if port else [0])]:
        with contextlib.suppress(RuntimeError):
            return server.add_insecure_port(f"{host}:{candidate}")
    raise StoreError(f"cannot listen on {host}:{port}; give an address of this machine and a free port")


def _bind_socket(server: grpc.Server, root: Path) -> Path | None:
    """Listen at a Unix socket as well, and return its path; None, with a warning, where none can be made."""
    path = socket_path(root)
    with contextlib.suppress(RuntimeError):
        if path and server.add_insecure_port(f"unix:{path}"):
            return path
    log.warning(
        "no Unix socket can be made for %s: its clients send the key to the port, which is anybody's on this machine once the "
        "server has ended", root,
    )  # fmt: skip
    return None


def _bound(host: str, port: int, previous: str | None) -> socket.socket:
    """A socket at the REST port that does not listen yet: `port`, or for 0 that of the `previous` URL where it is free."""
    wanted = [port] if port else [int(previous.rsplit(":", 1)[1]), 0] if previous else [0]
    for candidate in wanted:
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart takes the port of before
            listener.bind((host, candidate))
        except (OSError, OverflowError):
            listener.close()
        else:
            return listener
    raise StoreError(f"cannot listen on {host}:{port} for REST; give an address of this machine and a free port")


def _require_key(host: str, api_key: str | None) -> None:
    if not is_loopback(host) and not api_key:
        raise StoreError(
            f"refusing to serve on {host} without an API key: other machines could read and delete the store; "
            "give a key or serve on 127.0.0.1"
        )


@contextlib.contextmanager
def embedded_server(
    path: str | Path,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    message_bytes: int = MESSAGE_BYTES,
    rest_port: int | None = None,
) -> Iterator[str]:
    """Hold a lease on the directory's server and yield its `http://host:port#DIRECTORY`; the server is started if none runs.

    `client.connect` finds the directory's key and socket there. Off loopback, where every client has the `api_key`, the URL
    names no directory.
    The server is a separate process. It outlives the process that started it while another user holds a lease, and ends a few
    seconds after the last user has ended, cleanly or not. With a `rest_port` it is started with that port for REST; one that
    runs without it is used as it is, with a warning. StoreUnavailable where it does not start, StoreError where it runs on
    another host.
    """
    _require_key(host, api_key)
    if rest_port is not None:
        require_rest()
    root = Path(path).absolute()
    make_private(root)
    deadline = time.monotonic() + START_S
    with open(root / "lease.lock", "a", opener=private) as lease:
        while not _try_lock(lease, fcntl.LOCK_SH):  # a server that is stopping holds it
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"the server of {root} has been stopping for {START_S:g} s; see {root}/server.log"
                )
            time.sleep(0.05)
        url = answering_url(root) or _start(root, host, api_key, message_bytes, rest_port, deadline)
        served_host = url.removeprefix("http://").rsplit(":", 1)[0]
        if served_host != host:
            raise StoreError(
                f"{root} is already served on {served_host}, this run wants {host}; "
                "stop the runs that use it, or use the same host"
            )
        if rest_port is not None:
            _compare_rest(root, rest_port)
        yield with_directory(url, root) if is_loopback(host) else url


def rest_url(path: str | Path) -> str | None:
    """Where the directory's last server answered REST; None where it did not."""
    return read_address(Path(path)).get("rest")


def _compare_rest(root: Path, rest_port: int) -> None:
    served = rest_url(root)
    if served is None or rest_port not in (0, int(served.rsplit(":", 1)[1])):
        log.warning(
            "%s is already served, REST %s, and this run wants REST on %s port: it goes on as it is; stop the users of "
            "the store to have it served otherwise", root, f"on {served}" if served else "off", rest_port or "any",
        )  # fmt: skip


def _start(
    root: Path, host: str, api_key: str | None, message_bytes: int, rest_port: int | None, deadline: float
) -> str:
    # -P: what lies in a store that somebody else has made is not imported.
    command = [sys.executable, "-P", "-m", "vector_store", "serve", str(root), "--host", host, "--until-unused"]
    command += ["--message-bytes", str(message_bytes)]
    command += ["--api-key-env", _KEY_VARIABLE]
    if rest_port is not None:
        command += ["--rest-port", str(rest_port)]
    # Not as a child: Ray kills the children of a worker that ends, and others may use this server then.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    environment = {**os.environ, "PYTHONPATH": import_path(), _KEY_VARIABLE: api_key or ""}
    with open(root / "server.log", "ab", opener=private) as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # no zombie when it ends before this process
    while time.monotonic() < deadline:
        if url := answering_url(root):
            return url
        if process.returncode not in (None, 0, ALREADY_SERVED):
            signalled = process.returncode - SHELL_SIGNALLED
            ended = f"signal {signalled}" if signalled > 0 else f"code {process.returncode}"
            raise StoreUnavailable(
                f"the server of {root} did not start, it ended with {ended}:\n{_last_lines(root / 'server.log')}"
            )
        time.sleep(0.05)
    if process.returncode == ALREADY_SERVED:
        raise StoreUnavailable(
            f"{root} is locked by a server that does not answer as this directory's, within {START_S:g} s: it was moved while "
            "it was served, or is being served under another path; stop the users of the other path"
        )
    raise StoreUnavailable(
        f"the server of {root} did not answer within {START_S:g} s:\n{_last_lines(root / 'server.log')}"
    )


def _last_lines(path: Path, num_lines: int = 10) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])


def answering_url(root: Path) -> str | None:
    """URL of the directory's running server; None where there is none, or another server has its old port.

    Whatever has that port might show what a health check showed before, and would be sent the key: so the lock that only a
    running server holds is looked at first.
    """
    address = read_address(root)
    if not address:
        return None
    with _lock(root / SERVE_LOCK, fcntl.LOCK_SH) as is_free:
        if is_free:
            return None
    host, port = address["url"].removeprefix("http://").rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()  # fails far sooner than gRPC
    except OSError:
        return None
    from vector_store.protocol import api

    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = api.QdrantStub(channel).HealthCheck(api.HealthCheckRequest(), timeout=5.0)
        except grpc.RpcError:
            return None
    return address["url"] if reply.commit == _commit(address["instance"], root) else None


def _commit(instance: str, root: Path) -> str:
    """How a server identifies itself: which start of which directory's server this is. A copy of address.json names another."""
    return f"{instance}-{identity(root)}"


def _try_lock(file: Any, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _lock(path: Path, kind: int, within_s: float = 0.0) -> Iterator[bool]:
    """Lock `path` and yield True, or False where another process holds the lock for longer."""
    deadline = time.monotonic() + within_s
    with open(path, "a", opener=private) as file:
        while not (is_locked := _try_lock(file, kind)) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield is_locked
