"""A Ray session for one job: the running cluster that RAY_ADDRESS names, or a Ray of its own on this machine.

`ray job submit` sets RAY_ADDRESS for the job it starts. Without RAY_ADDRESS a job never joins a cluster by accident: the job
starts a local Ray, which ends with it. What Ray Data, Serve and Train log below errors is silenced: a job prints its own
progress.
"""

import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from jobs.run.mutual_tls import LOOPBACK, SWITCH, asks_for_our_key, tls_environment
from jobs.run.ports import require_own
from refbert.errors import UnavailableError

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints once, not twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # asks a dashboard that a local Ray does not run
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # an end or a failure is seen at the next check; the default is 2 s
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # a worker that does not answer counts as dead; the default is 600
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # then it looks again how many there is room for; the default is 60
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # a replica's own code never blocks: a quarter more single texts
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jobs.service.proxy.of_one_service",  # a lost replica is 503, not 500
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": "67108864",  # bytes; of Ray's own 2 GiB all are read before their size counts
    # A busy machine starts processes slowly: Ray gives a node and its agents 30 s, a worker 60 s, a proxy 5 s.
    # What starts a node has 30 s of its own: see `wait_for_slow_nodes`.
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_gcs_server_port_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a proxy that is gone is replaced after three; Ray's own is 10 s
    "RAY_worker_niceness": "0",  # at Ray's own 15, workers hardly run beside a busy process
    "OMP_WAIT_POLICY": "PASSIVE",  # threads sleep while they wait for each other; spinning ones, beside a busy
    "GOMP_SPINCOUNT": "0",  # process, each wait for one that has no core: up to seven times as long
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",  # workers fork; their threads are counted elsewhere
}

NODE_ENVIRONMENT = {
    **ENVIRONMENT,
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jobs.service.proxy.middlewares",  # others may be deployed beside ours
    # A node whose link is cut counts as dead after 5 x (3 + 5) s; with Ray's own 10 s it takes more than a minute.
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
}
"""What `ray start` is to see: the above, and how soon a head notices that a node has gone silent."""

NETWORK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0 Ray's processes listen on 127.0.0.1 alone. Ray means it for systems whose firewalls ask about every listener; whatever
address it is told else, Ray 2.60 takes the machine's external one and listens on every interface."""

PASSED_ON = ("REFBERT_HOME", "REFBERT_STORE_URL", "REFBERT_CACHE", "REFBERT_COMMIT", "HF_HOME", "HF_HUB_OFFLINE")
"""What workers must see as the driver does. Secrets are not among them: export those where `ray start` runs."""

NODE_START_S, ASK_AGAIN_S = 90.0, 0.1
"""How long a node that this process starts may take to register, and how often that is asked."""

HOST_AND_PORT = r"[^/]+:\d+"
"""An address of a head, and neither `auto` nor `ray://...`."""

ANSWER_S, WATCH_S, SILENCE_S = 5.0, 0.5, 60.0
"""How long Ray's head may take to accept a connection, how often that is seen to while it is needed, and how long it may say
nothing to who wants to know whether it is this user's."""

SHOWN_CHARACTERS = 300
"""Of what Ray says as it does not start."""

TOKEN, TOKEN_VARIABLES = Path(".ray") / "auth_token", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Where Ray keeps the token that its callers must show, below the user's home, and what names another."""

LONGEST_BASE = 24
"""Bytes of the path of the folder for temporary files, at most, that leave room for Ray's sockets: 80 more, of 107 in all."""

SESSION_PREFIX = "ray-"
"""The names of the folders that `make_session_folder` makes begin so."""

RAY = "ray._raylet"
"""The module that reads Ray's variables."""

CHECKOUT = str(Path(__file__).resolve().parents[2])


def set_environment() -> None:
    """Set what Ray reads as it is imported, where it is not set. To be called before any import of Ray.

    A Ray that this process starts, since RAY_ADDRESS names none, listens on loopback alone and wants to see this user's key.
    One that RAY_ADDRESS names is shown the key if it wants it. After Ray's import it is too late for either.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault(NETWORK_VARIABLE, "0")
    if SWITCH in os.environ or RAY in sys.modules:
        return  # another's certificates, or set before; or too late: Ray 2.60 keeps what it has read at its import
    if _wants_our_key(address) if address else os.environ[NETWORK_VARIABLE] == "0":
        os.environ |= {**tls_environment(), NETWORK_VARIABLE: "0"}  # else Ray takes another address than 127.0.0.1
        if address:
            os.environ.setdefault("RAY_AUTH_MODE", "token")


def make_token_private() -> None:
    """Make the token of this user's Rays, or what there is, readable by this user alone.

    Ray 2.60 makes it at its first start, readable by all: another user of the machine who may enter the home could run code as
    this one. A token that the environment names is left as it is.
    """
    if any(os.environ.get(name) for name in TOKEN_VARIABLES):
        return
    path = Path.home() / TOKEN
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            descriptor, draft = tempfile.mkstemp(dir=path.parent)  # for its owner alone
            with open(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            with suppress(FileExistsError):  # another job was first
                os.link(draft, path)
            os.unlink(draft)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
            log.info(
                "%s was readable by other users of this machine, who could run code as you: it is not any more, but who has "
                "read it still can; delete it when none of your Rays runs, and a new one is made",
                path,
            )
    except OSError as error:
        log.warning(
            "cannot make %s private (%s): other users of this machine may run code as you", path, error.strerror
        )


def make_session_folder() -> Path:
    """Make a place for a Ray's session, below a folder that no other user of the machine may enter.

    Ray 2.60 lets every user write into its session, in /tmp/ray by default: where a job's code is unpacked, and where its
    processes listen. Ray itself makes the place that is returned, and opens it to all. Its path is short, as sockets' must be.
    """
    base = tempfile.gettempdir()
    short = base if len(os.fsencode(base)) <= LONGEST_BASE else "/tmp"
    return Path(tempfile.mkdtemp(prefix=SESSION_PREFIX, dir=short)) / "r"


def remove_session_folder(session: Path) -> None:
    """Remove a Ray's session, and the folder that `make_session_folder` has made above it."""
    shutil.rmtree(session, ignore_errors=True)
    if session.parent.name.startswith(SESSION_PREFIX):  # a cluster of an earlier release has none
        with suppress(OSError):
            session.parent.rmdir()


def wait_for_slow_nodes() -> None:
    """Have this process wait NODE_START_S for a node that it starts, and leave it the cores meanwhile.

    Ray 2.60 gives up after 30 s whatever its environment says, and until then asks without a pause (`Node.__init__`).
    """
    from ray._private import services

    services.get_node = _once_registered(services.get_node)


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect, or start a local Ray with one logical CPU per core and at least two; leave or stop it in the end.

    Raises UnavailableError where Ray does not start, or does not answer.
    """
    set_environment()
    import ray  # after its environment is set: it is read at import
    from ray.data import DataContext

    # RAY_ADDRESS too: on a machine with several Rays, the actors of Ray Train would not know which one is theirs.
    passed_on = {name: os.environ[name] for name in (*PASSED_ON, "RAY_ADDRESS") if name in os.environ}
    # What the submission has set already reaches the workers, and Ray refuses to have it set twice.
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {})
    if "working_dir" not in submitted:  # else Ray has put the job's copy of the checkout on the workers' path
        passed_on["PYTHONPATH"] = os.pathsep.join(filter(None, [CHECKOUT, os.environ.get("PYTHONPATH")]))
    job = submitted.get("env_vars", {})
    variables = {name: value for name, value in {**ENVIRONMENT, **passed_on}.items() if name not in job}
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": variables, "worker_process_setup_hook": "jobs.run.session.quiet_ray"},
    }
    with ExitStack() as left_behind:
        if address := os.environ.get("RAY_ADDRESS"):
            with _one_line(
                f"cannot join the Ray cluster at {address}", "see that it runs (`ray status`), or unset RAY_ADDRESS"
            ):
                if re.fullmatch(HOST_AND_PORT, address):
                    _require_no_stranger(address)
                    _connect(address)  # Ray asks a head that is not there for minutes, in lines of its own
                ray.init(**options)
            log.info("joined the Ray cluster at %s", address)
        else:
            options |= {"address": "local", "num_cpus": max(2, os.cpu_count() or 2), "include_dashboard": False}
            wait_for_slow_nodes()
            make_token_private()
            session = make_session_folder()
            left_behind.callback(remove_session_folder, session)
            with _one_line(
                "Ray did not start on this machine", "is it very busy, or full? Start the same command again"
            ):
                ray.init(_temp_dir=str(session), **options)
            log.info("started a local Ray with %d CPUs", options["num_cpus"])
        quiet_ray()
        data = DataContext.get_current()
        data.enable_progress_bars = False
        data.print_on_execution_start = False
        try:
            yield
        finally:
            if not ray_has_gone():
                ray.shutdown()


def _wants_our_key(address: str) -> bool:
    """Whether a head is one that `cluster up`, or a job of this user's, has started on this machine.

    Raises UnavailableError where it says nothing: without the key Ray would tell whoever it is more than it should.
    """
    host, _, port = address.rpartition(":")
    if host != LOOPBACK or not re.fullmatch(HOST_AND_PORT, address):
        return False
    try:
        return asks_for_our_key(host, int(port), SILENCE_S)
    except TimeoutError:
        raise UnavailableError(
            f"the Ray head at {address} says nothing for {SILENCE_S:g} s; is the machine very busy? Start the same command "
            "again"
        ) from None


def _require_no_stranger(address: str) -> None:
    """Raise UnavailableError where an address is on loopback and another user of this machine listens at its port.

    At any address of the machine: in the clear Ray takes another one than 127.0.0.1.
    """
    host, _, port = address.rpartition(":")
    if host in (LOOPBACK, "localhost", "[::1]") and SWITCH not in os.environ:
        require_own(f"0.0.0.0:{port}", f"which {address} may lead to; name the head that is yours in RAY_ADDRESS")


def _once_registered(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Return Ray's question for a node, asked again each ASK_AGAIN_S until the node has registered."""
    if hasattr(get_node, "__wrapped__"):
        return get_node

    @wraps(get_node)
    def patient(*whom: str) -> Any:
        deadline_s = time.monotonic() + NODE_START_S
        while True:
            try:
                return get_node(*whom)
            except RuntimeError:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(ASK_AGAIN_S)

    return patient


def ray_has_gone() -> bool:
    """Whether this process is joined to a Ray whose head accepts no connection any more.

    A SIGTERM to a whole group of processes ends Ray's own beside the job. What then asks Ray waits for a minute, and Ray ends
    the process.
    """
    import ray

    if not ray.is_initialized():
        return False
    try:
        _connect(ray.get_runtime_context().gcs_address)
    except OSError:
        return True
    return False


def _connect(address: str) -> None:
    """Connect to a head's port, and leave it. Raises OSError where it does not accept in ANSWER_S."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()


def wait_while_ray_answers(done: Future[Any], patience_s: float) -> None:
    """Wait for what needs Ray until it is done, the time is over, or Ray has gone. Raises what it raises."""
    deadline_s = time.monotonic() + patience_s
    while not done.done() and time.monotonic() < deadline_s and not ray_has_gone():
        wait([done], WATCH_S)
    if done.done():
        done.result()


@contextmanager
def _one_line(what: str, remedy: str) -> Iterator[None]:
    """Say in one line what Ray says in a traceback as it starts: of any class, and most often the machine's fault."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise UnavailableError(f"{what}: {type(error).__name__}: {said[:SHOWN_CHARACTERS]}; {remedy}") from error


def quiet_ray() -> None:
    """Silence what Ray says in this process about its own workings; run in every worker."""
    import ray

    for name in (
        "ray.data",
        "ray.serve",
        "ray.train",
        "ray.train.v2._internal.execution.controller.placement_group_cleaner",  # needs a dashboard, complains each second
        str(
            Path(ray.__file__).parent / "train/v2/_internal/execution/context.py"
        ),  # by its file: each report of metrics
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
