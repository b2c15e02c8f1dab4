"""Each file of a collection cut, zeroed or deleted after a kill -9: nothing acknowledged is lost in silence.

One server has a copy of the collection for each damage: that it serves the others is shown at the same time.
"""

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.chaos.faults import kill_server
from tests.chaos.load import make_point, manifest
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError
from vector_store.schema import Point
from vector_store.server.catalogue import folder_name
from vector_store.server.files import copy_file
from vector_store.server.process import embedded_server
from vector_store.store import Store
from vector_store.verification import verify

FLUSHED, IN_LOG = 60, 20
REPLACED = 10
"""Points that are also written a second time, after the flush."""


class Damage(NamedTuple):
    """What was done to which file of a collection's copy."""

    kind: str
    file: Path


def spoil(path: Path, kind: str) -> None:
    num_bytes = path.stat().st_size
    if kind == "deleted":
        path.unlink()
    else:
        os.truncate(path, num_bytes // 2 if kind == "cut" else 0)
        os.truncate(path, num_bytes // 2 if kind == "cut" else num_bytes)


def lacks_in_silence(store: Store, path: Path, wanted: dict[str, Point]) -> str | None:
    """What the collection lacks without a word of the server, which names a file of `path` and a remedy, or of `verify`."""
    try:
        found = verify(store)
        if found.lost or found.num_bad:
            return None
        held = {point.id: point for page in store.pages() for point in page}
    except StoreError as error:
        return None if str(path) in str(error) and "put back a copy" in str(error) else f"a riddle: {error}"
    if missing := wanted.keys() - held.keys():
        return f"{len(missing)} points are missing"
    for identifier, point in wanted.items():
        for field in ("vector", "token_ids", "states", "sentence"):
            if not np.array_equal(getattr(held[identifier], field), getattr(point, field)):
                return f"{field} of {point.text!r} is not as written"
        if not all(map(np.array_equal, held[identifier].keywords, point.keywords)):
            return f"keywords of {point.text!r} are not as written"
        if held[identifier].document != point.document:
            return f"document of {point.text!r} is not as written"
    return None


@pytest.mark.long  # its siblings are in tests/unit/vector_store/server/test_catalogue.py
@pytest.mark.timeout(900)
def test_no_damaged_file_loses_acknowledged_points_in_silence_or_keeps_others_from_being_served(tmp_path):
    path, described = tmp_path / "store", manifest()
    with embedded_server(path) as url, connect(StoreConfig(), url) as client:
        store = Store(client, StoreConfig())
        store.ensure(described)
        store.upsert([make_point(number, described) for number in range(FLUSHED)])
        time.sleep(7)  # longer than a server leaves its writes in the log alone
        again = [dataclasses.replace(make_point(number, described), document="second") for number in range(REPLACED)]
        store.upsert([*again, *(make_point(number, described) for number in range(FLUSHED, FLUSHED + IN_LOG))])
        wanted = {point.id: point for page in store.pages() for point in page}
        assert len(wanted) == FLUSHED + IN_LOG
        kill_server(path)

    sound = path / "collections" / folder_name("references")
    files = sorted(file.relative_to(sound) for file in sound.rglob("*") if file.is_file())
    chosen = [Damage(kind, file) for file in files for kind in ("cut", "zeroed", "deleted")]
    for number, damage in enumerate(chosen):
        copy = sound.with_name(folder_name(f"copy-{number}"))
        shutil.copytree(sound, copy, copy_function=copy_file)
        spoil(copy / damage.file, damage.kind)

    with embedded_server(path) as url, connect(StoreConfig(), url) as client:
        assert lacks_in_silence(Store(client, StoreConfig()), sound, wanted) is None
        assert verify(Store(client, StoreConfig())).lost == [], "the one that is whole is whole"
        silent = {}
        for number, damage in enumerate(chosen):
            name = f"copy-{number}"
            copy = sound.with_name(folder_name(name))
            lacking = lacks_in_silence(Store(client, StoreConfig(collection=name)), copy, wanted)
            if lacking:
                silent[damage] = lacking
    print(f"{len(chosen)} damages of {len(files)} files; lost in silence: {len(silent)}")
    assert not silent, "\n".join(f"{damage.file} {damage.kind}: {lacking}" for damage, lacking in silent.items())
