"""One replica on Ray Serve: API, queue, student and memory in one process (docs/decisions/0009-one-process-per-replica.md).

HTTP requests reach the gate as ASGI, gRPC calls by the name of their method. A new `user_config` changes the student without a
restart.
"""

import asyncio
import contextlib
import logging
import os
from contextvars import ContextVar
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from jobs.config import RunConfig
from jobs.run.worker import per_node, set_up_worker
from jobs.service.api import http_api
from jobs.service.grpc_calls import GrpcCalls
from jobs.service.inference import Desk
from jobs.service.metrics import merged
from jobs.service.middleware import Gate
from jobs.service.proto import refbert_pb2 as messages

log = logging.getLogger(__name__)

DEPLOYMENT = "StudentService"
"""What Serve's config files call it."""

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
"""What Serve itself logs of a service."""

METRICS_S = 2.0
"""The longest that /metrics waits for other replicas."""

_gate: ContextVar[Gate] = ContextVar("gate")


def opened_gate() -> Gate:
    """The gate of the replica that is being made: Ray asks for its ASGI app right after its constructor."""
    return _gate.get()


class Replica:
    """The student of a run, served. `user_config={"student": FOLDER}` loads another one while the old one answers."""

    def __init__(self, config: RunConfig, home: str) -> None:
        os.environ["REFBERT_HOME"] = home  # where the deployer has it: a replica's environment may name another one
        limits = config.serve
        threads = limits.threads_per_replica or _threads(per_node(limits.max_replicas or limits.num_replicas))
        device = set_up_worker(1, limits.gpus_per_replica, threads)
        context = serve.get_replica_context()
        self.several = (limits.max_replicas or limits.num_replicas) > 1
        self.desk = Desk(config, device, context.replica_id.unique_id if self.several else "")
        self.desk.open()
        self.served: str | None = None
        self.calls = GrpcCalls(self.desk)
        self.handle: Any = None
        self.place = context.deployment, context.app_name
        self.desk.start()
        # Ray Serve puts the id of a request into its answer by itself.
        _gate.set(Gate(self.desk, http_api(self.desk, self.metrics_of_all), names_requests=False))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the student that `student` names, or the run's own again where it names none; the old one answers meanwhile."""
        student = user_config.get("student")
        if student != self.served or user_config.get("reload"):
            await asyncio.to_thread(self.desk.open, student)
            self.served = student

    async def check_health(self) -> None:
        """Ask to be replaced where no text will be answered any more; Ray Serve calls it every few seconds."""
        self.desk.queue.check()

    def metrics_text(self) -> str:
        """What this replica counts."""
        return self.desk.metrics.text()

    async def metrics_of_all(self) -> str:
        """What every replica counts, of those that answer in time."""
        if not self.several:
            return self.metrics_text()
        if self.handle is None:
            self.handle = serve.get_deployment_handle(*self.place)
        with contextlib.suppress(Exception):  # the others' absence must not hide this one's
            async with asyncio.timeout(METRICS_S):
                return merged(await self.handle.broadcast("metrics_text").results_async())
        return self.metrics_text()

    # ------------------------------------------------------------ gRPC, by the names in proto/refbert.proto

    async def Embed(self, request: messages.EmbedRequest, grpc_context: Any) -> messages.EmbedResponse:  # noqa: N802
        """Answer with vectors."""
        return await self.calls.embed(request, grpc_context)

    async def Classify(self, request: messages.ClassifyRequest, grpc_context: Any) -> messages.ClassifyResponse:  # noqa: N802
        """Answer with labels."""
        return await self.calls.classify(request, grpc_context)

    async def Similarity(  # noqa: N802
        self, request: messages.SimilarityRequest, grpc_context: Any
    ) -> messages.SimilarityResponse:
        """Answer with cosines."""
        return await self.calls.similarity(request, grpc_context)

    async def Status(self, request: messages.StatusRequest, grpc_context: Any) -> messages.StatusResponse:  # noqa: N802
        """Say which student answers."""
        return await self.calls.status(request, grpc_context)


PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""A forward's threads that wait for each other sleep: spinning, they would keep HTTP and look-ups from their cores."""


def _threads(replicas_on_node: int) -> int:
    """The node's share."""
    return max(1, (os.cpu_count() or 1) // replicas_on_node)


def application(config: RunConfig, student: str | None = None) -> serve.Application:
    """The service of a run, as Ray Serve takes it, with its replicas and what each reserves.

    Deployed again, replicas of the new kind start before old ones stop, as far as serve.surge_percent lets them.
    """
    limits = config.serve
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
    # Ray pickles what it decorates: left as it is, this class is imported by replicas, and may refer to what no pickle holds.
    deployment: Any = serve.deployment(serve.ingress(opened_gate)(Replica), name=DEPLOYMENT)
    return deployment.options(
        **scale,
        max_surge_percent=limits.surge_percent,
        logging_config=QUIET,  # a line of Ray's per request costs as much as its parsing; serve.request_log has its own
        # The replica's own queue refuses with 429, Ray's would with 503. It counts texts: a request has one at least.
        max_ongoing_requests=limits.max_queued_texts + 2 * limits.max_batch + 64,
        graceful_shutdown_timeout_s=limits.deadline_s + 5,
        user_config={"student": student},
        ray_actor_options={
            "num_cpus": limits.cpus_per_replica,
            "num_gpus": limits.gpus_per_replica,
            "runtime_env": {"env_vars": PASSIVE},
        },
    ).bind(config, str(config.home))
