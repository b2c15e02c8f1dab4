"""`python -m vector_store`: serve a directory, or show what a memory holds. Arguments only; the work is elsewhere."""

import argparse
import logging
import os
import sys

from vector_store.config import MESSAGE_BYTES, StoreConfig
from vector_store.errors import CollectionMismatch, StoreError, StoreUnavailable
from vector_store.server.process import ALREADY_SERVED, AlreadyServed, embedded_server, serve

EXAMPLE = """examples:
  python -m vector_store serve ./store --port 6334
  MY_KEY=secret python -m vector_store serve ./store --host 0.0.0.0 --port 6334 --api-key-env MY_KEY
  python -m vector_store info ./store
  python -m vector_store info http://127.0.0.1:6334
"""


def main() -> int:
    """Run one command; the exit code says whether bad input (2) or a missing server (3) ended it."""
    arguments = _parse()
    try:
        if arguments.command == "serve":
            _serve(arguments)
        elif arguments.place.startswith(("http://", "https://")):
            _print_info(arguments.place, arguments.api_key_env)
        else:
            with embedded_server(arguments.place) as url:
                _print_info(url, arguments.api_key_env)
    except AlreadyServed as error:
        print(error, file=sys.stderr)
        return ALREADY_SERVED
    except StoreUnavailable as error:
        print(error, file=sys.stderr)
        return 3
    except StoreError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vector_store",
        description="The reference memory: a local server that speaks Qdrant's gRPC API.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    key = argparse.ArgumentParser(add_help=False)
    key.add_argument(
        "--api-key-env",
        default=StoreConfig().api_key_env,
        metavar="NAME",
        help="environment variable that holds the API key (default: %(default)s)",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    serving = commands.add_parser("serve", parents=[key], help="serve a directory until SIGTERM", epilog=EXAMPLE)
    serving.formatter_class = argparse.RawDescriptionHelpFormatter
    serving.add_argument("path", metavar="PATH", help="the store's directory, made if missing")
    serving.add_argument("--host", default="127.0.0.1", help="off loopback a key is required (default: %(default)s)")
    serving.add_argument("--port", type=int, default=0, help="0: the previous port if free, else any")
    serving.add_argument(
        "--message-bytes", type=int, default=MESSAGE_BYTES, help="largest message (default: %(default)s)"
    )
    serving.add_argument("--until-unused", action="store_true", help="end when no process holds the store's lease")

    info = commands.add_parser("info", parents=[key], help="collections, points and manifests", epilog=EXAMPLE)
    info.formatter_class = argparse.RawDescriptionHelpFormatter
    info.add_argument("place", metavar="PATH_OR_URL", help="a store's directory, or http(s)://host:port")
    return parser.parse_args()


def _serve(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(
        arguments.path,
        host=arguments.host,
        port=arguments.port,
        api_key=os.environ.get(arguments.api_key_env),
        message_bytes=arguments.message_bytes,
        until_unused=arguments.until_unused,
    )


def _print_info(url: str, api_key_env: str) -> None:
    from vector_store.client import connect  # serving needs none of the client
    from vector_store.store import Store, collection_names

    config = StoreConfig(url=url, api_key_env=api_key_env)
    with connect(config, url) as client:
        names = collection_names(client)
        print(f"{url}: {len(names)} collection(s)")
        for name in names:
            store = Store(client, config.model_copy(update={"collection": name}))
            try:
                manifest = store.manifest().model_dump_json()
            except CollectionMismatch as error:
                manifest = str(error)
            print(f"{name}: {store.count()} points\n  {manifest}")


if __name__ == "__main__":
    sys.exit(main())
