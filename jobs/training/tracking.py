"""A training's metrics in MLflow and Weights & Biases: the driver follows metrics.jsonl, wherever the workers run.

Workers need neither package nor key, and no step waits for a tracker. tracking/mlflow.json or wandb.json in the run's directory
says which tracked run is this training's, and up to which step it has the metrics: a training that is resumed continues the
same one, and steps that are repeated after a failure are not logged again. What a tracker does not take is sent again; what it
has not taken in the end is said, and sent when a training that is not complete is resumed.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from jobs.config import RunConfig
from jobs.training.metrics import METRICS
from refbert.atomic import write_whole
from refbert.errors import InputError, UnavailableError

log = logging.getLogger(__name__)

LOOK_S = 1.0
END_S = 30.0
"""How long the end of a training waits for a tracker that still has lines to take."""

BATCH_METRICS, BATCH_PARAMS = 1000, 100
PARAM_CHARACTERS = 6000
"""MLflow's limits of one call, and of one parameter."""

Outcome = Literal["finished", "failed", "stopped"]
Line = dict[str, float]


class Tracker(Protocol):
    """A tracked run. `identifier` is what it is found by when the training is resumed."""

    identifier: str

    def log(self, lines: Sequence[Line]) -> None:
        """Take the metrics of steps, in order, each with its `step`. Raises where they are not taken."""

    def end(self, outcome: Outcome) -> None:
        """Say how the training ended."""


class MLflowRun:
    """A run of MLflow, at $MLFLOW_TRACKING_URI or in the home's mlflow.db."""

    def __init__(self, config: RunConfig, identifier: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of its own 7 the last comes after minutes
        for noisy in ("mlflow", "alembic"):  # about the tables of a new database
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._metric = Metric
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{config.home}/mlflow.db"
        try:
            self._client = MlflowClient(where)
            self.identifier = identifier or self._created(config)
            if identifier:
                self._client.update_run(identifier, status="RUNNING")
            else:
                params = [Param(key, value[:PARAM_CHARACTERS]) for key, value in options_of(config).items()]
                for start in range(0, len(params), BATCH_PARAMS):
                    self._client.log_batch(self.identifier, params=params[start : start + BATCH_PARAMS])
        except MlflowException as error:
            raise _not_opened(f"MLflow at {where}", "mlflow", config, identifier, error) from error

    def _created(self, config: RunConfig) -> str:
        experiment = self._client.get_experiment_by_name(config.tracking.project)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(config.tracking.project)
        )
        return str(self._client.create_run(experiment_id, run_name=config.name).info.run_id)

    def log(self, lines: Sequence[Line]) -> None:
        """Send metrics."""
        now_ms = int(1000 * time.time())
        metrics = [
            self._metric(name, value, now_ms, int(line["step"]))
            for line in lines
            for name, value in line.items()
            if name != "step"
        ]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(self.identifier, metrics=metrics[start : start + BATCH_METRICS])

    def end(self, outcome: Outcome) -> None:
        """Set the run's status."""
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[outcome]
        self._client.set_terminated(self.identifier, status)


class WandbRun:
    """A run of Weights & Biases, in the mode and at the server that its own variables say; its files are in the run's
    directory."""

    def __init__(self, config: RunConfig, identifier: str | None) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=config.tracking.project,
                name=config.name,
                id=identifier,
                resume="allow",
                config=options_of(config),
                dir=str(config.run_directory / FOLDER),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise _not_opened("Weights & Biases", "wandb", config, identifier, error) from error
        self.identifier = str(self._run.id)

    def log(self, lines: Sequence[Line]) -> None:
        """Hand metrics to wandb's own process, which sends them."""
        for line in lines:
            self._run.log({name: value for name, value in line.items() if name != "step"}, step=int(line["step"]))

    def end(self, outcome: Outcome) -> None:
        """Wait until all is sent, or on disk."""
        self._run.finish(exit_code=0 if outcome == "finished" else 1)


FOLDER = "tracking"
OPEN: dict[str, Callable[[RunConfig, str | None], Tracker]] = {"mlflow": MLflowRun, "wandb": WandbRun}


def check_tracking(config: RunConfig) -> None:
    """Raise UnavailableError where a tracker's package is not installed."""
    if missing := [name for name in config.tracking.trackers if find_spec(name) is None]:
        raise UnavailableError(
            f"tracking.trackers needs {', '.join(missing)}, not installed; in the checkout, run `python -m pip install "
            '-e ".[tracking]"`, or leave it out'
        )


@contextmanager
def tracked(config: RunConfig) -> Iterator[None]:
    """Log a training's metrics into the trackers of its config while the block runs.

    Raises InputError or UnavailableError where one of them cannot be opened; one that fails later costs a warning.
    """
    check_tracking(config)
    with ExitStack() as stack:
        for name in sorted(set(config.tracking.trackers)):
            stack.enter_context(_followed(config, name))
        yield


def options_of(config: RunConfig) -> dict[str, str]:
    """Return a run's options as overrides name them, such as `train.steps`."""
    found: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, each in value.items():
                add(f"{name}.{key}" if name else key, each)
        else:
            found[name] = str(value)

    add("", config.model_dump(mode="json"))
    return found


class _Record:
    """Which tracked run is a training's, and up to which step it has the metrics: one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"run": None, "step": 0}
            self.run: str | None = before["run"]
            self.step = int(before["step"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}); delete it, and a new tracked run begins") from None

    def write(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        write_whole(self._path, json.dumps({"run": self.run, "step": self.step}))


class _Follower:
    """Hands new lines of metrics.jsonl to a tracker, each step once, and notes how far it is."""

    def __init__(self, metrics: Path, record: _Record, tracker: Tracker, name: str) -> None:
        self._metrics, self._record, self._tracker, self._name = metrics, record, tracker, name
        self._is_failing = False

    def unsent(self) -> list[Line]:
        """Return the lines that the tracker has not taken, in order."""
        lines: list[Line] = []
        for text in reversed(self._metrics.read_text().splitlines() if self._metrics.exists() else []):
            if not text.endswith("}"):
                continue  # being written
            line = json.loads(text)
            if line["step"] <= self._record.step:
                break
            lines.append(line)
        return lines[::-1]

    def send(self) -> None:
        """Send them; what fails is said once, and stays for the next time."""
        if not (lines := self.unsent()):
            return
        try:
            self._tracker.log(lines)
        except Exception as error:  # an edge: a tracker must not end the training
            if not self._is_failing:
                log.warning("%s does not take metrics (%s); they are sent again later", self._name, _first_line(error))
            self._is_failing = True
        else:
            self._is_failing = False
            self._record.step = int(lines[-1]["step"])
            self._record.write()


@contextmanager
def _followed(config: RunConfig, name: str) -> Iterator[None]:
    (config.run_directory / FOLDER).mkdir(parents=True, exist_ok=True)
    record = _Record(config.run_directory / FOLDER / f"{name}.json")
    tracker = OPEN[name](config, record.run)
    record.run = tracker.identifier
    record.write()
    log.info("metrics go to %s, run %s", name, tracker.identifier)
    follower = _Follower(config.run_directory / METRICS, record, tracker, name)
    done = threading.Event()
    outcome: Outcome = "finished"

    def work() -> None:
        while not done.wait(LOOK_S):
            follower.send()
        follower.send()
        try:
            tracker.end(outcome)
        except Exception as error:  # an edge, likewise
            log.warning("%s was not told that the training %s (%s)", name, outcome, _first_line(error))

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        outcome = "stopped"
        raise
    except BaseException:
        outcome = "failed"
        raise
    finally:
        done.set()
        thread.join(END_S)
        if lines := follower.unsent():
            log.warning(
                "%s lacks the metrics of %d logged steps, from %d on; they are in %s, and sent when this training is resumed",
                name, len(lines), int(lines[0]["step"]), config.run_directory / METRICS,
            )  # fmt: skip
        elif thread.is_alive():
            log.warning("%s still sends what it was given; nothing waits for it", name)


def _not_opened(what: str, name: str, config: RunConfig, identifier: str | None, error: Exception) -> UnavailableError:
    again = f"; to begin a new tracked run delete {config.run_directory / FOLDER / name}.json" if identifier else ""
    return UnavailableError(
        f"{what} cannot be used ({_first_line(error)}); see that it is there and takes this login, or leave {name} out of "
        f"tracking.trackers{again}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
