"""Each command of `python -m vector_store`: its output and its exit code."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from tests.chaos.faults import kill_server
from vector_store.__main__ import VERBS, main
from vector_store.arguments import EXAMPLES
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.schema import parts, point_id
from vector_store.server.process import embedded_server
from vector_store.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store's directory, in use, so that verbs find its server running."""
    path = tmp_path_factory.mktemp("place")
    with embedded_server(path):
        yield str(path)


@pytest.fixture
def collections(place, manifest, make_points):
    """Two sound collections `references` and `second` of 12 equal points each, and a way to reach others."""
    points = [
        dataclasses.replace(point, id=point_id(manifest.fingerprint, parts(point.text))) for point in make_points(12)
    ]
    with embedded_server(place) as url, connect(StoreConfig(), url) as client:

        def store(name):
            return Store(client, StoreConfig(collection=name))

        for name in ("references", "second"):
            store(name).ensure(manifest)
            store(name).upsert(points)
        yield store
        for name in ("references", "second", "third"):
            store(name).delete_collection()


@pytest.fixture
def command(capsys):
    def run(*words):
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_an_example_in_its_help(verb, capsys):
    assert set(EXAMPLES) == set(VERBS)
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"python -m vector_store {verb} " in capsys.readouterr().out


def test_verify_exits_with_2_for_a_bad_point(place, collections, command, make_points):
    assert command("verify", place) == (0, "references: 12 points checked, 0 bad\n", "")
    bad = make_points(1, seed=5)[0]
    collections("references").upsert([bad])
    code, shown, _ = command("verify", place)
    assert code == 2
    assert shown.splitlines() == [
        "references: 13 points checked, 1 bad",
        "  1 x its id is not the hash of its text",
        f"  bad: {bad.id}: its id is not the hash of its text",
    ]
    assert command("verify", place, "--collection", "second")[0] == 0


def test_verify_exits_with_2_for_acknowledged_points_that_are_gone(tmp_path, manifest, make_points, command):
    points = [
        dataclasses.replace(point, id=point_id(manifest.fingerprint, parts(point.text))) for point in make_points(12)
    ]
    with embedded_server(tmp_path) as url, connect(StoreConfig(), url) as client:
        store = Store(client, StoreConfig())
        store.ensure(manifest)
        store.upsert(points)
        assert command("verify", tmp_path)[0] == 0
        kill_server(tmp_path)
    (counted,) = tmp_path.glob("collections/*/acknowledged.json")
    count = json.loads(counted.read_bytes().split(b"\n")[0])
    assert count["fewest"] == count["most"] >= 12  # what is kept beside the points is counted too
    counted.write_text(json.dumps({**count, "fewest": count["fewest"] + 3, "most": count["most"] + 3}) + "\n")
    code, shown, _ = command("verify", tmp_path)
    assert shown.startswith("references: 12 points checked, 0 bad\n  lost: 3 acknowledged points are missing: ")
    assert "ingest or import again" in shown
    assert code == 2
    assert "  warning: 3 acknowledged points are missing: " in command("info", tmp_path)[1]


def test_delete_only_counts_without_yes(place, collections, command):
    code, shown, _ = command("delete", place, "--document", "d1")
    assert (code, shown) == (
        0, "would delete 2 points of references with document='d1'; add --yes to delete them\n",
    )  # fmt: skip
    assert collections("references").count() == 12
    assert command("delete", place, "--document", "d1", "--yes")[1].startswith("deleted 2 points")
    assert collections("references").count() == 10
    assert collections("second").count() == 12


@pytest.mark.parametrize("words", [[], ["--source", "a", "--split", "b"]])
def test_delete_requires_exactly_one_field(place, words, command):
    with pytest.raises(SystemExit) as ended:
        command("delete", place, *words)
    assert ended.value.code == 2


def test_an_exported_and_imported_memory_compares_equal(place, collections, command, tmp_path):
    code, shown, _ = command("export", place, tmp_path / "out", "--rows-per-file", "5")
    assert (code, shown) == (0, f"references: 12 points exported to 3 file(s) in {tmp_path / 'out'}\n")
    code, shown, _ = command("import", tmp_path / "out", place, "--collection", "third")
    assert (code, shown) == (0, "third: 12 points read, 0 already stored, 12 written\n")
    assert command("compare", place, place, "--collection-b", "third") == (
        0, "12 points equal, 0 differing, 0 only in A, 0 only in B\n", "",
    )  # fmt: skip
    assert command("compare", place, place, "--collection", "third")[0] == 0
    collections("third").delete(("document", "d0"))
    assert command("compare", place, place, "--collection", "third", "--collection-a", "references")[0] == 1
    code, shown, _ = command("compare", place, place, "--collection-b", "third")
    assert code == 1
    assert shown.startswith("10 points equal, 0 differing, 2 only in A, 0 only in B\n")


def test_a_collection_that_is_not_there_is_asked_for_by_the_options_of_the_command_line(place, capsys):
    assert main(["verify", str(place), "--collection", "dox"], program="refbert store") == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "name one that is there in --collection (`refbert store info` lists them), or make it first: `python jobs/ingest.py`\n"
    )
    assert "`dox` doesn't exist" in said


def test_import_creates_the_store(place, collections, command, tmp_path):
    command("export", place, tmp_path / "out")
    assert command("import", tmp_path / "out", tmp_path / "new")[0] == 0
    assert command("compare", place, tmp_path / "new")[0] == 0


def test_versions_are_promoted_listed_and_rolled_back(place, collections, command):
    assert command("aliases", place) == (0, "", "")
    assert command("promote", place, "live", "references")[1] == "live -> references  (before: none)\n"
    assert command("promote", place, "live", "second")[1] == "live -> second  (before: references)\n"
    assert command("aliases", place)[1] == "live -> second  (before: references)\n"
    assert command("rollback", place, "live")[1] == "live -> references  (before: none)\n"
    code, _, complaint = command("rollback", place, "live")
    assert code == 2
    assert "first version" in complaint


def test_snapshots_are_created_listed_and_deleted(place, collections, command):
    code, shown, _ = command("snapshot", place)
    name = shown.split()[0]
    assert code == 0
    path = os.path.join(place, "snapshots", "references", name)
    assert shown.splitlines()[1] == f"  {path}"
    assert os.path.exists(path)
    assert command("snapshot", place, "--list")[1].split()[0] == name
    assert command("snapshot", place, "--delete", name)[:2] == (0, f"deleted {name}\n")
    assert command("snapshot", place, "--list")[1] == ""


def test_a_snapshot_is_restored_by_two_commands(collections, place, command, tmp_path):
    shown = command("snapshot", place)[1]
    archive = os.path.join(place, "snapshots", "references", shown.split()[0])
    code, shown, complaint = command("restore", tmp_path / "new", archive, "--collection", "back")
    assert (code, shown) == (0, f"restored back from {archive}\n"), complaint
    assert command("compare", place, tmp_path / "new", "--collection-b", "back")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["verify", "{place}", "--collection", "none-such"], 2, "none-such"),
        (["verify", "{place}", "--collection", "no name"], 2, "cannot be a collection's name"),
        (["verify", "{empty}"], 2, "there is no store in"),
        (["export", "{place}", "/proc/none/such"], 2, "/proc/none"),
        (["import", "{empty}", "{place}"], 2, "has no manifest.json"),
        (["compare", "{place}", "{empty}"], 2, "there is no store in"),
        (["promote", "{place}", "live", "none-such"], 2, "cannot promote 'none-such'"),
        (["restore", "{empty}", "{empty}/none.snapshot", "--collection", "x"], 2, "there is no snapshot"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(place, collections, command, tmp_path, words, code, complaint):
    filled = [word.format(place=place, empty=tmp_path) for word in words]
    ended, _, said = command(*filled)
    assert ended == code
    assert complaint in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_server_gives_exit_code_3(tmp_path):
    (tmp_path / "x.snapshot").write_bytes(b"")
    ended = subprocess.run(
        [sys.executable, "-m", "vector_store", "restore", "http://127.0.0.1:6334", str(tmp_path / "x.snapshot"),
         "--collection", "x", "--rest-port", "9"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1), ended.stderr
