"""What a verb needs before its first import, where it runs as a script."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    ("arguments", "code", "says"), [("--help", 0, "Distil a student"), ("train.nope=1", 2, "train.nope")]
)
def test_help_and_a_wrong_config_need_no_heavy_import(arguments, code, says):
    script = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        f"sys.argv = ['jobs/distill.py', {arguments!r}]; sys.path.insert(0, 'jobs'); "
        "runpy.run_path('jobs/distill.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
