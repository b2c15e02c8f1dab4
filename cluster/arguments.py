"""Command line of `python -m cluster`: its commands with their options and examples. Only parses."""

import argparse

EXAMPLES = {
    "up": """
  python -m cluster up                                  # a head, two workers and the store of $REFBERT_HOME, on loopback
  python -m cluster up --workers 4 --cpus-per-worker 2
  QDRANT_API_KEY=secret python -m cluster up --host 10.0.0.5     # so that other machines may join""",
    "status": """
  python -m cluster status""",
    "submit": """
  python -m cluster submit -- python jobs/distill.py train.num_workers=2 train.global_batch=64
  python -m cluster submit --working-dir . -- python jobs/distill.py mine.yaml
  python -m cluster submit --no-wait -- python jobs/ingest.py mine.yaml""",
    "down": """
  python -m cluster down""",
}

HELP = {
    "up": "start a Ray head, workers and the embedded store on this machine; starts only what is missing",
    "status": "show which parts run, and the jobs; exit code 0 where all parts run, 1 where not, 3 without a cluster",
    "submit": "run a command as a Ray job on the cluster: prints its output and exits with its code",
    "down": "stop what `up` has started, and nothing else",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command (as `command`) and its options; exits with code 2 and a usage line where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster",
        description="A Ray cluster and the reference memory on one machine, with the same parts as a cluster of many machines. "
        "Its state, logs and store are under $REFBERT_HOME (default: the current directory).",
        epilog="examples:" + "".join(EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verbs = {
        verb: commands.add_parser(
            verb,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="examples:" + EXAMPLES[verb],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for verb, text in HELP.items()
    }
    up = verbs["up"]
    up.add_argument("--workers", type=_positive, default=2, metavar="N", help="worker nodes (default: %(default)s)")
    up.add_argument(
        "--cpus-per-worker",
        type=_positive,
        metavar="N",
        help="logical CPUs of each (default: the cores, divided evenly)",
    )
    up.add_argument(
        "--gpus-per-worker", type=_natural, default=0, metavar="N", help="GPUs of each (default: %(default)s)"
    )
    up.add_argument("--head-cpus", type=_natural, default=1, metavar="N", help="logical CPUs of the head (default: 1)")
    up.add_argument(
        "--host",
        default="127.0.0.1",
        help="where to listen; off loopback the store needs a key in $QDRANT_API_KEY, and Ray takes all interfaces "
        "(default: %(default)s)",
    )
    up.add_argument(
        "--dashboard-port",
        type=_natural,
        default=8265,
        metavar="PORT",
        help="0 takes a free one (default: %(default)s)",
    )
    up.add_argument("--no-store", action="store_true", help="no embedded store: jobs name one by store.url")

    submit = verbs["submit"]
    submit.add_argument(
        "--working-dir",
        metavar="PATH",
        help="folder to send to the cluster; without it the job runs in this repository",
    )
    submit.add_argument("--no-wait", action="store_true", help="print the job's id and return at once")
    submit.add_argument("entrypoint", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")

    given = parser.parse_args(arguments)
    if given.command == "submit":
        given.entrypoint = [*given.entrypoint[1:]] if given.entrypoint[:1] == ["--"] else given.entrypoint
        if not given.entrypoint:
            submit.error("nothing to run; write it after --, such as: submit -- python jobs/distill.py")
    return given


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
