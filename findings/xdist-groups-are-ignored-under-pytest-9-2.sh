#!/usr/bin/env bash
# pytest 9.2.0, pytest-xdist 3.8.0
#
# Guess: `pytest -n 2 --dist loadgroup` runs all tests that are marked `xdist_group("one")` in one and the same process.
# Found: the mark has no effect, and nothing says so. xdist's workers append the group to the private attribute `_nodeid` of
# each item; items of pytest 9.2 do not read it any more, so that every test is a group of its own. What shares one server or
# one database by its group is then used by two processes at once.
# Output seen on 2026-11-28: `processes of the one group: 2`. A scheduler of one's own, by the hook `pytest_xdist_make_scheduler`,
# works.
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "pytest==9.2.0" "pytest-xdist==3.8.0"
cat > test_group.py <<'PY'
import os
import pathlib
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(4))
def test_in_one_process(number):
    time.sleep(1)
    pathlib.Path(f"process-{os.getpid()}").touch()
PY
venv/bin/python -m pytest -q -n 2 --dist loadgroup test_group.py
processes=$(find . -maxdepth 1 -name 'process-*' | wc -l)
echo "processes of the one group: $processes"
[ "$processes" -eq 2 ]
