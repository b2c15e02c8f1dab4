"""Trainings in MLflow and Weights & Biases, with the real packages, offline."""

import json
import struct
import sys
import time
from collections.abc import Iterator

import pytest

from jobs import ablate, demo, distill
from jobs.launch import run_job
from jobs.run.failures import UNAVAILABLE
from jobs.training import tracking
from jobs.training.metrics import METRICS
from jobs.training.tracking import options_of, tracked
from refbert.errors import InputError, UnavailableError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the trackers' own dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def run(home, tiny_run):
    """Make a run's directory, and its config with trackers."""

    def make(*trackers: str):
        config = tiny_run(tracking={"trackers": trackers, "project": "tried"})
        config.run_directory.mkdir(parents=True)
        return config

    return make


def log_steps(config, *steps: int) -> None:
    """Write metrics.jsonl as a training does that has logged these steps: the loss of step 10 is 0.1."""
    lines = [json.dumps({"step": step, "train/loss": 1 / step, "store/live": step}) for step in steps]
    (config.run_directory / METRICS).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def mlflow_store(home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    return lambda: MlflowClient(f"sqlite:///{home}/mlflow.db")


def test_mlflow_has_options_and_every_step_once_over_a_failure_and_a_resumed_training(run, mlflow_store):
    config = run("mlflow")
    with tracked(config):
        log_steps(config, 1, 2)
    client = mlflow_store()
    experiment = client.get_experiment_by_name("tried")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (config.name, "FINISHED")
    assert found.data.params == options_of(config)
    assert found.data.params["train.steps"] == "8"

    def interrupted(error, *steps):
        with tracked(config):
            log_steps(config, *steps)
            raise error

    with pytest.raises(KeyboardInterrupt):
        interrupted(KeyboardInterrupt(), 1, 2, 4)
    assert client.get_run(found.info.run_id).info.status == "KILLED"
    with pytest.raises(ZeroDivisionError):
        interrupted(ZeroDivisionError(), 1, 2, 3, 4, 5)  # resumed from step 2; what is logged is logged
    assert client.get_run(found.info.run_id).info.status == "FAILED"
    with tracked(config):
        assert client.get_run(found.info.run_id).info.status == "RUNNING"
    assert len(client.search_runs([experiment.experiment_id])) == 1
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in (1, 2, 4, 5)]
    client.delete_run(found.info.run_id)
    (config.run_directory / "tracking" / "mlflow.json").write_text(json.dumps({"run": "gone", "step": 5}))
    with pytest.raises(
        UnavailableError, match=r"Run with id=gone not found.*delete .*tracking/mlflow\.json"
    ) as refused:
        interrupted(AssertionError())
    assert "\n" not in str(refused.value)


def offline_runs(config) -> list[tuple[str, list[dict[str, float]]]]:
    """Read what W&B has on disk: each session's run, and the rows of its history."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted((config.run_directory / "tracking" / "wandb").glob("offline-run-*/*.wandb")):
        rows, name = [], ""
        for data in log_records(file.read_bytes()):
            record = Record.FromString(data)
            name = record.run.run_id or name
            if items := record.history.item:
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
        found.append((name, rows))
    return found


def log_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which W&B writes: blocks of 32 KiB, a header of 7 bytes per fragment."""
    place, record = 7, b""  # after the file's own header
    while place + 7 <= len(content):
        if (room := 2**15 - place % 2**15) < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            yield record
            record = b""


def test_weights_and_biases_offline_has_every_step_once_in_one_run_over_two_sessions(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = run("wandb")
    with tracked(config):
        log_steps(config, 1, 2)
    with tracked(config):
        log_steps(config, 1, 2, 4)
    until_s = time.monotonic() + 20
    while not all(rows for _, rows in offline_runs(config)) and time.monotonic() < until_s:
        time.sleep(0.1)  # W&B's own process still writes
    (first, before), (second, after) = offline_runs(config)
    assert first == second == json.loads((config.run_directory / "tracking" / "wandb.json").read_text())["run"]
    assert [(row["_step"], row["train/loss"], row["store/live"]) for row in before] == [(1, 1.0, 1), (2, 0.5, 2)]
    assert [(row["_step"], row["train/loss"], row["store/live"]) for row in after] == [(4, 0.25, 4)]


class Away:
    """A tracker whose server is away for so many calls."""

    identifier = "away"

    def __init__(self, times: int) -> None:
        self.times, self.taken, self.outcomes = times, [], []

    def log(self, lines) -> None:
        self.times -= 1
        if self.times >= 0:
            raise ConnectionError("the server\nis away")
        self.taken += [line["step"] for line in lines]

    def end(self, outcome) -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize("times", [2, 10**9])
def test_what_a_tracker_does_not_take_is_sent_again_and_never_ends_the_training(run, monkeypatch, caplog, times):
    tracker = Away(times)
    monkeypatch.setitem(tracking.OPEN, "mlflow", lambda config, identifier: tracker)
    monkeypatch.setattr(tracking, "LOOK_S", 0.01)
    config = run("mlflow")
    with tracked(config):
        log_steps(config, 1, 2)
        until_s = time.monotonic() + 10
        while not tracker.taken and tracker.times > times - 3 and time.monotonic() < until_s:
            time.sleep(0.01)  # it is asked again meanwhile
    assert tracker.outcomes == ["finished"]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[0] == "mlflow does not take metrics (the server); they are sent again later"
    if times == 2:
        assert tracker.taken == [1, 2]
        assert len(warnings) == 1
    else:
        assert tracker.taken == []
        assert "lacks the metrics of 2 logged steps, from 1 on" in warnings[1]
        tracker.times = 0
        with tracked(config):
            pass
        assert tracker.taken == [1, 2]


def test_a_server_that_is_away_at_the_start_and_a_damaged_note_are_one_line(run, monkeypatch):
    config = run("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        UnavailableError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used .*tracking\.trackers"
    ) as refused:
        enter(config)
    assert "\n" not in str(refused.value)
    (config.run_directory / "tracking" / "mlflow.json").write_text("{")
    with pytest.raises(InputError, match=r"mlflow\.json cannot be read .*; delete it"):
        enter(config)


def enter(config) -> None:
    with tracked(config):
        raise AssertionError("the training has begun")


@pytest.mark.parametrize("job", [distill, demo, ablate])
def test_a_trackers_missing_package_is_one_line_before_ray_starts(job, monkeypatch, capsys):
    import jobs.run.session

    monkeypatch.setattr(jobs.run.session, "ray_session", lambda: pytest.fail("Ray was started"))
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run_job(job, ["tracking.trackers=[mlflow,wandb]"]) == UNAVAILABLE
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "tracking.trackers needs mlflow, wandb, not installed" in said[0]
    assert '".[tracking]"' in said[0]
