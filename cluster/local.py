"""A cluster on one machine: start, inspect and stop a Ray head, Ray worker nodes and the embedded store together.

The cluster's parts are recorded in $REFBERT_HOME/cluster.json; whether they run is read from the processes. Every part runs
with this Python, in this repository; Ray asks for its token, the store for its key. With a loopback address nothing listens
beyond loopback; with another one Ray's servers listen on every interface, and Ray's metrics ask for no token.
"""

import hashlib
import ipaddress
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.processes import MARK, marked, runs, stop
from jobs.run.mutual_tls import LOOPBACK, TLS_VARIABLES, tls_environment
from jobs.run.ports import free_ports, require_own
from jobs.run.session import NODE_ENVIRONMENT, make_session_folder, make_token_private, remove_session_folder
from refbert.errors import InputError, UnavailableError
from vector_store.atomic import write_whole
from vector_store.server.access import identity, make_private, private, with_directory

REPOSITORY = Path(__file__).resolve().parents[1]
STATE = "cluster.json"
HEAD, STORE = "head", "store"
STORE_KEY = "QDRANT_API_KEY"
STORE_URL = "REFBERT_STORE_URL"
"""URL of the store for jobs on this cluster whose config says `embedded`."""

NODES_SERVER = "gcs_server"
"""Ray's server that nodes are connected to: after a SIGTERM ray 2.60's never ends while one was connected when it came."""

STORE_START_S = 60.0
OBJECT_STORE_SHARE = 0.2
"""Share of the machine's memory for all nodes together; Ray's default is 0.3 for each node."""


@dataclass(frozen=True)
class Cluster:
    """The options of `up` and the resulting addresses: `address` of Ray's dashboard and job server, `gcs` that nodes join."""

    id: str
    host: str
    address: str
    gcs: str
    temp_dir: str
    workers: tuple[str, ...]
    cpus_per_worker: int
    gpus_per_worker: int
    head_cpus: int
    store_url: str | None
    home: str = ""
    """Identity of the home that the cluster was started under: the file of a copied home names another one's cluster."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of all parts."""
        return (HEAD, *self.workers, *((STORE,) if self.store_url else ()))

    def living(self) -> dict[str, list[int]]:
        """Process ids of the parts that run: a node without its raylet, or a head without its GCS, does not."""
        needs = {HEAD: ("raylet/raylet", "gcs_server"), STORE: ("vector_store",)}
        found = marked(self.id)
        return {
            part: pids
            for part, pids in found.items()
            if all(runs(pids, name) for name in needs.get(part, ("raylet/raylet",)))
        }


def home() -> Path:
    """$REFBERT_HOME, by default the current directory, as for jobs."""
    return Path(os.environ.get("REFBERT_HOME", ".")).expanduser().absolute()


def known_cluster() -> Cluster | None:
    """The cluster that was started under this home, running or not; None where there is none."""
    file = home() / STATE
    try:
        saved = json.loads(file.read_text())
        cluster = Cluster(**{**saved, "workers": tuple(saved["workers"])})
        return cluster if cluster.home in ("", identity(home())) else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}); stop its processes by hand and delete it") from None


def start(
    workers: int,
    cpus_per_worker: int | None,
    gpus_per_worker: int,
    head_cpus: int,
    host: str,
    dashboard_port: int,
    store: bool,
) -> tuple[Cluster, list[str]]:
    """Start the missing parts, and return the cluster with the names of the parts that were started.

    InputError where the cluster has another host or number of workers, or the store would be reachable without a key.
    """
    _check_host(host, store)
    cluster = known_cluster()
    if cluster and HEAD not in cluster.living():
        halt(cluster)  # nodes without their head are of no use
        cluster = None
    if cluster is None:
        home().mkdir(parents=True, exist_ok=True)  # which its identity needs
        (gcs_port,) = free_ports(1, host)
        cluster_id = hashlib.sha256(f"{home()} {time.time_ns()}".encode()).hexdigest()[:12]
        cluster = Cluster(
            id=cluster_id,
            host=host,
            address=f"http://{host}:{dashboard_port or free_ports(1, host)[0]}",
            gcs=f"{host}:{gcs_port}",
            temp_dir=str(make_session_folder()),
            workers=tuple(f"worker-{number + 1}" for number in range(workers)),
            cpus_per_worker=cpus_per_worker or max(1, (os.cpu_count() or 1) // workers),
            gpus_per_worker=gpus_per_worker,
            head_cpus=head_cpus,
            store_url=f"http://{host}:{free_ports(1, host)[0]}" if store else None,
            home=identity(home()),
        )
    elif cluster.host != host:
        raise InputError(
            f"the cluster of {home()} listens on {cluster.host}, not on {host}; run `python -m cluster down` first"
        )
    elif len(cluster.workers) != workers:
        raise InputError(
            f"the cluster of {home()} has {len(cluster.workers)} workers, not {workers}; run `python -m cluster down` first"
        )
    _write_state(cluster)
    missing = [part for part in cluster.parts if part not in cluster.living()]
    if HEAD in missing:
        make_token_private()
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"],
            env=_environment(cluster, "token"), check=True, capture_output=True,
        )  # fmt: skip
    for part in missing:
        stop(cluster.id, part, last=NODES_SERVER)  # remaining processes of a broken part
        _start_store(cluster) if part == STORE else _start_node(cluster, part)
        if part == HEAD:
            _require_own_ports(cluster)
    return cluster, missing


def halt(cluster: Cluster) -> int:
    """Stop every part, the store first so that it can flush; return the number of processes."""
    stopped = stop(cluster.id, STORE) + stop(cluster.id, last=NODES_SERVER)
    remove_session_folder(Path(cluster.temp_dir))
    (home() / STATE).unlink(missing_ok=True)
    return stopped


def _start_node(cluster: Cluster, part: str) -> None:
    nodes = 1 + len(cluster.workers)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    options = {
        "node-ip-address": cluster.host,
        "num-cpus": cluster.head_cpus if part == HEAD else cluster.cpus_per_worker,
        "num-gpus": 0 if part == HEAD else cluster.gpus_per_worker,
        "object-store-memory": max(100 * 2**20, int(memory * OBJECT_STORE_SHARE / nodes)),
        # An agent takes a free port and reports it: one that is in the arguments could be another user's by then.
        "dashboard-agent-listen-port": 0,
        "dashboard-agent-grpc-port": 0,
        "metrics-export-port": 0,
        "runtime-env-agent-port": 0,
    }
    if part == HEAD:
        _, _, port = cluster.address.rpartition(":")
        options |= {
            "port": cluster.gcs.rpartition(":")[2],
            "dashboard-host": cluster.host,
            "dashboard-port": port,
            "ray-client-server-port": free_ports(1, cluster.host)[0],
            "temp-dir": cluster.temp_dir,
        }
    else:
        options["address"] = cluster.gcs
    words = [sys.executable, "-m", "cluster.ray_command", "start", "--disable-usage-stats", "--log-style=record"]
    words += ["--head"] if part == HEAD else []
    words += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        words, env=_environment(cluster, part), cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UnavailableError(f"Ray's {part} did not start: {' '.join(said[-3:])}; its logs are in {cluster.temp_dir}")


def _require_own_ports(cluster: Cluster) -> None:
    """Stop all and raise UnavailableError where another user listens at the head's ports: clients send Ray's token there.

    The ports are in the head's arguments, which everybody may read, some seconds before it listens.
    """
    try:
        for address in (cluster.gcs, cluster.address):
            require_own(address, "where the cluster was to; run `python -m cluster up` again")
    except UnavailableError:
        halt(cluster)
        raise


def _start_store(cluster: Cluster) -> None:
    from vector_store.server.process import answering_url  # with gRPC, which `--help` need not wait for

    assert cluster.store_url
    directory = home() / "store"
    make_private(directory)
    port = cluster.store_url.rpartition(":")[2]
    words = [sys.executable, "-m", "vector_store", "serve", str(directory), "--host", cluster.host, "--port", port]
    with open(directory / "server.log", "ab", opener=private) as output:
        process = subprocess.Popen(
            [*words, "--api-key-env", STORE_KEY], env=_environment(cluster, STORE), cwd=REPOSITORY,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + STORE_START_S
    while time.monotonic() < deadline and process.poll() is None:
        if answering_url(directory) == cluster.store_url:  # and not whoever took the port before
            return
        time.sleep(0.1)
    last = (directory / "server.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise UnavailableError(
        f"the store of {directory} did not start: {' '.join(last)}; stop other users of it, or give --no-store"
    )


def _environment(cluster: Cluster, part: str) -> dict[str, str]:
    """Environment of a part's processes: their mark, Ray's token and key, this Python first, home's and store's paths."""
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    packages = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    is_local = cluster.host == LOOPBACK  # elsewhere nodes of other machines may join
    left_out = ("RAY_ADDRESS", STORE_URL, *(TLS_VARIABLES if is_local else ()))
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    ours: dict[str, Any] = {
        MARK: f"{cluster.id}/{part}",
        "PATH": os.pathsep.join(filter(None, path)),
        "PYTHONPATH": os.pathsep.join(filter(None, packages)),
        "REFBERT_HOME": str(home()),
        **({STORE_URL: with_directory(cluster.store_url, home() / "store")} if cluster.store_url else {}),
    }
    tls = tls_environment() if is_local else {}
    return {**NODE_ENVIRONMENT, **inherited, **ours, **tls, "RAY_AUTH_MODE": "token"}


def _check_host(host: str, store: bool) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InputError(f"--host={host} is no IP address; give one of this machine, such as 127.0.0.1") from None
    if loopback and host != LOOPBACK:
        raise InputError(
            f"--host={host}: Ray knows {LOOPBACK} only as loopback; give that, or another address of this machine"
        )
    if not loopback and store and not os.environ.get(STORE_KEY):
        raise InputError(
            f"--host={host} lets other machines reach the store, and ${STORE_KEY} holds no key for it; set one, or give "
            "--no-store"
        )


def _write_state(cluster: Cluster) -> None:
    file = home() / STATE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(asdict(cluster), indent=2), mode=0o600)  # it names ports that are not taken yet
