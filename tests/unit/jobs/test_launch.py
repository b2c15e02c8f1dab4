"""Exit codes: whatever Ray wraps around a mistake, the user reads one line."""

import os
import signal
import time
import types

import pytest
import ray
from safetensors import SafetensorError

from jobs import launch
from jobs.launch import run_job
from jobs.run.failures import BAD_INPUT, UNAVAILABLE, known_cause
from jobs.run.ports import free_ports
from jobs.run.session import ray_session
from jobs.training.recovery import Recovery
from refbert.errors import InputError, UnavailableError
from vector_store.errors import CollectionMismatch, StoreUnavailable


def job_that(raises: Exception) -> types.SimpleNamespace:
    def run(config):
        raise raises

    return types.SimpleNamespace(__name__="jobs.fake", __doc__="A job.", run=run)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    from contextlib import nullcontext

    import jobs.run.session

    monkeypatch.setattr(jobs.run.session, "ray_session", nullcontext)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("bad corpus"), BAD_INPUT),
        (CollectionMismatch("other teacher"), BAD_INPUT),
        (StoreUnavailable("no store"), UNAVAILABLE),
        (UnavailableError("no index"), UNAVAILABLE),
    ],
)
def test_a_known_error_is_one_line_and_its_code(error, code, capsys):
    assert run_job(job_that(error), []) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {error}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_job_with_one_line_and_its_code(number, code, capsys):
    def run(config):
        os.kill(os.getpid(), number)
        time.sleep(30)

    usual = signal.getsignal(signal.SIGTERM)
    assert run_job(types.SimpleNamespace(__name__="jobs.fake", __doc__="A job.", run=run), []) == code
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; start the same command again to go on"
    assert signal.getsignal(signal.SIGTERM) is usual


def test_a_full_disk_is_one_line_and_something_unavailable(tmp_path, capsys):
    def run(config):
        with open("/dev/full", "w") as file:
            file.write("x")

    assert run_job(types.SimpleNamespace(__name__="jobs.fake", __doc__="A job.", run=run), []) == UNAVAILABLE
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: no space is left on the disk")
    assert "start the same command again" in last
    assert known_cause(SafetensorError("I/O error: No space left on device (os error 28)")) is not None
    assert known_cause(OSError(5, "Input/output error")) is None


def test_what_a_verb_can_check_without_ray_is_refused_before_ray_starts(home, monkeypatch, capsys):
    import jobs.run.session
    from jobs import evaluate, explain, export

    monkeypatch.setattr(jobs.run.session, "ray_session", lambda: pytest.fail("Ray was started"))
    for job, wanted in ((export, "distill"), (evaluate, "distill"), (explain, "distill")):
        assert run_job(job, ["name=mine", "explain.text=a text"]) == BAD_INPUT
        assert f"python jobs/{wanted}.py" in capsys.readouterr().err.splitlines()[-1]
    (home / "runs" / "mine").mkdir(parents=True)
    (home / "runs" / "mine" / "manifest.json").write_text("{}")
    assert run_job(export, ["name=mine"]) == BAD_INPUT
    assert "evaluate the run first: `python jobs/evaluate.py name=mine`" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_job(job_that(ZeroDivisionError()), [])


def test_an_unknown_key_ends_with_code_2(capsys):
    assert run_job(job_that(AssertionError("must not run")), ["train.nope=1"]) == BAD_INPUT
    assert "unknown key train.nope" in capsys.readouterr().err


def test_show_prints_config_and_plan_and_starts_nothing(capsys):
    assert run_job(job_that(AssertionError("must not run")), ["--show", "train.steps=5"]) == 0
    printed = capsys.readouterr().out
    assert "steps: 5" in printed
    assert "6.30 M parameters, 3.61x fewer; 7.7 MB, 11.76x smaller" in printed


def test_a_cause_is_found_behind_rays_wrappers():
    original = InputError("the mistake")
    task_error = ray.exceptions.RayTaskError("f", "traceback", original).as_instanceof_cause()
    assert known_cause(task_error) is original
    outer = RuntimeError("training failed")
    outer.worker_failures = {0: task_error}
    assert known_cause(outer) is original
    chained = RuntimeError("data failed")
    chained.__cause__ = task_error
    assert known_cause(chained) is original
    controlled = RuntimeError("the controller failed")
    controlled.controller_failure = original
    assert known_cause(controlled) is original
    assert known_cause(RuntimeError("a bug")) is None


def died_at_start(error: str) -> Exception:
    return ray.exceptions.ActorDiedError(
        ray.exceptions.RayTaskError("f", f"Traceback:\n  ...\n{error}", RuntimeError())
    )


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.ActorDiedError(),
    ],
)
def test_a_process_that_is_gone_is_one_line_and_something_unavailable(error, capsys):
    assert run_job(job_that(error), []) == UNAVAILABLE
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "a worker's process ended amid its work" in said[0]
    assert type(error).__name__ in said[0]


def test_what_a_worker_says_as_it_starts_is_the_cause_and_what_nobody_knows_stays_a_bug():
    said = known_cause(died_at_start("vector_store.errors.StoreUnavailable: the store is away"))
    assert isinstance(said, StoreUnavailable)
    assert str(said) == "the store is away"
    assert known_cause(died_at_start("ZeroDivisionError: division by zero")) is None


def test_a_mistake_is_found_beside_a_process_that_is_gone():
    outer = RuntimeError("training failed")
    outer.worker_failures = {0: ray.exceptions.ActorDiedError(), 1: InputError("the mistake")}
    assert str(known_cause(outer)) == "the mistake"


def test_a_training_goes_on_after_a_process_that_is_gone_and_ends_at_a_mistake():
    Recovery().after_exception(None, {0: ray.exceptions.ActorDiedError()})
    with pytest.raises(InputError, match="the mistake"):
        Recovery().after_exception(None, {0: InputError("the mistake")})


def test_a_ray_that_does_not_start_is_one_line_and_something_unavailable(monkeypatch):
    def times_out(**options):
        raise Exception("The current node timed out during startup. This could happen because\nof much.")

    monkeypatch.setattr(ray, "init", times_out)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        UnavailableError, match="Ray did not start on this machine: Exception: The current node timed out"
    ) as own:
        enter(ray_session())
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UnavailableError, match=r"cannot join the Ray cluster at auto") as joined:
        enter(ray_session())
    for error in (own.value, joined.value):
        assert known_cause(error) is error
        assert "\n" not in str(error)


def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch):
    """Ray itself asks for minutes, and says so in lines of its own."""
    (port,) = free_ports(1, "127.0.0.1")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray is not asked"))
    with pytest.raises(
        UnavailableError, match=rf"cannot join the Ray cluster at 127\.0\.0\.1:{port}: .*refused.*unset RAY_ADDRESS"
    ):
        enter(ray_session())


def enter(session):
    with session:
        raise AssertionError("Ray has not started")


def test_rays_limits_are_set_before_a_job_imports_ray(monkeypatch):
    monkeypatch.delenv("RAY_raylet_start_wait_time_s", raising=False)
    seen = []

    def import_job():
        seen.append({**os.environ}["RAY_raylet_start_wait_time_s"])
        return job_that(InputError("no more"))

    assert launch._run("jobs.fake", "A job.", [], import_job) == BAD_INPUT
    assert seen == ["180"]
