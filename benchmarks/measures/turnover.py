"""Disk of a memory whose texts are replaced all the time: what is deleted must make room for what comes.

Each round deletes one document by name, as a user does, and writes another of as many references. The server rebuilds the
shard beside its callers once enough is gone, so between two rebuilds the disk grows and then falls.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from measures.collection import fill, opened
from measures.goals import Goal, Part, Rows
from measures.points import load_snippets
from vector_store.schema import Point
from vector_store.server.files import folder_bytes
from vector_store.store import Store

HELD, REPLACED, ROUNDS = 2000, 50, 500
STATES = 32
"""Token states of a reference, where they are stored; `jobs/adapt.py` stores none."""

STILL_S = 60.0
"""A folder that is the same for so long is settled: a rebuild that is due comes sooner, once writes have paused."""

SETTLED_S = 300.0
"""Longest wait, after the last round, for the rebuild that is due: the server pauses between two."""

NOTE = (
    f"{HELD} spans of the demo's snippets ({{}}, keywords, dense index); each round deletes the oldest "
    f"document of {REPLACED} and writes a new one. Bytes are blocks of the collection's folder, logs included; a fresh store "
    "holds the same last points. `highest` is over the states after each round, with a copy of the shard that is being built."
)


def measure(quick: bool, folder: Path, has_states: bool = True) -> Part:
    """Replace round by round, then fill a fresh store with what is left."""
    rounds = ROUNDS // 10 if quick else ROUNDS
    snippets = load_snippets(3000 if quick else None)
    points, manifest = snippets.spans(HELD + rounds * REPLACED, STATES), snippets.manifest
    if not has_states:
        points = (replace(point, states=None) for point in points)
        manifest = manifest.model_copy(update={"tokens": 0})
    documents = (
        [replace(point, document=f"document {number}") for point in batch]
        for number, batch in enumerate(iter(lambda: list(itertools.islice(points, REPLACED)), []))
    )
    held = list(itertools.islice(documents, HELD // REPLACED))
    rows: Rows = []
    highest = 0
    collection = folder / "turnover" / "collections" / "cturnover"
    with opened(folder / "turnover", "turnover") as (client, config):
        fill(client, config, manifest, itertools.chain.from_iterable(held))
        begun = folder_bytes(collection)
        store = Store(client, config)
        for number, document in enumerate(documents, 1):
            store.delete(("document", str(held.pop(0)[0].document)))
            written(store, document)
            held.append(document)
            now = folder_bytes(collection)
            highest = max(highest, now)
            if number % (rounds // 10) == 0:
                rows.append({"round": number, "megabytes": now / 1e6, "over_first": now / begun})
        ended = folder_bytes(collection)
        settled, after_s = wait_settled(collection)
        if store.count() != HELD:
            raise RuntimeError(f"{store.count()} references are held after {rounds} rounds, wanted {HELD}")
    fresh_collection = folder / "fresh" / "collections" / "cfresh"
    with opened(folder / "fresh", "fresh") as (client, config):
        fill(client, config, manifest, itertools.chain.from_iterable(held))
        fresh = folder_bytes(fresh_collection)
    rows += [
        {"round": name, "megabytes": found / 1e6, "over_first": found / fresh}
        for name, found in (
            ("a fresh store", fresh),
            ("highest", highest),
            ("ended", ended),
            (f"{after_s:.0f} s later", settled),
        )
    ]
    kind = "" if has_states else "vectors_"
    goals = [
        Goal(f"disk_{kind}after_{rounds}_rounds_over_fresh", ended / fresh, 2.0, "<="),
        Goal(f"disk_{kind}once_rebuilt_over_fresh", settled / fresh, 2.0, "<="),
    ]
    note = NOTE.format("24 kB of token states" if has_states else "a vector each, no token states")
    return Part(rows, goals, note, {"rounds": rounds, "replaced": REPLACED, "held": HELD})


def written(store: Store, points: Sequence[Point]) -> None:
    """Write points. Raises RuntimeError where one is refused."""
    with store.writer() as writer:
        writer.submit(list(points))
        _, rejected = writer.finish()
    if rejected:
        raise RuntimeError(f"{len(rejected)} of {len(points)} points were refused")


def wait_settled(collection: Path) -> tuple[int, float]:
    """Wait until the folder is the same for STILL_S, or SETTLED_S; returns its bytes, and the seconds to the last change."""
    started_s = changed_s = time.monotonic()
    now = folder_bytes(collection)
    while time.monotonic() < min(changed_s + STILL_S, started_s + SETTLED_S):
        time.sleep(1)
        before, now = now, folder_bytes(collection)
        if now != before:
            changed_s = time.monotonic()
    return now, changed_s - started_s
