"""One replica on Ray Serve: API, queue and students in one process (docs/decisions/0009-one-process-per-replica.md).

Ray Serve hands HTTP requests to its ASGI app and gRPC calls to the method of the same name. A new `user_config` replaces the
run's own student without a restart. `application` is what jobs/serve.py and `serve run` deploy.
"""

import asyncio
import contextlib
import logging
import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from ray import serve
from ray.serve.schema import LoggingConfig

from jobs.config import RunConfig
from jobs.memory.store import CLUSTER_STORE
from jobs.run.worker import per_node, set_up_worker
from jobs.service.api import http_api
from jobs.service.grpc_calls import GrpcCalls
from jobs.service.inference import InferenceService, check_students
from jobs.service.keys import wants_keys
from jobs.service.metrics import merged
from jobs.service.middleware import RequestMiddleware
from refbert.errors import InputError
from vector_store.config import EMBEDDED

log = logging.getLogger(__name__)

DEPLOYMENT = "StudentService"
"""Its name in Ray Serve's config files."""

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
"""What Ray Serve itself logs of a service."""

HEALTH_CHECK_S = 1.0
"""How often Ray Serve asks a replica: one that was killed counts as running until then, and requests wait for it."""

METRICS_S = 2.0
"""The longest that /metrics waits for other replicas."""

_middleware: ContextVar[RequestMiddleware] = ContextVar("middleware")


def asgi_app() -> RequestMiddleware:
    """Return the ASGI app of the replica that is being made: Ray Serve asks for it right after the constructor."""
    return _middleware.get()


class StudentChoice(BaseModel, extra="forbid"):
    """What a deployment's `user_config` says."""

    student: str | None = Field(None, description="A student/ folder; by default the run's own.")
    reload: bool = Field(False, description="Load it again, though its path is the same.")

    @classmethod
    def of(cls, user_config: Any) -> "StudentChoice":
        """Parse a `user_config`. Raises InputError: a misspelt key must not mean the run's own student."""
        try:
            return cls.model_validate(user_config)
        except ValidationError as error:
            mistakes = "; ".join(
                ".".join(map(str, ("user_config", *one["loc"]))) + f": {one['msg']}" for one in error.errors()
            )
            raise InputError(f"{mistakes}; known are {', '.join(cls.model_fields)}") from None


@dataclass(frozen=True)
class Deployer:
    """What the process that deploys a service found in its own environment: a replica's may be another one.

    `home` is its $REFBERT_HOME; `wants_keys`, whether requests shall need a key; `secrets`, the names, and never the values, of
    the variables with secrets that it has.
    """

    home: str
    wants_keys: bool
    secrets: tuple[str, ...]


class Replica:
    """A run's student and those of serve.models, served.

    `user_config={"student": FOLDER}` loads another one in the place of the run's own, while that answers.

    Raises InputError where the deployer wants keys and there are none here.
    """

    def __init__(self, config: RunConfig, deployer: Deployer) -> None:
        os.environ["REFBERT_HOME"] = deployer.home
        for name in deployer.secrets:
            if not os.environ.get(name):
                log.warning(
                    "%s is set where this service was deployed, but not here: export it before `ray start`", name
                )
        limits = config.serve
        most = limits.max_replicas or limits.num_replicas
        threads = limits.threads_per_replica or max(1, (os.cpu_count() or 1) // per_node(most))
        device = set_up_worker(1, limits.gpus_per_replica, threads)
        context = serve.get_replica_context()
        self.several = most > 1
        name = context.replica_id.unique_id if self.several else ""
        self.service = InferenceService(config, device, name, wants_keys=deployer.wants_keys)
        self.service.load()
        self.loaded: str | None = None
        self.is_serving = False
        self.handle: Any = None
        self.deployment = context.deployment, context.app_name
        # By the names in proto/refbert.proto: Ray Serve's gRPC proxy calls these.
        calls = GrpcCalls(self.service)
        self.Embed, self.Classify, self.Similarity, self.Status = (
            calls.embed, calls.classify, calls.similarity, calls.status
        )  # fmt: skip
        self.service.start()
        # Ray Serve puts the id of a request into its response by itself.
        api = http_api(self.service, self.metrics_of_all)
        _middleware.set(RequestMiddleware(self.service, api, sends_request_id=False))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the student that `student` names, or the run's own where it names none; the present one answers meanwhile.

        In a replica that serves, a config or a folder that is wrong changes nothing, and /readyz and a metric say why: raising
        would end it. One that is only starting does raise, else it would answer with other vectors than those beside it.
        """
        try:
            wanted = StudentChoice.of(user_config)
            if wanted.student != self.loaded or wanted.reload:
                await asyncio.to_thread(self.service.load, wanted.student)
                self.loaded = wanted.student
            else:
                self.service.settle()
        except InputError as error:
            if not self.is_serving:
                raise
            self.service.refuse(str(error))

    async def check_health(self) -> None:
        """Raise where no text will be answered any more: Ray Serve calls this every few seconds, and replaces the replica."""
        self.service.queue.check()
        self.is_serving = True  # the first check ends a replica's start

    def metrics_text(self) -> str:
        """Return the metrics of this replica."""
        return self.service.metrics.text()

    async def metrics_of_all(self) -> str:
        """Return the metrics of all replicas that answer in time."""
        if not self.several:
            return self.metrics_text()
        if self.handle is None:
            self.handle = serve.get_deployment_handle(*self.deployment)
        with contextlib.suppress(Exception):  # the others' absence must not hide this one's
            async with asyncio.timeout(METRICS_S):
                return merged(await self.handle.broadcast("metrics_text").results_async())
        return self.metrics_text()


PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Threads of a forward sleep while they wait for each other: spinning, they would take the cores of HTTP and look-ups."""


def application(
    config: RunConfig, student: str | None = None, *, is_public: bool = True, is_deployed: bool = False
) -> serve.Application:
    """Return the service of a run as Ray Serve's application, with its replicas and what each reserves.

    Deployed again, new replicas start before old ones stop, as far as serve.surge_percent allows. What the environment
    decides is decided here, once for all replicas. Raises InputError for a service without keys that `is_public`
    (`keys.wants_keys`), and for a student of it that cannot be loaded.
    """
    limits = config.serve
    deployer = Deployer(
        home=str(config.home),
        wants_keys=wants_keys(limits, is_public=is_public, is_deployed=is_deployed),
        secrets=tuple(name for name in (limits.api_keys_env, config.store.api_key_env) if os.environ.get(name)),
    )
    check_students(config, student)
    if config.store.url == EMBEDDED and (url := os.environ.get(CLUSTER_STORE)):
        config = config.model_copy(update={"store": config.store.model_copy(update={"url": url})})
    most = limits.max_replicas
    scale: dict[str, Any] = {"num_replicas": limits.num_replicas}
    if most is not None:
        scale = {
            "num_replicas": None,
            "autoscaling_config": {
                "min_replicas": limits.num_replicas,
                "max_replicas": most,
                "target_ongoing_requests": limits.target_ongoing_requests,
            },
        }
    # Not as a decorator: Ray would pickle the class. Replicas import this one, so it may refer to what cannot be pickled.
    deployment: Any = serve.deployment(serve.ingress(asgi_app)(Replica), name=DEPLOYMENT)
    return deployment.options(
        **scale,
        max_surge_percent=limits.surge_percent,
        logging_config=QUIET,  # a line of Ray's per request costs as much as its parsing; serve.request_log has its own
        # The replica's own queue refuses with 429, Ray's would with 503. It counts texts: a request has one at least.
        max_ongoing_requests=limits.max_queued_texts + 2 * limits.max_batch + 64,
        graceful_shutdown_timeout_s=limits.deadline_s + 5,
        health_check_period_s=HEALTH_CHECK_S,
        user_config={"student": student},
        ray_actor_options={
            "num_cpus": limits.cpus_per_replica,
            "num_gpus": limits.gpus_per_replica,
            "runtime_env": {"env_vars": PASSIVE},
        },
    ).bind(config, deployer)
