"""Serve a distilled student over HTTP and gRPC with Ray Serve; on request an answer names the references that were read.

    python jobs/serve.py [RUN.yaml] [key=value ...]        until interrupted; a page to try it at http://127.0.0.1:8000
    python jobs/serve.py serve.student=FOLDER store.url=http://qdrant:6334      a student's folder from elsewhere
    curl -s 127.0.0.1:8000/v1/embeddings -H 'content-type: application/json' -d '{"input": "a text", "explain": true}'
    serve run jobs.serve:app run=RUN.yaml                  the same, deployed by Ray Serve's own command or config file

Only the student is loaded, and those of serve.models, no teacher. gRPC is answered where serve.grpc_port is set. A store that
is slow or gone costs quality, never an error: texts then read cached references or the null reference; /readyz says so, and an
answer that names its references. docs/serving.md tells how to operate the service.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.serve", __doc__)  # before what follows is imported, which takes seconds

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection
from textwrap import shorten
from typing import Any

import ray
from pydantic import BaseModel, Field, ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.exceptions import RayServeException

from jobs.config import RunConfig, load_config
from jobs.memory.student_memory import memory_of, served_run, student_run
from jobs.run.ports import free_ports, is_anothers
from jobs.run.session import wait_while_ray_answers
from jobs.service.grpc_calls import ADD_SERVICER
from jobs.service.inference import folders_of, input_errors
from jobs.service.keys import is_public
from jobs.service.replica import QUIET, application
from refbert.errors import InputError, UnavailableError
from vector_store.errors import StoreError

log = logging.getLogger(__name__)

CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""Ray Serve's own, in the namespace `serve`."""

START_S, STOP_S = 180.0, 60.0
"""Longest wait for the proxy to answer, and for Ray Serve to answer what is in flight and end."""

SHOWN_CHARACTERS = 500
"""Of what Ray says where the service does not start."""


class RefusedApplication(InputError, RayServeException):  # noqa: N818
    """A mistake in a service's arguments, whose line Serve shows as the application's status at once.

    Of any other class Serve tries four times, for minutes without a word, and then shows a traceback.
    """


class AppArguments(BaseModel, extra="forbid"):
    """What a config file of Ray Serve's has under `args` of `import_path: jobs.serve:app`."""

    run: str | None = Field(None, description="The run's YAML, by default the demo's.")
    overrides: list[str] = Field([], description="Options to change, as on the command line: `serve.num_replicas=2`.")
    student: str | None = Field(
        None, description="A student/ folder, checked before it is deployed; by default serve.student, or the run's."
    )


def app(args: dict[str, Any]) -> serve.Application:
    """Build the application for `serve run`, `serve deploy` and config files; `args` are those of `AppArguments`.

    The addresses are then Ray Serve's own `http_options` and `grpc_options`, which are not known here. So keys are required,
    unless serve.allow_public_without_key is set. Raises RefusedApplication for this and for every other mistake.
    """
    try:
        given = AppArguments.model_validate(args)
        config = load_config(given.run, given.overrides)
        config, _ = student_run(config, config.serve.student)
        return application(config, given.student, is_deployed=True)
    except ValidationError as error:
        mistakes = "; ".join(f"args.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise RefusedApplication(f"{mistakes}; known are {', '.join(AppArguments.model_fields)}") from None
    except (InputError, StoreError) as error:
        raise RefusedApplication(str(error)) from None


def run(config: RunConfig) -> None:
    """Serve until interrupted. Refuses another memory than the student's; one that appears later degrades the answers."""
    with memories_of(config), served(config) as address:
        log.info("serving %s: page at %s, API at %s/docs; Ctrl-C stops it", config.name, address, address)
        threading.Event().wait()


@contextmanager
def memories_of(config: RunConfig) -> Iterator[None]:
    """Keep what the service's students read running. Refuses another memory than a student's, and a wrong folder, by name."""
    with ExitStack() as memories:
        for name, student in folders_of(config).items():
            with input_errors(config, name, student):
                own, folder = served_run(config, name, student)
            memories.enter_context(memory_of(own, folder))
        yield


@contextmanager
def served(config: RunConfig) -> Iterator[str]:
    """Start the service, yield its HTTP address, and stop what was started, when what is in flight has been answered.

    Raises UnavailableError where it does not start.
    """
    config, _ = student_run(config, config.serve.student)
    was_running = _serve_is_running()
    # A Ray Serve that runs already keeps its own address, which may be open to the network.
    service = application(config, is_public=is_public(config.serve) or was_running)
    port = config.serve.port or free_ports(1, config.serve.host)[0]
    try:
        _start(config, service, port, was_running)
    except BaseException as error:  # an interrupt too: on a cluster the service would outlive it
        refusal = _refusal(config.name)
        _stop(config.name, was_running)
        if refusal:
            raise InputError(refusal) from error
        if isinstance(error, RuntimeError | TimeoutError | RayError):
            said = shorten(" ".join(str(error).split()), SHOWN_CHARACTERS)
            raise UnavailableError(f"the service did not start on {config.serve.host}:{port}: {said}") from error
        raise
    try:
        yield f"http://{config.serve.host}:{port}"
    finally:
        _stop(config.name, was_running)


def _start(config: RunConfig, service: serve.Application, port: int, was_running: bool) -> None:
    """Start Ray Serve with a way in on every node, and the application; return when it answers.

    Ray itself waits a fixed minute for its proxies, and lets them go on starting: on a busy machine they are waited for here.
    A Ray Serve that was running may have another address, and is not asked.
    """

    def start() -> None:
        serve.start(
            http_options=HTTPOptions(host=config.serve.host, port=port),
            grpc_options=_grpc_options(config),
            logging_config=QUIET,
            proxy_location="EveryNode",  # of those with a replica, and the head: one that is killed is not the only one
        )

    try:
        start()
    except TimeoutError:
        start()  # finds what has been started
    with suppress(TimeoutError):
        serve.run(service, name=config.name, route_prefix="/", logging_config=QUIET)
    deadline_s = time.monotonic() + START_S
    while not (was_running or _answers(config.serve.host, port)):
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"nothing answers after {START_S:g} s; is the machine very busy? Start the same command again"
            )
        time.sleep(0.2)


def _answers(host: str, port: int) -> bool:
    """Whether Ray's proxy answers that it has routes to replicas, and not another user's server."""
    if is_anothers(host, port):
        return False
    connection = HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/-/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _grpc_options(config: RunConfig) -> gRPCOptions | None:
    if config.serve.grpc_port is None:
        return None
    return gRPCOptions(port=config.serve.grpc_port, grpc_servicer_functions=[ADD_SERVICER])


def _refusal(name: str) -> str | None:
    """Return the line in which a replica said that it cannot start: Serve has it at the end of a traceback."""
    with suppress(Exception):  # a Serve that cannot be asked leaves the error that it raised
        for deployment in serve.status().applications[name].deployments.values():
            said = [line for line in deployment.message.splitlines() if line.startswith(f"{InputError.__module__}.")]
            if said:
                return said[-1].partition(": ")[2]
    return None


def _serve_is_running() -> bool:
    try:
        ray.get_actor(CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True


def _stop(name: str, was_running: bool) -> None:
    """Stop what was started: only the application where Ray Serve was running already.

    The application goes first, while the proxy is there to answer what its replicas still have. In a thread, which is left
    where Ray has gone.
    """
    done: Future[None] = Future()

    def work() -> None:
        try:
            serve.delete(name)
            if not was_running:
                _shut_down()
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=work, name="stopping", daemon=True).start()
    try:
        wait_while_ray_answers(done, STOP_S)
    except (RayServeException, RayError, TimeoutError) as error:
        log.warning("%s did not stop by itself: %s", name, shorten(" ".join(str(error).split()), SHOWN_CHARACTERS))


def _shut_down() -> None:
    """Shut Ray Serve down. Its own `shutdown` waits for a call that cannot succeed, of which Ray then says so at length."""
    if not _serve_is_running():
        return
    controller: Any = ray.get_actor(CONTROLLER, namespace="serve")
    ray.get(controller.graceful_shutdown.remote(wait=False))
    while _serve_is_running():
        time.sleep(0.1)
    serve.shutdown()  # forgets what this process knew of it
