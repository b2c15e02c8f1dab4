"""Collections on disk in process: what a start removes, and what it makes of damaged files. Each is opened in milliseconds."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import qdrant_edge as engine
from qdrant_client import grpc as api

from tests.chaos.faults import wait_until
from vector_store.errors import MISSING_POINTS
from vector_store.server import index_build, index_schedule
from vector_store.server.catalogue import Catalogue, write_settings
from vector_store.server.files import copy_file
from vector_store.server.index_build import build_index, index_shard, keep_indexed
from vector_store.server.status import DamagedError, StatusError


def create(catalogue, name):
    settings = api.CreateCollection(collection_name=name)
    settings.vectors_config.params.size, settings.vectors_config.params.distance = 2, api.Distance.Dot
    catalogue.create(settings)
    return catalogue.find(name)


def upsert(collection, numbers, value="first"):
    request = api.UpsertPoints(points=[api.PointStruct(id=api.PointId(num=n)) for n in numbers])
    points = [engine.Point(n, [1.0, float(n)], {"text": f"{value} {n}"}) for n in numbers]
    collection.write(engine.UpdateOperation.upsert_points(points), request)


def delete(collection, numbers):
    ids = api.PointsIdsList(ids=[api.PointId(num=n) for n in numbers])
    request = api.DeletePoints(points=api.PointsSelector(points=ids))
    collection.write(engine.UpdateOperation.delete_points(list(numbers)), request)


def texts(collection):
    page = engine.ScrollRequest(limit=10_000, with_payload=True)
    return {record.id: record.payload["text"] for record in collection.read(lambda shard: shard.scroll(page))[0]}


def as_killed(root, place):
    """A copy of the files as a kill -9 at this moment leaves them."""
    return Path(shutil.copytree(root, place, copy_function=copy_file))


def rebuild(collection):
    """What `build_index` does, without a process of its own: its start costs seconds on a busy machine."""
    number = 1 + int(collection.shard_directory.name.removeprefix("shard-"))
    copy, fresh = (collection.directory / f"shard-{each}" for each in (number, number + 1))
    collection.copy_shard(copy, keep_writes=True)
    index_shard(copy, fresh)
    return collection.swap_shard(fresh, is_rebuilt=True)


@pytest.fixture
def killed(tmp_path):
    """A root with the collections `a` (12 points, 4 of them only in the log) and `b` (3), whose server was killed."""
    catalogue = Catalogue(tmp_path / "served")
    for name, num_points in (("a", 8), ("b", 3)):
        upsert(create(catalogue, name), range(num_points))
    catalogue.flush()
    upsert(catalogue.find("a"), range(8, 12))
    root = as_killed(tmp_path / "served", tmp_path / "killed")
    catalogue.close()
    return root


def test_a_shard_that_settings_do_not_name_is_kept_where_the_named_one_is_missing(killed):
    directory = killed / "collections" / "ca"
    stored = json.loads((directory / "settings.json").read_text())
    (directory / "settings.json").write_text(json.dumps({**stored, "shard": "shard-7"}))
    with pytest.raises(DamagedError, match=r"settings.json names 'shard-7', which is missing.*shard-0 is there"):
        Catalogue(killed).find("a")
    (directory / "settings.json").write_text(json.dumps(stored))
    assert len(texts(Catalogue(killed).find("a"))) == 12


def test_a_shard_beside_an_older_one_that_settings_name_is_kept(killed):
    directory = killed / "collections" / "ca"
    (directory / "shard-0").rename(directory / "shard-1")
    shutil.copytree(killed / "collections" / "cb" / "shard-0", directory / "shard-0", copy_function=copy_file)
    catalogue = Catalogue(killed)
    assert len(texts(catalogue.find("a"))) == 3, "what settings.json names is served"
    assert "9 acknowledged points are missing" in catalogue.find("a").warnings[0]
    assert (directory / "shard-1" / "segments").is_dir()


def test_what_a_killed_build_left_is_removed_once_the_shard_is_open_and_whole(killed):
    directory = killed / "collections" / "ca"
    shutil.copytree(directory / "shard-0", directory / "shard-1", copy_function=copy_file)
    collection = Catalogue(killed).find("a")
    assert [path.name for path in directory.glob("shard-*")] == ["shard-0"]
    assert len(texts(collection)) == 12


def test_a_start_removes_drafts_and_leaves_everything_else(killed):
    folder = killed / "collections"
    for name in (".new-cx", ".gone-cx", ".snapshot", "lost+found"):
        (folder / name).mkdir()
    (folder / ".nfs0001").write_text("in use")
    catalogue = Catalogue(killed)
    assert catalogue.names() == ["a", "b"]
    assert sorted(path.name for path in folder.iterdir()) == [".nfs0001", ".snapshot", "ca", "cb", "lost+found"]


def test_a_swap_whose_settings_could_not_be_written_removes_neither_shard(tmp_path, monkeypatch):
    from vector_store.server import catalogue as catalogue_module

    collection = create(Catalogue(tmp_path), "a")
    upsert(collection, range(5))

    def fail_once_written(*arguments):
        write_settings(*arguments)
        raise OSError("the disk went away")

    monkeypatch.setattr(catalogue_module, "write_settings", fail_once_written)
    with pytest.raises(OSError, match="went away"):
        rebuild(collection)
    collection.remove_other_shards()
    monkeypatch.undo()
    named = json.loads((collection.directory / "settings.json").read_text())["shard"]
    assert (collection.directory / named / "segments").is_dir()
    assert collection.shard_directory.is_dir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda directory: (directory / "settings.json").unlink(),
        lambda directory: (directory / "settings.json").write_bytes(b""),
        lambda directory: (directory / "settings.json").write_bytes(bytes(200)),
        lambda directory: (directory / "settings.json").write_bytes(b"\xff\xfe"),
        lambda directory: (directory / "settings.json").write_text("[]"),
        lambda directory: (directory / "settings.json").write_text('{"collection": {"no": 1}, "shard": "shard-0"}'),
        lambda directory: next(directory.rglob("segment.json")).write_bytes(b""),
        lambda directory: next(directory.rglob("version.info")).unlink(),
        lambda directory: next(directory.rglob("vectors/status.dat")).write_bytes(b"12"),
        lambda directory: (directory / "shard-0" / "edge_config.json").write_bytes(b"{"),
        lambda directory: (directory / "shard-0" / "wal" / "open-1").write_bytes(bytes(2**20)),
        lambda directory: shutil.rmtree(directory / "shard-0" / "segments"),
    ],
)
def test_a_damaged_collection_is_named_and_keeps_no_other_from_being_served(killed, spoil):
    directory = killed / "collections" / "ca"
    spoil(directory)
    files = {path for path in directory.rglob("*") if path.name != "tracker_journal.dat"}  # which the engine applies
    catalogue = Catalogue(killed)
    assert catalogue.names() == ["a", "b"]
    assert len(texts(catalogue.find("b"))) == 3
    with pytest.raises(DamagedError, match=rf"(?s)^{directory}.*put back a copy") as found:
        catalogue.find("a")
    assert "\n" not in str(found.value)
    assert files <= set(directory.rglob("*")), "nothing of it is removed"
    with pytest.raises(StatusError, match="already exists"):
        create(catalogue, "a")
    assert catalogue.delete("a")
    assert "a" not in catalogue
    assert not directory.exists()
    upsert(create(catalogue, "a"), [1])


def test_a_kill_without_damage_is_no_damage(killed):
    collection = Catalogue(killed).find("a")
    assert texts(collection) == {n: f"first {n}" for n in range(12)}
    assert (collection.num_missing, collection.warnings, collection.log_damage) == (0, [], None)


@pytest.mark.parametrize("written", [range(12, 15), range(15)])
def test_a_kill_in_the_middle_of_a_write_is_no_damage(tmp_path, written, monkeypatch):
    collection = create(Catalogue(tmp_path / "served"), "a")
    upsert(collection, range(12))
    monkeypatch.setattr(collection, "_settle", lambda: as_killed(tmp_path / "served", tmp_path / "written"))
    upsert(collection, written)
    assert Catalogue(tmp_path / "written").find("a").warnings == []

    monkeypatch.setattr(collection, "_settle", lambda: as_killed(tmp_path / "served", tmp_path / "deleted"))
    delete(collection, range(6))
    assert Catalogue(tmp_path / "deleted").find("a").warnings == []


@pytest.mark.parametrize("file", ["open-1", "first-index"])
def test_points_that_a_lost_log_had_are_counted_and_writes_wait_for_a_new_log(killed, file):
    (killed / "collections" / "ca" / "shard-0" / "wal" / file).unlink()
    lost = 4 if file == "open-1" else 0
    collection = Catalogue(killed).find("a")
    assert collection.num_missing == lost
    assert len(texts(collection)) == 12 - lost, "what is there is served"
    if lost:
        assert f"4 {MISSING_POINTS}" in collection.warnings[0]
        assert f"wal/{file} is missing" in collection.warnings[0]
    with pytest.raises(StatusError, match="are being copied into a new shard"):
        upsert(collection, [0], "second")

    assert collection.index_schedule.is_due(collection.wants_rebuild(), collection.wrote_at)
    assert rebuild(collection)
    upsert(collection, [0], "second")  # the engine would take it for an older write if it numbered by an empty log
    assert texts(collection)[0] == "second 0"
    assert collection.num_missing == lost
    upsert(collection, range(8, 10))
    assert collection.num_missing == lost // 2, "what is written again is no longer missing"
    collection.close()
    assert Catalogue(killed).find("a").num_missing == lost // 2


def test_a_count_that_is_damaged_costs_no_point(killed):
    for content in (b"", b"{", b'["a"]', bytes(4096)):
        (killed / "collections" / "ca" / "acknowledged.json").write_bytes(content)
        catalogue = Catalogue(killed)
        assert len(texts(catalogue.find("a"))) == 12
        catalogue.close()


def test_damaged_aliases_are_named_and_collections_are_served(killed):
    promote = api.AliasOperations(create_alias=api.CreateAlias(collection_name="a", alias_name="current"))
    for content in (b"", b"{", b"\xff", b"[]", b'{"current": 3}'):
        (killed / "aliases.json").write_bytes(content)
        catalogue = Catalogue(killed)
        assert len(texts(catalogue.find("a"))) == 12
        with pytest.raises(DamagedError, match=r"aliases.json cannot be read.*promote each alias again"):
            catalogue.find("current")
        with pytest.raises(DamagedError, match=r"aliases.json"):  # or an ingest would make a collection of that name
            create(catalogue, "current")
        catalogue.change_aliases([promote])
        assert len(texts(catalogue.find("current"))) == 12
        assert (killed / "aliases.json.damaged").read_bytes() == content
        catalogue.close()


# ---------------------------------------------------------------- deletions


def disk_bytes(collection):
    return sum(path.lstat().st_blocks * 512 for path in collection.directory.rglob("*"))


def files_with(collection, text):
    return [path for path in collection.directory.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_a_rebuild_forgets_deleted_and_replaced_texts_and_keeps_the_rest(tmp_path):
    collection = create(Catalogue(tmp_path), "a")
    upsert(collection, range(30), "secret")
    upsert(collection, range(10, 30), "public")
    delete(collection, range(10))
    collection.flush()
    assert files_with(collection, b"secret")
    assert build_index(collection, threading.Event(), rebuild=True)
    assert texts(collection) == {n: f"public {n}" for n in range(10, 30)}
    assert not files_with(collection, b"secret")
    assert files_with(collection, b"public"), "texts are found where there are any"
    assert collection.removed == 0
    upsert(collection, [10], "newer")
    assert texts(collection)[10] == "newer 10"
    collection.close()
    assert texts(Catalogue(tmp_path).find("a"))[10] == "newer 10"


def test_a_server_forgets_what_was_deleted_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(index_build, "LOOK_S", 0.02)
    monkeypatch.setattr(index_schedule, "QUIET_S", 0.0)
    monkeypatch.setattr(index_build, "_index_in_child", lambda _, copy, fresh, __: index_shard(copy, fresh) is None)
    catalogue, stopping = Catalogue(tmp_path), threading.Event()
    collection = create(catalogue, "a")
    update = api.UpdateCollection()
    update.optimizers_config.vacuum_min_vector_number = 20
    collection.update(update)
    upsert(collection, range(20), "secret")
    upsert(collection, range(20, 30), "public")
    delete(collection, range(20))
    assert files_with(collection, b"secret")
    server = threading.Thread(target=keep_indexed, args=(catalogue, stopping))
    server.start()
    try:
        wait_until(lambda: not collection.removed, "what was deleted is forgotten", 20)
    finally:
        stopping.set()
        server.join()
    assert not files_with(collection, b"secret")
    assert texts(collection) == {n: f"public {n}" for n in range(20, 30)}


def test_the_disk_after_500_replacements_is_at_most_twice_that_of_a_fresh_store(tmp_path):
    catalogue = Catalogue(tmp_path)
    fresh, replaced = create(catalogue, "fresh"), create(catalogue, "replaced")
    for collection in (fresh, replaced):
        upsert(collection, range(2000), "text " * 40)
    for each in range(500):
        start = each * 50 % 2000
        delete(replaced, range(start, start + 50))
        upsert(replaced, range(start, start + 50), f"{each} " * 40)
    catalogue.flush()
    before = disk_bytes(replaced)
    assert replaced.wants_rebuild()
    assert rebuild(replaced)
    after = disk_bytes(replaced)
    print(f"fresh {disk_bytes(fresh) >> 10} KiB, replaced {before >> 10} KiB, rebuilt {after >> 10} KiB")
    assert len(texts(replaced)) == 2000
    assert after <= 2 * disk_bytes(fresh) < before
    delete(replaced, range(2000))
    assert rebuild(replaced)
    assert disk_bytes(replaced) < disk_bytes(fresh)


def test_a_log_that_outweighs_its_points_goes_once_writes_have_paused(tmp_path, monkeypatch):
    from vector_store.server import catalogue as catalogue_module

    collection = create(Catalogue(tmp_path), "a")
    upsert(collection, range(500), "text " * 40)
    for each in range(8):  # fewer in all than vacuum_min_vector_number
        delete(collection, range(each, each + 1))
        upsert(collection, range(each, each + 1), f"{each} " * 100_000)
        upsert(collection, range(each, each + 1), "text " * 40)
    collection.flush()
    assert not collection.wants_rebuild()
    collection.wrote_at -= catalogue_module.QUIET_S + 1
    monkeypatch.setattr(catalogue_module, "LOG_ROOM_BYTES", 2**30)
    assert not collection.wants_rebuild()
    monkeypatch.setattr(catalogue_module, "LOG_ROOM_BYTES", 2**20)
    assert collection.wants_rebuild()
    assert rebuild(collection)
    assert not collection.wants_rebuild()


def test_deletions_are_forgotten_soon_where_they_are_many_and_in_the_end_where_they_are_few(tmp_path, monkeypatch):
    from vector_store.server import catalogue as catalogue_module

    catalogue = Catalogue(tmp_path)
    collection = create(catalogue, "a")
    upsert(collection, range(100))
    assert not collection.wants_rebuild()
    delete(collection, range(30))
    assert not collection.wants_rebuild(), "30 of 100 are many, but less than vacuum_min_vector_number"
    update = api.UpdateCollection()
    update.optimizers_config.vacuum_min_vector_number = 10
    collection.update(update)
    assert collection.wants_rebuild()
    update.optimizers_config.deleted_threshold = 0.5
    collection.update(update)
    assert not collection.wants_rebuild()
    catalogue.close()

    collection = Catalogue(tmp_path).find("a")
    assert collection.removed == 30, "a restart remembers what is to be forgotten"
    assert not collection.wants_rebuild()
    monkeypatch.setattr(catalogue_module, "FORGET_S", 0.0)
    assert collection.wants_rebuild()
    assert rebuild(collection)
    collection.rebuild_s = 1000.0
    delete(collection, [50])
    assert not collection.wants_rebuild(), "a shard that takes long to copy is copied less often"
    collection.rebuild_s, collection._rebuilt_at = 5.0, time.monotonic() - 11
    assert not collection.wants_rebuild()
    collection.wrote_at -= catalogue_module.QUIET_S + 1
    assert collection.wants_rebuild(), "once writes have paused, sooner"
    collection.rebuild_s = 6.0
    assert not collection.wants_rebuild()
