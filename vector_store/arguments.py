"""Command line of `python -m vector_store`: its commands with their options and examples. Only parses."""

import argparse
from pathlib import Path

from vector_store.config import MESSAGE_BYTES, StoreConfig

PROGRAM = "python -m vector_store"

EXAMPLES = {
    "serve": """
  python -m vector_store serve ./store --port 6334
  python -m vector_store serve ./store --port 6334 --rest-port 6333
  MY_KEY=secret python -m vector_store serve ./store --host 0.0.0.0 --port 6334 --api-key-env MY_KEY""",
    "info": """
  python -m vector_store info ./store
  python -m vector_store info http://127.0.0.1:6334""",
    "verify": """
  python -m vector_store verify ./store
  python -m vector_store verify http://qdrant:6334 --collection references-v2
  python -m vector_store verify http://a:6334,http://b:6334,http://c:6334 --repair      # copies of shards, too""",
    "delete": """
  python -m vector_store delete ./store --document d17           # says how many points that would be
  python -m vector_store delete ./store --source wiki.csv --yes""",
    "readmit": """
  python -m vector_store readmit ./store""",
    "snapshot": """
  python -m vector_store snapshot ./store
  python -m vector_store snapshot ./store --list
  python -m vector_store snapshot ./store --delete NAME""",
    "restore": """
  python -m vector_store restore ./store references.snapshot --collection references
  python -m vector_store restore http://qdrant:6334 references.snapshot --collection references --rest-port 6333""",
    "export": """
  python -m vector_store export ./store ./references-parquet""",
    "import": """
  python -m vector_store import ./references-parquet http://qdrant:6334 --collection references-v2""",
    "convert": """
  python -m vector_store convert ./store references-3
  python -m vector_store convert http://qdrant:6334 references-3 --collection references --vocabulary 250002""",
    "compare": """
  python -m vector_store compare ./store http://qdrant:6334 --collection-b references-v2""",
    "promote": """
  python -m vector_store promote http://qdrant:6334 references-live references-v2""",
    "rollback": """
  python -m vector_store rollback http://qdrant:6334 references-live""",
    "aliases": """
  python -m vector_store aliases http://qdrant:6334""",
}

HELP = {
    "serve": "serve a directory until SIGTERM",
    "info": "list collections, their points and manifests",
    "verify": "check every point against the manifest and its id, and every copy of it; exit code 2 where one is bad",
    "delete": "delete points by source, document or split; ingests and imports do not store them again",
    "readmit": "let the next ingest or import store deleted points again",
    "snapshot": "create a snapshot of a collection on the server; list or delete snapshots",
    "restore": "create a collection from a snapshot; a directory's store is restored while nothing uses it",
    "export": "write a collection to parquet files",
    "import": "write the points of an export that a collection does not have; run it again after an interruption",
    "convert": "write a collection of the format before into a new one; run it again after an interruption",
    "compare": "compare two collections; exit code 0 where they are equal, 1 where they differ",
    "promote": "switch an alias to a collection; running readers follow within a second",
    "rollback": "switch an alias back to the collection that it named before",
    "aliases": "list aliases, their collections and those before",
}

DEFAULTS = StoreConfig()


def parse(arguments: list[str] | None = None, program: str = PROGRAM) -> argparse.Namespace:
    """Parse the command (as `command`) and its options; exits with code 2 and a usage line where they are wrong.

    `program` is what the user calls it.
    """
    examples = {verb: text.replace(PROGRAM, program) for verb, text in EXAMPLES.items()}
    parser = argparse.ArgumentParser(
        prog=program,
        description="The reference memory: a local server with Qdrant's API, and administration of collections.",
        epilog="examples:" + "".join(examples.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verbs = {
        verb: commands.add_parser(
            verb,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog="examples:" + examples[verb],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for verb, text in HELP.items()
    }

    serving = verbs["serve"]
    serving.add_argument("path", metavar="PATH", help="the store's directory, created if missing")
    serving.add_argument("--host", default="127.0.0.1", help="off loopback a key is required (default: %(default)s)")
    serving.add_argument("--port", type=int, default=0, help="gRPC; 0: the previous port if free, else any")
    serving.add_argument(
        "--rest-port",
        type=int,
        help="serve Qdrant's REST API, too (0: the previous port if free, else any); needs the extra `rest`; off by default",
    )
    serving.add_argument(
        "--message-bytes", type=int, default=MESSAGE_BYTES, help="largest message (default: %(default)s)"
    )
    serving.add_argument("--until-unused", action="store_true", help="end when no process holds the store's lease")

    for verb in (
        "info",
        "verify",
        "delete",
        "readmit",
        "snapshot",
        "restore",
        "export",
        "convert",
        "promote",
        "rollback",
        "aliases",
    ):
        _add_location(verbs[verb], "location")
    verbs["verify"].add_argument(
        "--repair", action="store_true", help="write points that not every copy of their shard holds alike again"
    )
    _add_delete(verbs["delete"])
    _add_snapshots(verbs["snapshot"], verbs["restore"])
    _add_transfer(verbs["export"], verbs["import"], verbs["compare"])
    verbs["convert"].add_argument("new", metavar="NEW", help="name of the new collection")
    verbs["convert"].add_argument(
        "--vocabulary", type=_positive, default=30_522, help="tokens of the encoder's vocabulary (default: %(default)s)"
    )
    for verb in ("promote", "rollback"):
        verbs[verb].add_argument("alias", metavar="ALIAS", help="the name that readers use")
    verbs["promote"].add_argument("version", metavar="COLLECTION", help="the collection to name")
    verbs["promote"].add_argument(
        "--other-teacher",
        action="store_true",
        help="allow a collection that running readers would refuse: another teacher's, or of other states",
    )
    for verb in ("verify", "delete", "readmit", "snapshot", "export", "import", "convert"):
        _add_collection(verbs[verb], "--collection")
    for verb in HELP:
        verbs[verb].add_argument(
            "--api-key-env",
            default=DEFAULTS.api_key_env,
            metavar="NAME",
            help="environment variable that holds the API key (default: %(default)s)",
        )
    return parser.parse_args(arguments)


def _add_location(verb: argparse.ArgumentParser, name: str) -> None:
    verb.add_argument(name, metavar=name.upper(), help="a store's directory, or http(s)://host:port of a server")


def _add_collection(verb: argparse.ArgumentParser, option: str) -> None:
    verb.add_argument(option, default=DEFAULTS.collection, metavar="NAME", help="collection (default: %(default)s)")


def _add_delete(delete: argparse.ArgumentParser) -> None:
    which = delete.add_mutually_exclusive_group(required=True)
    for field in ("source", "document", "split"):
        which.add_argument(f"--{field}", metavar="VALUE", help=f"the points of this {field}")
    delete.add_argument("--yes", action="store_true", help="delete; without it the points are only counted")


def _add_snapshots(snapshot: argparse.ArgumentParser, restore: argparse.ArgumentParser) -> None:
    instead = snapshot.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="list the collection's snapshots and create none")
    instead.add_argument("--delete", metavar="NAME", help="delete a snapshot and create none")

    restore.add_argument("archive", metavar="ARCHIVE", type=Path, help="the snapshot's file, on this machine")
    restore.add_argument("--collection", required=True, metavar="NAME", help="name of the new collection")
    restore.add_argument(
        "--rest-port",
        type=int,
        default=6333,
        help="the server's REST port, its only way to restore (default: %(default)s)",
    )


def _add_transfer(
    export: argparse.ArgumentParser, importing: argparse.ArgumentParser, compare: argparse.ArgumentParser
) -> None:
    export.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder, or that of an unfinished export")
    export.add_argument(
        "--rows-per-file", type=_positive, default=100_000, help="points in one file (default: %(default)s)"
    )
    importing.add_argument("folder", metavar="FOLDER", type=Path, help="what `export` wrote")
    _add_location(importing, "location")
    _add_location(compare, "location_a")
    _add_location(compare, "location_b")
    _add_collection(compare, "--collection")
    for option in ("--collection-a", "--collection-b"):
        compare.add_argument(option, metavar="NAME", help="collection on this side alone (default: --collection)")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
