"""How a training recovers from failing workers: what is retried, how often, and on how many workers.

A worker that is killed, preempted or cut off ends all of them. Ray Train restarts them train.max_failures times at most, after
a preemption always: train.num_workers or, where train.min_workers allows fewer, as many as there is room for. They resume from
the newest intact checkpoint (`loop`). A known cause that would fail again (a mistake in the config, another teacher's memory, a
full disk) ends the job at once; a store that is away and an error of no known cause are retried.
"""

import logging
from textwrap import shorten
from typing import Any

from ray.train import FailureConfig, ScalingConfig, UserCallback

from jobs.run.failures import LostProcessError, known_cause
from jobs.sections import TrainConfig
from vector_store.errors import StoreUnavailable

log = logging.getLogger(__name__)

MESSAGE_CHARACTERS = 200
"""Shown of a failure; Ray explains at length what may have killed a process, and its logs have all of it."""


class Recovery(UserCallback):
    """Callback of Ray Train's controller: logs what failed, and ends the training on a mistake of the user."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise a known mistake, which ends the training; log anything else, which is retried."""
        for error in worker_exceptions.values():
            known = known_cause(error)
            if known is not None and not isinstance(known, StoreUnavailable | LostProcessError):
                raise known
        for rank, error in sorted(worker_exceptions.items()):
            last = (str(error).strip().splitlines() or ["no message"])[-1]
            log.warning("worker %d failed: %s", rank, shorten(f"{type(error).__name__}: {last}", MESSAGE_CHARACTERS))


def failure_config(train: TrainConfig) -> FailureConfig:
    """How often failed workers are restarted; preempted ones always are."""
    return FailureConfig(max_failures=train.max_failures)


def scaling_config(train: TrainConfig) -> ScalingConfig:
    """How many workers, and what each reserves."""
    fewest, most = train.min_workers or train.num_workers, train.num_workers
    # Any: mypy sees the ScalingConfig of Train V1, which does not know ranges.
    num_workers: Any = most if fewest == most else (fewest, most)
    return ScalingConfig(
        num_workers=num_workers,
        use_gpu=train.gpus_per_worker > 0,
        resources_per_worker={"GPU": train.gpus_per_worker} if train.gpus_per_worker else {"CPU": 1},
    )
