"""What a verb needs before its first import, where it runs as a script."""

import json
import subprocess
import sys
import types

import pytest

import cluster.arguments
import vector_store.arguments
from jobs.config import load_config
from jobs.launch import VERBS, Verb, run_job
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("verb", "missing", "extras"),
    [("distill", "ray", "memory,cluster"), ("serve", "fastapi", "memory,cluster,serve"), ("distill", "fastapi", None)],
)
def test_a_missing_extra_is_named_in_one_line_by_the_verbs_that_need_it(verb, missing, extras):
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['jobs/{verb}.py']; import checkout; print(sys.path[0])"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=REPOSITORY / "jobs", capture_output=True, text=True, check=False)
    if extras is None:
        assert (done.returncode, done.stdout.strip()) == (0, str(REPOSITORY.resolve()))
        return
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3
    assert f"needs {missing}, not installed" in line
    assert f'".[{extras}]"' in line


QUICK = """
HEAVY = {"torch", "transformers", "ray", "deepspeed", "datasets", "pyarrow", "scipy", "grpc", "fastapi"}
import contextlib, io, json, runpy, sys

sys.path.insert(0, "jobs")
ended = []
for words in json.load(sys.stdin):
    sys.argv = words
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            (runpy.run_path if words[0].endswith(".py") else runpy.run_module)(words[0], run_name="__main__")
        except SystemExit as end:
            ended.append([end.code, said.getvalue(), sorted(HEAVY & set(sys.modules))])
print(json.dumps(ended))
"""


def test_help_a_wrong_config_and_what_is_shown_wait_for_no_heavy_import():
    """All in one process: what one of them imports shows in it and in those after it."""
    jobs = [path for path in sorted((REPOSITORY / "jobs").glob("*.py")) if "launch(" in path.read_text()]
    wanted = [([f"jobs/{job.name}", "--help"], 0, "key.sub=value") for job in jobs if job.name != "launch.py"]
    assert len(wanted) == 10
    planned = [job.stem for job in jobs if job.name != "launch.py" and VERBS.get(job.stem, Verb()).plans]
    assert len(planned) == 5
    uses_student = [verb for verb, known in VERBS.items() if known.plans is None]
    wanted += [([f"jobs/{verb}.py", "--show", "serve.max_batch=7"], 0, "max_batch: 7") for verb in uses_student]
    wanted += [(["jobs/distill.py", "train.nope=1"], 2, "train.nope"), (["vector_store", "--help"], 0, "usage: ")]
    wanted += [(["vector_store", verb, "--help"], 0, "usage: ") for verb in vector_store.arguments.HELP]
    wanted += [
        (["cluster", *verb, "--help"], 0, "usage: ") for verb in ([], *([verb] for verb in cluster.arguments.HELP))
    ]
    wanted += [
        ([f"jobs/{verb}.py", "--show", "train.steps=7"], 0, "\nplan:\n") for verb in planned
    ]  # and what they import
    done = subprocess.run(
        [sys.executable, "-c", QUICK],
        cwd=REPOSITORY,
        input=json.dumps([words for words, _, _ in wanted]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (words, code, says), (ended, said, heavy) in zip(wanted, json.loads(done.stdout), strict=True):
        needed = {"grpc", "pyarrow"} if "\nplan:" in said else set()  # to make points, and to read a corpus
        assert (ended, set(heavy) - needed) == (code, set()), (words, said)
        assert says in said, words


def test_the_options_of_a_trained_student_are_shown_without_a_plan_and_those_of_a_run_with_one(capsys):
    job = types.SimpleNamespace(__name__="jobs.predict", __doc__="A job.")
    assert run_job(job, ["--show", "name=mine"]) == 0
    assert "name: mine\n" in (said := capsys.readouterr().out)
    assert "\nplan:" not in said
    assert VERBS["adapt"].plans(config := load_config(overrides=["adapt.collection=tickets"])) == config.adapting()
    assert config.adapting().store.collection == "tickets"
    assert config.adapting().references == config.adapt.references != config.references
