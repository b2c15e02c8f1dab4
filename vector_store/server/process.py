"""The life of the embedded server: start or attach, serve, end when unused.

One directory has one server, whoever starts it; three files in it arrange that:

    serve.lock     held exclusively by the serving process
    lease.lock     held shared by every user, for as long as it uses the store; the kernel lets go when a user dies
    address.json   where the last server listens (or listened: its port is tried first again)

The server looks about once a second whether it can hold the lease alone; once that has held for a while nobody uses
the store, and it flushes and ends, keeping the lease until it is gone so that nobody attaches to a server that is
leaving. A killed user therefore needs no clean-up, and neither does a killed server: the next start replays its log.
Knows nothing of points.
"""

import contextlib
import fcntl
import ipaddress
import json
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
from vector_store.server.files import import_path

log = logging.getLogger(__name__)

ALREADY_SERVED = 75
"""Exit code of a server that found its directory served; its starter attaches to the other one."""

START_S = 60.0
"""Replaying the log of a killed server under load is the slow case."""

POLL_S = 1.0
UNUSED_S = 2.0
FLUSH_S = 5.0
NUM_THREADS = 16
_KEY_VARIABLE = "VECTOR_STORE_SERVER_KEY"


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    message_bytes: int = MESSAGE_BYTES,
    until_unused: bool = False,
) -> None:
    """Serve the directory until SIGTERM or SIGINT, or, `until_unused`, until nobody holds its lease.

    Port 0 takes the previous port where it is free, else any. Blocks; call it in the main thread.
    """
    _require_key(host, api_key)
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / "serve.lock", fcntl.LOCK_EX) as alone:
        if not alone:
            raise AlreadyServed(
                f"{root} is already served, see {root / 'address.json'}; use that server or stop it first"
            )
        _serve_alone(root, host, port, api_key, message_bytes, until_unused)


@contextlib.contextmanager
def offline(path: str | Path) -> Iterator[Path]:
    """Hold the directory while no server runs on it, and yield it; StoreError where one does.

    Made if missing. A server that is started meanwhile refuses to serve it.
    """
    root = Path(path).absolute()
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / "serve.lock", fcntl.LOCK_EX) as alone:
        if not alone:
            raise StoreError(f"{root} is being served, see {root / 'address.json'}; end what uses it and try again")
        yield root


class AlreadyServed(StoreError):  # noqa: N818
    """Another process serves the directory."""


def _serve_alone(root: Path, host: str, port: int, api_key: str | None, message_bytes: int, until_unused: bool) -> None:
    # Imported here: the engine belongs to the serving process only, its users never load it.
    from qdrant_client import grpc as api

    from vector_store.server import gate
    from vector_store.server.catalogue import Catalogue
    from vector_store.server.index_build import keep_indexed
    from vector_store.server.refusal import Refusal
    from vector_store.server.servicers import Collections, Health, Points, SnapshotsService
    from vector_store.server.snapshots import Snapshots

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    try:
        catalogue = Catalogue(root)
    except Refusal as error:
        raise StoreError(f"cannot open {root}: {error}") from error
    instance = secrets.token_hex(8)
    health, collections, points = Health(instance), Collections(catalogue), Points(catalogue)
    snapshots = SnapshotsService(catalogue, Snapshots(root))
    implemented = (
        gate.methods("qdrant.Qdrant", health, api.QdrantServicer)
        | gate.methods("qdrant.Collections", collections, api.CollectionsServicer)
        | gate.methods("qdrant.Points", points, api.PointsServicer)
        | gate.methods("qdrant.Snapshots", snapshots, api.SnapshotsServicer)
    )
    server = grpc.server(
        ThreadPoolExecutor(NUM_THREADS),
        interceptors=[gate.Gate(frozenset(implemented), api_key)],
        options=[
            ("grpc.so_reuseport", 0),  # two servers on one port would share its callers
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", message_bytes),
        ],
    )
    api.add_QdrantServicer_to_server(health, server)
    api.add_CollectionsServicer_to_server(collections, server)
    api.add_PointsServicer_to_server(points, server)
    api.add_SnapshotsServicer_to_server(snapshots, server)
    bound = _bind(server, host, port, _read_address(root))
    indexing = threading.Thread(target=keep_indexed, args=(catalogue, stopping), daemon=True)
    indexing.start()
    server.start()
    _write_address(root, {"url": f"http://{host}:{bound}", "pid": os.getpid(), "instance": instance})
    log.info("serving %s on %s:%d", root, host, bound)

    with contextlib.ExitStack() as held:
        lease = held.enter_context(open(root / "lease.lock", "a"))
        unused_since: float | None = None
        flushed = time.monotonic()
        while not stopping.wait(POLL_S):
            now = time.monotonic()
            if now - flushed > FLUSH_S:
                flushed = now
                try:
                    catalogue.flush()
                except Refusal as error:  # a full disk, say: what is there can still be read
                    log.error("cannot flush %s, trying again: %s", root, error)
            if not until_unused:
                continue
            if not _try_lock(lease, fcntl.LOCK_EX):
                unused_since = None
                continue
            unused_since = unused_since or now
            if now - unused_since > UNUSED_S:
                break  # the lease stays locked until this process is gone
            fcntl.flock(lease, fcntl.LOCK_UN)
        stopping.set()
        server.stop(grace=5.0).wait()
        indexing.join()
        catalogue.close()
        log.info("stopped serving %s", root)


def _bind(server: grpc.Server, host: str, port: int, previous: dict[str, Any]) -> int:
    wanted = [port] if port else [int(previous["url"].rsplit(":", 1)[1])] if previous else []
    for candidate in [*wanted, *([] if port else [0])]:
        with contextlib.suppress(RuntimeError):
            return server.add_insecure_port(f"{host}:{candidate}")
    raise StoreError(f"cannot listen on {host}:{port}; is the address this machine's, and the port free?")


def _require_key(host: str, api_key: str | None) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not api_key:
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
) -> Iterator[str]:
    """Hold a lease on the directory's server, started if none serves it, and yield its `http://host:port`.

    The server is a process of its own: it outlives whoever started it while another user holds a lease, and ends
    a few seconds after the last one is gone, cleanly or not.
    """
    _require_key(host, api_key)
    root = Path(path).absolute()
    root.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + START_S
    with open(root / "lease.lock", "a") as lease:
        while not _try_lock(lease, fcntl.LOCK_SH):  # the server holds it while it leaves
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"the server of {root} has been stopping for {START_S:g} s; see {root}/server.log"
                )
            time.sleep(0.05)
        url = _answering_url(root) or _start(root, host, api_key, message_bytes, deadline)
        served_host = url.removeprefix("http://").rsplit(":", 1)[0]
        if served_host != host:
            raise StoreError(
                f"{root} is already served on {served_host}, this run wants {host}; "
                "end the runs that use it, or use the same host"
            )
        yield url


def _start(root: Path, host: str, api_key: str | None, message_bytes: int, deadline: float) -> str:
    command = [sys.executable, "-m", "vector_store", "serve", str(root), "--host", host, "--until-unused"]
    command += ["--message-bytes", str(message_bytes)]
    command += ["--api-key-env", _KEY_VARIABLE]
    environment = {**os.environ, "PYTHONPATH": import_path(), _KEY_VARIABLE: api_key or ""}
    with open(root / "server.log", "ab") as output:
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
        if url := _answering_url(root):
            return url
        if process.returncode not in (None, 0, ALREADY_SERVED):
            ended = f"signal {-process.returncode}" if process.returncode < 0 else f"code {process.returncode}"
            raise StoreUnavailable(
                f"the server of {root} did not start, it ended with {ended}:\n{_last_lines(root / 'server.log')}"
            )
        time.sleep(0.05)
    raise StoreUnavailable(
        f"the server of {root} did not answer within {START_S:g} s:\n{_last_lines(root / 'server.log')}"
    )


def _last_lines(path: Path, num_lines: int = 10) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])


def _answering_url(root: Path) -> str | None:
    """The URL of the live server of this directory, None where there is none or a stranger has its old port."""
    address = _read_address(root)
    if not address:
        return None
    host, port = address["url"].removeprefix("http://").rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()  # far faster than gRPC to see nobody there
    except OSError:
        return None
    from qdrant_client import grpc as api

    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = api.QdrantStub(channel).HealthCheck(api.HealthCheckRequest(), timeout=5.0)
        except grpc.RpcError:
            return None
    return address["url"] if reply.commit == address["instance"] else None


def _read_address(root: Path) -> dict[str, Any]:
    try:
        return json.loads((root / "address.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write_address(root: Path, address: dict[str, Any]) -> None:
    draft = root / "address.json.new"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(address, file)
    os.replace(draft, root / "address.json")


def _try_lock(file: Any, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _lock(path: Path, kind: int) -> Iterator[bool]:
    """Hold a lock on `path`; yields False where another process has it."""
    with open(path, "a") as file:
        yield _try_lock(file, kind)
