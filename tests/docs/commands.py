"""What a shell block of the documents would run, and whether each command is one that its program takes. Runs none of them.

Bash itself reads the block, in a folder of its own, where every program is a stub that writes down how it was called: loops,
pipes, variables and substitutions are bash's. What is written down is then checked against the real command lines.
"""

import argparse
import importlib
import itertools
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import click
import typer
import yaml
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli
from typer._click.core import Command
from typer._click.exceptions import ClickException

from jobs import launch
from jobs.config import RunConfig
from jobs.service.schema import EmbeddingRequest
from refbert.command import app as refbert_app

REPOSITORY = Path(__file__).parents[2]
STUB = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" > "$CALLS/$$"
while read -r _; do :; done
"""
"""A program that notes how it was called, and reads what is piped to it: else a pipe that breaks would fail its block."""
IN_POD = "/etc/refbert/run.yaml"
"""Where the pods of docs/kubernetes.md find the run."""


def make_shadow(folder: Path) -> None:
    """Make the folder in which blocks are run: stubs of programs, an environment, and the runs that documents name."""
    for program in [*PROGRAMS, "cluster/qdrant-certificate.sh"]:
        if "/" in program:
            assert os.access(REPOSITORY / program, os.X_OK), program
        stub = folder / program if "/" in program else folder / "bin" / program
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(STUB)
        stub.chmod(0o755)
    activate = folder / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    (folder / "RUN.yaml").write_text((REPOSITORY / "jobs/configs/quickstart.yaml").read_text())
    (folder / "jobs").symlink_to(REPOSITORY / "jobs")
    for document in yaml.safe_load_all((REPOSITORY / "cluster/kubernetes/foundation.yaml").read_text()):
        if "run.yaml" in document.get("data", ()):
            (folder / "run-in-pod.yaml").write_text(document["data"]["run.yaml"])


def calls(block: str, before: Sequence[str], folder: Path) -> list[list[str]]:
    """Run a block after those before it in its document; return what it called. Raises AssertionError for a failing line."""
    earlier, own = folder / "earlier", folder / "own"
    for calls_folder in (earlier, own):
        calls_folder.mkdir(exist_ok=True)
        for call in calls_folder.iterdir():
            call.unlink()
    script = "\n".join(["set -eu -o pipefail", *before, "wait", f"export CALLS={own}", block, "wait"])
    environment = {"PATH": str(folder / "bin"), "CALLS": str(earlier), "HOME": str(folder)}
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return [call.read_text().split("\0")[:-1] for call in sorted(own.iterdir(), key=lambda call: int(call.name))]


def check(call: Sequence[str], folder: Path) -> None:
    """Raise AssertionError where a program would not take a call, or a file that it names does not exist."""
    program, *arguments = call
    for word in arguments:
        named = re.match(r"(refbert|vector_store|jobs|cluster|docker|tests|benchmarks|docs)/[\w.*/-]+", word)
        assert not named or any(REPOSITORY.glob(named[0])), f"{word}: no such file"
    PROGRAMS.get(program, paths_alone)(arguments, folder)


class _Parsed(BaseException):
    """A command line was right: its program is not to go on."""


def python(arguments: Sequence[str], folder: Path) -> None:
    """Check a job against its own command line and config, any other program against its parser."""
    script, *rest = arguments
    if script == "-m" and rest[0] == "pytest":
        return pytest_selection(rest[1:])
    job = re.fullmatch(r"jobs/(\w+)\.py", script)
    if job:
        assert job_config(job[1], rest, folder)
        return None

    def parsed(parser: argparse.ArgumentParser, *given: object) -> object:
        taken = whole(parser, *given)
        raise _Parsed(taken)

    name, words = (rest[0], rest[1:]) if script == "-m" else (script, rest)
    whole = argparse.ArgumentParser.parse_args
    with (
        patch.object(argparse.ArgumentParser, "parse_args", parsed),
        patch.object(sys, "argv", [name, *words]),
        patch.object(sys, "path", [str((REPOSITORY / name).parent), *sys.path]),  # where a script's own imports are
    ):
        try:
            if script == "-m":
                with warnings.catch_warnings():
                    # runpy warns of a module that another test has imported: to run it anew is meant.
                    again = "'.*' found in sys.modules after import of package"
                    warnings.filterwarnings("ignore", again, RuntimeWarning)
                    runpy.run_module(name, run_name="__main__")
            else:
                runpy.run_path(str(REPOSITORY / name), run_name="__main__")
        except _Parsed as taken:
            check_entrypoint(getattr(taken.args[0], "entrypoint", ()), folder)
        except (SystemExit, ImportError) as refused:
            raise AssertionError(f"python {' '.join(arguments)}: {refused}") from refused
        else:
            raise AssertionError(f"python {' '.join(arguments)} parses no arguments")
    return None


def job_config(job: str, arguments: Sequence[str], folder: Path) -> RunConfig:
    """Let a job read its command line and its config, as with --show; return the config."""
    shown: list[RunConfig] = []
    given = [str(folder / "run-in-pod.yaml") if word == IN_POD else word for word in arguments]
    with (
        patch.object(launch, "show", lambda config, has_plan: shown.append(config)),
        patch.dict(os.environ, REFBERT_HOME=str(folder)),
    ):
        try:
            code = launch.run_job(importlib.import_module(f"jobs.{job}"), [*given, "--show"])
        except (SystemExit, ImportError) as refused:
            raise AssertionError(f"jobs/{job}.py {' '.join(arguments)}: {refused}") from refused
    assert code == 0, f"jobs/{job}.py {' '.join(arguments)} ends with {code}"
    return shown[0]


def pytest_selection(arguments: Sequence[str]) -> None:
    """Check that selected test functions exist; files are checked already."""
    for word in arguments:
        file, _, name = word.partition("::")
        assert not name or f"def {name}(" in (REPOSITORY / file).read_text(), f"{file} has no {name}"


def make(arguments: Sequence[str], folder: Path) -> None:
    """Check targets."""
    for word in arguments:
        assert "=" in word or f"\n{word}:" in (REPOSITORY / "Makefile").read_text(), f"make has no {word}"


def of_click(
    group: Any, command: type = click.Command, refusal: type[Exception] = click.ClickException
) -> Callable[[Sequence[str], Path], None]:
    """Check against a click program, which reads its options and does nothing."""

    def checked(arguments: Sequence[str], folder: Path) -> None:
        taken: list[click.Context] = []
        with patch.object(command, "invoke", lambda _, context: taken.append(context)):
            try:
                group.main(list(arguments), standalone_mode=False)
            except refusal as refused:
                raise AssertionError(f"{' '.join(arguments)}: {refused}") from refused
        check_entrypoint(taken[-1].params.get("entrypoint", ()), folder)

    return checked


def refbert(arguments: Sequence[str], folder: Path) -> None:
    """Check the package's own command; typer has a click of its own. What goes to the store, against the store's verbs."""
    if arguments[:1] == ["store"]:
        python(["-m", "vector_store", *arguments[1:]], folder)
    else:
        of_click(typer.main.get_command(refbert_app), Command, ClickException)(arguments, folder)


def check_entrypoint(command: Sequence[str], folder: Path) -> None:
    """Check what a job's submission would run."""
    command = [*command[1:]] if command[:1] == ["--"] else command
    if command:
        check(command, folder)


def docker(arguments: Sequence[str], folder: Path) -> None:
    """Check the Dockerfile's targets."""
    for option, value in itertools.pairwise(arguments):
        stages = re.findall(r"^FROM .* AS (\S+)$", (REPOSITORY / "docker/Dockerfile").read_text(), re.MULTILINE)
        assert option != "--target" or value in stages, f"no stage {value}"


def kubectl(arguments: Sequence[str], folder: Path) -> None:
    """Check what runs in a pod."""
    command = list(arguments)[list(arguments).index("--") + 1 :] if "--" in arguments else ()
    check_entrypoint(command, folder)


def curl(arguments: Sequence[str], folder: Path) -> None:
    """Check a request to the service: its path is one of the API's, its body one that it takes."""
    (url,) = (word for word in arguments if word.startswith("127.0.0.1:"))
    path = urlsplit(f"//{url}").path
    assert f'("{path}"' in (REPOSITORY / "jobs/service/api.py").read_text(), f"the API has no {path}"
    if "-d" in arguments:
        body = json.loads(arguments[list(arguments).index("-d") + 1])
        assert path != "/v1/embeddings" or EmbeddingRequest.model_validate(body)


def pip(arguments: Sequence[str], folder: Path) -> None:
    """Check the extras of what is installed."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), f"no such extra: {extras}"


def paths_alone(arguments: Sequence[str], folder: Path) -> None:
    """Check no more than the files that a call names."""


PROGRAMS: dict[str, Callable[[Sequence[str], Path], None]] = {
    "python": python,
    "pip": pip,
    "make": make,
    "ray": of_click(ray_cli),
    "serve": of_click(serve_cli),
    "refbert": refbert,
    "docker": docker,
    "kubectl": kubectl,
    "curl": curl,
    **dict.fromkeys(("base64", "cat", "git", "grep", "head", "helm", "openssl", "rm", "sed"), paths_alone),
}
"""The programs that documents may call. What needs a cluster is checked for its files and what it runs there, no more."""
