"""How a job starts and ends: its command line, its Ray session, and one line with an exit code for a failure of known cause.

Exit codes: 0 fine, 1 a bug (traceback), 2 bad config or input, 3 something the job depends on is unavailable, 130 SIGINT,
143 SIGTERM.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import yaml

from jobs.config import QUICKSTART, RunConfig, load_config
from jobs.run.failures import INTERRUPTED, OK, TERMINATED, exit_code, known_cause
from jobs.run.interrupts import Terminated, sigterm_interrupts
from jobs.run.session import ray_has_gone, set_environment


class Verb(NamedTuple):
    """What is known of a verb before its module is imported, which takes seconds."""

    continues_run: bool = False
    """Without a YAML, the options are those that the named run was trained with."""
    plans: Callable[[RunConfig], RunConfig] | None = lambda config: config
    """The run whose plan `--show` prints; None for a verb that makes neither a memory nor a student, and has no plan."""


VERBS = {
    "adapt": Verb(continues_run=True, plans=RunConfig.adapting),
    **dict.fromkeys(("evaluate", "explain", "export", "predict", "serve"), Verb(continues_run=True, plans=None)),
}
"""The verbs that use a trained student."""


def launch(module: str, description: str | None) -> NoReturn:
    """Run a verb's script as its module, which Ray's workers can import, and end the process with its exit code.

    The module is imported when the command line has been read: `--help`, `--show` and a wrong config do not wait for
    torch, transformers and Ray.
    """
    code = _run(module, description, sys.argv[1:], lambda: importlib.import_module(module))
    if "ray" in sys.modules and ray_has_gone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Ray's own way out would wait a minute for a head that has gone
    sys.exit(code)


class CommandLine(NamedTuple):
    """What a job was given: its YAML or None, the overrides, and whether only to show the plan."""

    run: str | None
    overrides: list[str]
    show: bool


def read_command_line(verb: str, description: str | None, arguments: list[str]) -> CommandLine:
    """Parse a job's arguments. Ends the process for `--help` and for an unknown option."""
    parser = argparse.ArgumentParser(
        prog=f"python jobs/{verb}.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help=f"the run's YAML (default: {QUICKSTART.name}, the demo's)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="options to change, such as train.steps=100"
    )
    shown = "the resolved config" if VERBS.get(verb, Verb()).plans is None else "the resolved config and the plan"
    parser.add_argument("--show", action="store_true", help=f"print {shown}, and start nothing")
    given = parser.parse_intermixed_args(arguments)
    if given.run and "=" in given.run:
        return CommandLine(None, [given.run, *given.overrides], given.show)
    return CommandLine(given.run, given.overrides, given.show)


def run_job(job: Any, arguments: list[str]) -> int:
    """Run one job with command-line arguments; return the exit code."""
    return _run(job.__name__, job.__doc__, arguments, lambda: job)


def _run(module: str, description: str | None, arguments: list[str], import_job: Callable[[], Any]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    name = module.rpartition(".")[2]
    verb = VERBS.get(name, Verb())
    given = read_command_line(name, description, arguments)
    try:
        config = load_config(given.run, given.overrides)
        trained = config.run_directory / "config.yaml"
        if given.run is None and verb.continues_run and trained.exists():
            config = load_config(trained, given.overrides)
        if given.show:
            show(verb.plans(config) if verb.plans else config, has_plan=verb.plans is not None)
            return OK
        set_environment()  # before a job imports Ray
        job = import_job()
        from jobs.run.session import ray_session
        from jobs.run.worker import quiet_libraries

        quiet_libraries()
        if check := getattr(job, "check", None):
            check(config)  # what needs no Ray is refused before its start
        with sigterm_interrupts(), ray_session(), sigterm_interrupts():
            job.run(config)
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted; start the same command again to go on", file=sys.stderr)
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    except Exception as error:
        known = known_cause(error)
        if known is None or os.environ.get("REFBERT_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(known).split())}", file=sys.stderr)
        return exit_code(known)
    return OK


def show(config: RunConfig, has_plan: bool = True) -> None:
    """Print the resolved config, and what the run would make: parameters, bytes per reference, steps.

    The plan takes seconds where it loads the teacher: see `jobs.plan.teacher_outline`.
    """
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="", flush=True)
    if not has_plan:
        return
    from jobs.plan import plan  # numpy and pyarrow, which a config needs not

    print("plan:")
    for name, value in plan(config).items():
        print(f"  {name}: {value}")
