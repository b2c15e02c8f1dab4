"""Kill -9 of export, import, snapshot and restore: each is started again and ends as if nothing had happened."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.chaos.faults import audit, kill_server, wait_until
from tests.chaos.load import REPOSITORY, make_point, manifest, point_id
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError
from vector_store.server.process import embedded_server
from vector_store.snapshots import create_snapshot, list_snapshots, restore_directory
from vector_store.store import Store, collection_names
from vector_store.transfer import MANIFEST_FILE, read_export


@pytest.fixture
def num_points(is_long):
    if not is_long:
        pytest.skip("each verb is a process that takes seconds to start: in the long form only")
    return 6_000


@pytest.fixture
def num_kills():
    return 4


@pytest.fixture
def memory(tmp_path, num_points):
    """A running store with the numbers up to num_points; yields its directory and URL."""
    path = tmp_path / "store"
    with embedded_server(path) as url, connect(StoreConfig(), url) as client:
        store = Store(client, StoreConfig())
        described = manifest()
        store.ensure(described)
        for start in range(0, num_points, 500):
            store.upsert([make_point(number, described) for number in range(start, min(start + 500, num_points))])
        store.keep("maps", b"of a student" * 1000)
        yield path, url


def verb(*words):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "vector_store", *map(str, words)], env=environment, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def killed_when(process, is_there, what, lag_s=0.0):
    """Kill the process a moment after something is there; whether it was still at work."""
    wait_until(lambda: process.poll() is not None or is_there(), what)
    time.sleep(lag_s)
    was_running = process.poll() is None
    process.kill()
    process.communicate()
    return was_running


def ended(process):
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


@pytest.mark.timeout(900)
def test_an_export_and_an_import_that_are_killed_end_with_an_equal_memory(
    tmp_path, memory, num_points, num_kills, moments
):
    _, url = memory
    out, hits = tmp_path / "out", 0
    rows = num_points // 15
    for _ in range(num_kills):
        before = moments.randrange(1, 12)
        export = verb("export", url, out, "--rows-per-file", rows)
        hits += killed_when(export, lambda n=before: len(list(out.glob("*.parquet"))) >= n, f"{before} files are there")
        if not (out / MANIFEST_FILE).exists():
            with pytest.raises(StoreError, match="unfinished"):
                read_export(out)
        else:
            (out / MANIFEST_FILE).unlink()
    assert f"{num_points} points exported" in ended(verb("export", url, out, "--rows-per-file", rows))
    assert read_export(out).rows == num_points

    with connect(StoreConfig(), url) as client:
        copy = Store(client, StoreConfig(collection="copy"))

        def stored():
            return copy.count() if copy.exists() else 0

        for _ in range(num_kills):
            moment = moments.randrange(1, num_points * 3 // 4)
            importing = verb("import", out, url, "--collection", "copy")
            hits += killed_when(importing, lambda m=moment: stored() >= m, f"{moment} points are imported")
        ended(verb("import", out, url, "--collection", "copy"))
        found = audit(client, StoreConfig(collection="copy"), num_points, [])
        assert found.is_exact, found
        assert copy.kept("maps") == b"of a student" * 1000
    assert "0 differing, 0 only in A, 0 only in B" in ended(verb("compare", url, url, "--collection-b", "copy"))
    print(f"{hits} of {2 * num_kills} kills fell into the work")
    assert hits > 0


@pytest.mark.timeout(900)
def test_a_server_killed_during_a_snapshot_leaves_the_memory_and_whole_snapshots_alone(
    tmp_path, memory, num_points, num_kills, moments
):
    path, url = memory
    folder, hits = path / "snapshots" / "references", 0
    with ExitStack() as held:
        for _ in range(num_kills):
            making = verb("snapshot", url)
            held.callback(making.kill)
            wait_until(
                lambda making=making: (
                    making.poll() is not None or any(folder.glob("*.copy")) or any(folder.glob("*.new"))
                ),
                "a snapshot is being made",
            )
            time.sleep(moments.uniform(0, 0.2))
            hits += making.poll() is None
            kill_server(path)
            making.communicate(timeout=600)
            held.enter_context(embedded_server(path))
            left = sorted(file.suffix for file in folder.iterdir())
            assert set(left) <= {".snapshot", ".checksum"}, left
        url = held.enter_context(embedded_server(path))
        client = held.enter_context(connect(StoreConfig(), url))
        create_snapshot(client, "references")
        listed = list_snapshots(client, "references")
        found = audit(client, StoreConfig(), num_points, map(point_id, range(num_points)))
        assert found.is_exact, found
    for number, snapshot in enumerate(listed):
        root = tmp_path / f"restored-{number}"
        restore_directory(root, "back", folder / snapshot.name)
        with embedded_server(root) as there, connect(StoreConfig(), there) as client:
            assert audit(client, StoreConfig(collection="back"), num_points, []).is_exact
    print(f"{hits} of {num_kills} kills fell into a snapshot, {len(listed)} snapshots are whole")


@pytest.mark.timeout(900)
def test_a_restore_that_is_killed_leaves_no_half_collection_and_can_be_repeated(
    tmp_path, memory, num_points, num_kills, moments
):
    path, url = memory
    with connect(StoreConfig(), url) as client:
        archive = path / "snapshots" / "references" / create_snapshot(client, "references").name
    root, hits = tmp_path / "to", 0
    for _ in range(num_kills):
        restoring = verb("restore", root, archive, "--collection", "back")
        draft = root / "collections" / ".new-cback"
        hits += killed_when(restoring, draft.exists, "the restore has begun", moments.uniform(0, 0.1))
        assert {entry.name for entry in (root / "collections").iterdir()} <= {".new-cback", "cback"}
        with embedded_server(root) as there, connect(StoreConfig(), there) as client:
            if "back" in collection_names(client):
                assert audit(client, StoreConfig(collection="back"), num_points, []).is_exact
                Store(client, StoreConfig(collection="back")).delete_collection()
        assert not draft.exists()
    ended(verb("restore", root, archive, "--collection", "back"))
    with embedded_server(root) as there, connect(StoreConfig(), there) as client:
        store = Store(client, StoreConfig(collection="back"))
        assert audit(client, StoreConfig(collection="back"), num_points, []).is_exact
        assert store.kept("maps") == b"of a student" * 1000
    print(f"{hits} of {num_kills} kills fell into a restore")
