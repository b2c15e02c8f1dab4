"""`python -m vector_store`: commands that serve, show and administer a memory. Prints; other modules do the work."""

import argparse
import glob
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vector_store.arguments import PROGRAM, parse
from vector_store.errors import CollectionMismatch, StoreError, StoreUnavailable

if TYPE_CHECKING:  # a server needs no client: each command imports what it uses
    from vector_store.client import Client
    from vector_store.copies import CopyDifferences
    from vector_store.store import Store

FINE, DIFFERENT, BAD, UNAVAILABLE = 0, 1, 2, 3

SHOWN_WITHIN_S = 10.0
"""Time for each collection that is listed: one whose shards are away does not keep the others waiting for long."""


def main(words: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run one command; `words` replaces the command line of `program`.

    Returns 2 for bad input or points, 3 where no server answers.
    """
    arguments = parse(words, program)
    try:
        from vector_store.server.process import ALREADY_SERVED, AlreadyServed
    except ModuleNotFoundError as error:
        print(f"the store needs {error.name}, which is not installed: pip install 'refbert[memory]'", file=sys.stderr)
        return UNAVAILABLE

    def say(error: Exception) -> None:
        """Name options and program as this command line does, where errors name a run's."""
        print(str(error).replace("store.collection", "--collection").replace(PROGRAM, program), file=sys.stderr)

    try:
        return VERBS[arguments.command](arguments)
    except AlreadyServed as error:
        say(error)
        return ALREADY_SERVED
    except StoreUnavailable as error:
        say(error)
        return UNAVAILABLE
    except (StoreError, OSError) as error:  # OSError: such as a folder that cannot be written, or a full disk
        say(error)
        return BAD


def _serve(arguments: argparse.Namespace) -> int:
    from vector_store.client import key_in
    from vector_store.server.process import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(
        arguments.path,
        host=arguments.host,
        port=arguments.port,
        api_key=key_in(arguments.api_key_env),
        message_bytes=arguments.message_bytes,
        until_unused=arguments.until_unused,
        rest_port=arguments.rest_port,
    )
    return FINE


def _info(arguments: argparse.Namespace) -> int:
    from vector_store.location import config_of, is_url
    from vector_store.server.process import rest_url
    from vector_store.store import Store, collection_names, scanned

    config = config_of(arguments.api_key_env).model_copy(update={"write_deadline_s": SHOWN_WITHIN_S})
    num_away = 0
    with _client(arguments) as client:
        names = collection_names(client)
        print(f"{client.url}: {len(names)} collection(s)")
        if not is_url(arguments.location) and (rest := rest_url(arguments.location)):
            print(f"  REST: {rest}")
        for url in client.silent():
            print(f"  {url} does not answer")
        for name in names:
            store = Store(client, config.model_copy(update={"collection": name}))
            state = None
            try:
                num_points, warnings = store.count(), store.warnings()
                manifest = store.manifest().model_dump_json()
                state = store.index_state()
            except CollectionMismatch as error:
                manifest = str(error)
            except StoreUnavailable as error:
                num_away += 1
                print(f"{name}: cannot be read now\n  {error}")
                continue
            except StoreError as error:  # damaged: the others are shown all the same
                print(f"{name}: {error}")
                continue
            print(f"{name}: {num_points} points\n  {manifest}")
            if state and state.scans:
                print(f"  {scanned(state)}")
            _print_some("warning", warnings, len(warnings))
    return UNAVAILABLE if num_away else FINE


def _verify(arguments: argparse.Namespace) -> int:
    from vector_store.copies import compare_copies
    from vector_store.location import config_of
    from vector_store.store import Store
    from vector_store.verification import verify

    config = config_of(arguments.api_key_env, arguments.collection)
    with _client(arguments) as client:
        store = Store(client, config)
        num_points = store.count()
        with _bar("copies", num_points) as advance:
            copies = compare_copies(client, config, arguments.repair, advance)
        with _bar("verify", num_points) as advance:
            found = verify(store, advance)
    print(f"{arguments.collection}: {found.num_checked} points checked, {found.num_bad} bad")
    for reason, num_points in found.reasons.most_common():
        print(f"  {num_points} x {reason}")
    _print_some("bad", [f"{identifier}: {reason}" for identifier, reason in found.first_bad], found.num_bad)
    _print_some("lost", found.lost, len(found.lost))
    if copies.num_copies > 1:
        _print_copies(copies)
    if found.num_bad or found.lost or copies.num_left:
        return BAD
    return UNAVAILABLE if copies.unread else FINE


def _print_copies(found: "CopyDifferences") -> None:
    print(f"copies: {found.num_compared} points compared in {found.num_copies} copies, {found.num_differing} differ")
    for line in found.shard_counts:
        print(f"  {line}")
    for url, num_points in sorted(found.missing.items()):
        print(f"  {url} lacks {num_points}")
    _print_some("differing", [f"{identifier}: {how}" for identifier, how in found.first_differing], found.num_differing)
    if found.num_repaired:
        print(f"  {found.num_repaired} written again, {found.num_left} still differ")
    elif found.num_left:
        print("  write them again: the same command with --repair")
    if found.unread:
        print(f"  not every copy was compared: {found.unread}")


def _delete(arguments: argparse.Namespace) -> int:
    (where,) = (
        (field, getattr(arguments, field))
        for field in ("source", "document", "split")
        if getattr(arguments, field) is not None
    )
    named = f"points of {arguments.collection} with {where[0]}={where[1]!r}"
    with _store(arguments) as store:
        if arguments.yes:
            print(f"deleted {store.delete(where)} {named}")
        else:
            print(f"would delete {store.count(where)} {named}; add --yes to delete them")
    return FINE


def _readmit(arguments: argparse.Namespace) -> int:
    with _store(arguments) as store:
        print(
            f"{store.readmit()} deleted points of {arguments.collection} are stored again by the next ingest or import"
        )
    return FINE


def _snapshot(arguments: argparse.Namespace) -> int:
    from vector_store.location import is_url
    from vector_store.snapshots import create_snapshot, delete_snapshot, list_snapshots

    with _client(arguments) as client:
        if arguments.delete:
            delete_snapshot(client, arguments.collection, arguments.delete)
            print(f"deleted {arguments.delete}")
            return FINE
        made = (
            list_snapshots(client, arguments.collection)
            if arguments.list
            else [create_snapshot(client, arguments.collection)]
        )
    for snapshot in made:
        print(f"{snapshot.name}  {snapshot.size_bytes} bytes  sha256 {snapshot.checksum or 'not given'}")
        if not is_url(arguments.location):  # in a folder of the collection's own name, which an alias is not
            for path in Path(arguments.location).absolute().glob(f"snapshots/*/{glob.escape(snapshot.name)}"):
                print(f"  {path}")
    return FINE


def _restore(arguments: argparse.Namespace) -> int:
    from vector_store.client import key_in
    from vector_store.location import config_of, is_url
    from vector_store.snapshots import restore_directory, restore_server

    config_of(arguments.api_key_env, arguments.collection)
    if is_url(arguments.location):
        key = key_in(arguments.api_key_env)
        counted = restore_server(arguments.location, arguments.collection, arguments.archive, key, arguments.rest_port)
        print(f"restored {arguments.collection} from {arguments.archive}: {counted} points")
    else:
        restore_directory(Path(arguments.location), arguments.collection, arguments.archive)
        print(f"restored {arguments.collection} from {arguments.archive}")
    return FINE


def _export(arguments: argparse.Namespace) -> int:
    from vector_store.transfer import export_points

    with _store(arguments) as store, _bar("export", store.count()) as advance:
        done = export_points(store, arguments.folder, arguments.rows_per_file, advance)
    print(
        f"{arguments.collection}: {done.num_points} points exported to {len(done.files)} file(s) in {arguments.folder}"
    )
    _print_some(
        "left out, no store would accept it",
        [f"{identifier}: {reason}" for identifier, reason in done.first_left_out],
        done.num_left_out,
    )
    return BAD if done.num_left_out else FINE


def _import(arguments: argparse.Namespace) -> int:
    from vector_store.transfer import import_points, read_export

    rows = read_export(arguments.folder).rows  # raises before a store is created
    with _store(arguments, create=True) as store, _bar("import", rows) as advance:
        done = import_points(store, arguments.folder, advance)
    print(
        f"{arguments.collection}: {done.num_read} points read, {done.num_skipped} already stored, {done.num_written} written"
    )
    if done.num_deleted:
        print(f"  {done.num_deleted} were deleted before and are not stored again; `readmit` allows it")
    return FINE


def _convert(arguments: argparse.Namespace) -> int:
    from vector_store.conversion import convert
    from vector_store.location import config_of
    from vector_store.store import Store
    from vector_store.term_statistics import publish_term_statistics

    with _client(arguments) as client:
        old, new = (config_of(arguments.api_key_env, name) for name in (arguments.collection, arguments.new))
        source, target = Store(client, old), Store(client, new)
        with _bar("convert", source.count()) as advance:
            num_written = convert(source, target, arguments.vocabulary, advance)
        publish_term_statistics(client, target.config)
        print(
            f"{arguments.new}: {num_written} points written, {target.count()} in all; {arguments.collection} is as it was"
        )
    return FINE


def _compare(arguments: argparse.Namespace) -> int:
    from vector_store.comparison import compare

    def side(location: str, collection: str | None) -> argparse.Namespace:
        named = {"location": location, "collection": collection or arguments.collection}
        return argparse.Namespace(**{**vars(arguments), **named})

    side_a = side(arguments.location_a, arguments.collection_a)
    side_b = side(arguments.location_b, arguments.collection_b)
    with _store(side_a) as a, _store(side_b) as b, _bar("compare", a.count()) as advance:
        found = compare(a, b, advance)
    if found.manifest_fields:
        print(f"manifests differ in {', '.join(found.manifest_fields)}")
    print(
        f"{found.num_equal} points equal, {found.num_differing} differing, {found.num_only_a} only in A, "
        f"{found.num_only_b} only in B"
    )
    if found.fields:
        print("  differing in " + ", ".join(f"{name} ({count})" for name, count in found.fields.most_common()))
        print(f"  largest difference of states: {found.state_difference:g}")
    _print_some("differing", found.first_differing, found.num_differing)
    _print_some("only in A", found.first_only_a, found.num_only_a)
    _print_some("only in B", found.first_only_b, found.num_only_b)
    return FINE if found.is_equal else DIFFERENT


def _versions(arguments: argparse.Namespace) -> int:
    from vector_store.location import config_of
    from vector_store.versions import promote, rollback, versions

    config = config_of(arguments.api_key_env)
    with _client(arguments) as client:
        if arguments.command == "promote":
            shown = [promote(client, config, arguments.alias, arguments.version, arguments.other_teacher)]
        elif arguments.command == "rollback":
            shown = [rollback(client, config, arguments.alias)]
        else:
            shown = versions(client, config.model_copy(update={"write_deadline_s": SHOWN_WITHIN_S}))
    for version in shown:
        before = f"cannot be read now: {version.away}" if version.away else version.previous or "none"
        print(f"{version.alias} -> {version.collection}  (before: {before})")
    return UNAVAILABLE if any(version.away for version in shown) else FINE


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "info": _info,
    "verify": _verify,
    "delete": _delete,
    "readmit": _readmit,
    "snapshot": _snapshot,
    "restore": _restore,
    "export": _export,
    "import": _import,
    "convert": _convert,
    "compare": _compare,
    "promote": _versions,
    "rollback": _versions,
    "aliases": _versions,
}


@contextmanager
def _client(arguments: argparse.Namespace, create: bool = False) -> Iterator["Client"]:
    from vector_store.location import config_of, connect_to

    with connect_to(arguments.location, config_of(arguments.api_key_env), create) as client:
        yield client


@contextmanager
def _store(arguments: argparse.Namespace, create: bool = False) -> Iterator["Store"]:
    from vector_store.location import config_of
    from vector_store.store import Store

    config = config_of(arguments.api_key_env, arguments.collection)
    with _client(arguments, create) as client:
        yield Store(client, config)


@contextmanager
def _bar(verb: str, num_points: int) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    # disable=None: no bar where stderr is no terminal.
    with tqdm(total=num_points, desc=verb, unit=" points", unit_scale=True, disable=None) as bar:
        yield bar.update


def _print_some(what: str, lines: list[str], num_all: int) -> None:
    for line in lines:
        print(f"  {what}: {line}")
    if num_all > len(lines):
        print(f"  {what}: and {num_all - len(lines)} more")


if __name__ == "__main__":
    sys.exit(main())
