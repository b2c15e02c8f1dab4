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
