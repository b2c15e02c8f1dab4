"""Exit codes: whatever Ray wraps around a mistake, the user reads one line."""

import types

import pytest
import ray

from jobs.launch import run_job
from jobs.run.failures import BAD_INPUT, UNAVAILABLE, known_cause
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
    assert "3.30 M parameters, 6.88x smaller" in printed


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
