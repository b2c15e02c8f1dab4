"""What comes first where a verb runs as a script: the checkout on the path, and a check of the verb's extras.

`jobs` is in no wheel. Python puts the script's own folder on the path; the checkout takes its place, and a file such as
evaluate.py can then shadow no library. One package of each extra that the verb needs is looked for; where it is missing, the
script ends with one line. Only scripts import this, as the module `checkout` of their own folder.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

EXTRAS = {"qdrant_client": "memory", "ray": "cluster"}
SERVICE = {"fastapi": "serve"}
"""A package of each extra of pyproject.toml, and the extra; the service's are needed by the verbs that start it."""

UNAVAILABLE = 3


def prepare(verb: str) -> None:
    """Put the checkout on the path; end in one line where an extra that the verb needs is not installed."""
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    needed = EXTRAS | (SERVICE if verb in ("serve", "demo") else {})
    if missing := [package for package in needed if find_spec(package) is None]:
        install = f'python -m pip install -e ".[{",".join(needed.values())}]"'
        print(
            f"error: jobs/{verb}.py needs {', '.join(missing)}, not installed; in the checkout, run `{install}`",
            file=sys.stderr,
        )
        sys.exit(UNAVAILABLE)


prepare(Path(sys.argv[0]).stem)
