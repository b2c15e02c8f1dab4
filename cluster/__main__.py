"""`python -m cluster`: commands for a Ray cluster and the store on one machine.

Prints, and submits and lists jobs by Ray's client; `cluster.local` starts and stops the processes.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.arguments import parse
from cluster.local import STATE, STORE, Cluster, halt, home, known_cluster, start
from jobs.run.ports import require_own
from refbert.errors import InputError, UnavailableError

if TYPE_CHECKING:  # importing it takes seconds, and only some commands need it
    from ray.job_submission import JobSubmissionClient

FINE, MISSING, BAD, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130


def main(words: list[str] | None = None) -> int:
    """Run one command; `words` replaces the command line. Returns 2 for bad input, 3 for what is missing or does not start."""
    arguments = parse(words)
    try:
        return VERBS[arguments.command](arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD
    except (UnavailableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNAVAILABLE


def _up(arguments: argparse.Namespace) -> int:
    cluster, started = start(
        workers=arguments.workers,
        cpus_per_worker=arguments.cpus_per_worker,
        gpus_per_worker=arguments.gpus_per_worker,
        head_cpus=arguments.head_cpus,
        host=arguments.host,
        dashboard_port=arguments.dashboard_port,
        store=not arguments.no_store,
    )
    print(f"started {', '.join(started)}" if started else "everything runs already")
    _print_parts(cluster)
    workers = len(cluster.workers)
    print(f"""use it:
  python -m cluster submit -- python jobs/distill.py train.num_workers={workers} train.global_batch={32 * workers}
  python -m cluster status
  python -m cluster down""")
    return FINE


def _status(_: argparse.Namespace) -> int:
    cluster = _require_cluster()
    missing = _print_parts(cluster)
    if cluster.parts[0] not in missing:
        for job in _job_client(cluster).list_jobs():
            print(f"job {job.submission_id or job.job_id}: {job.status.value}  {job.entrypoint}")
    if missing:
        print(f"{', '.join(missing)} not running; `python -m cluster up` starts what is missing")
    return MISSING if missing else FINE


def _submit(arguments: argparse.Namespace) -> int:
    cluster = _require_cluster()
    if cluster.parts[0] not in cluster.living():
        raise UnavailableError("the cluster's head is not running; start it with `python -m cluster up`")
    import shlex

    client = _job_client(cluster)
    environment = {"working_dir": arguments.working_dir} if arguments.working_dir else {}
    job = client.submit_job(entrypoint=shlex.join(arguments.entrypoint), runtime_env=environment)
    print(f"job {job} on {cluster.address}", file=sys.stderr)
    if arguments.no_wait:
        print(job)
        return FINE

    async def follow() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(follow())
    except KeyboardInterrupt:
        print(f"\n{job} goes on; `ray job stop {job} --address {cluster.address}` ends it", file=sys.stderr)
        return INTERRUPTED
    made = _job_client(cluster).get_job_info(job)  # who listens there may have changed meanwhile
    if made.driver_exit_code is not None:
        return made.driver_exit_code
    print(f"error: job {job} ended as {made.status.value}: {made.message}", file=sys.stderr)
    return UNAVAILABLE


def _down(_: argparse.Namespace) -> int:
    cluster = known_cluster()
    if cluster is None:
        print(f"no cluster under {home()}")
        return FINE
    print(f"stopped {halt(cluster)} processes of the cluster at {cluster.address}")
    return FINE


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"up": _up, "status": _status, "submit": _submit, "down": _down}


def _require_cluster() -> Cluster:
    cluster = known_cluster()
    if cluster is None:
        raise UnavailableError(
            f"no cluster was started under {home()} ({STATE} is missing); run `python -m cluster up`, or set REFBERT_HOME"
        )
    return cluster


def _print_parts(cluster: Cluster) -> list[str]:
    """Print which parts run and where; return those that do not."""
    living = cluster.living()
    where = dict.fromkeys(cluster.workers, f"{cluster.cpus_per_worker} CPUs, {cluster.gpus_per_worker} GPUs")
    where |= {cluster.parts[0]: f"dashboard and jobs at {cluster.address}, nodes join {cluster.gcs}"}
    where |= {STORE: f"{cluster.store_url}, files in {home() / 'store'}"}
    for part in cluster.parts:
        print(f"  {part:<10} {'runs' if part in living else 'MISSING':<8} {where[part]}")
    return [part for part in cluster.parts if part not in living]


def _job_client(cluster: Cluster) -> "JobSubmissionClient":
    os.environ["RAY_AUTH_MODE"] = "token"  # read at Ray's import; the token is in ~/.ray
    os.environ.setdefault("NO_PROXY", cluster.host)
    from ray.job_submission import JobSubmissionClient

    require_own(cluster.address, "where the cluster was; run `python -m cluster up` again")  # who is shown the token
    try:
        return JobSubmissionClient(cluster.address)
    except ConnectionError:
        raise UnavailableError(f"{cluster.address} does not answer; see `python -m cluster status`") from None


if __name__ == "__main__":
    sys.exit(main())
