"""Archives of a collection: created by the running server, restored offline. For the embedded server only."""

import hashlib
import io
import json
import shutil
import tarfile

import pytest
import qdrant_edge as engine
from qdrant_client import grpc as api

from vector_store.errors import StoreError
from vector_store.server.catalogue import Catalogue
from vector_store.server.process import embedded_server, offline
from vector_store.server.servicers import Points
from vector_store.server.snapshots import Snapshots, restore_snapshot, snapshot_path

NUM_POINTS = 40


def upsert(catalogue, name, first, last):
    points = []
    for n in range(first, last):
        point = api.PointStruct(id=api.PointId(num=n))
        point.payload["n"].integer_value = n
        point.vectors.vector.dense.data.extend([float(n), 1.0])
        points.append(point)
    Points(catalogue).Upsert(api.UpsertPoints(collection_name=name, points=points), None)


def payloads(catalogue, name):
    everything = engine.ScrollRequest(limit=1000, with_payload=True)
    return [point.payload["n"] for point in catalogue.find(name).read(lambda shard: shard.scroll(everything))[0]]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A snapshot of 40 points, taken before ten more were written. No test changes it."""
    root = tmp_path_factory.mktemp("from")
    catalogue = Catalogue(root)
    settings = api.CreateCollection(collection_name="references")
    settings.vectors_config.params.size, settings.vectors_config.params.distance = 2, api.Distance.Dot
    settings.metadata["made_by"].string_value = "tests"
    catalogue.create(settings)
    upsert(catalogue, "references", 0, NUM_POINTS)
    made = Snapshots(root).create(catalogue.find("references"))
    upsert(catalogue, "references", NUM_POINTS, NUM_POINTS + 10)
    assert len(payloads(catalogue, "references")) == NUM_POINTS + 10
    catalogue.close()
    return snapshot_path(root, "references", made.name)


def restore(root, archive, collection="again"):
    with offline(root):
        restore_snapshot(root, collection, archive)


def test_a_restored_collection_has_the_archived_points_and_accepts_writes(tmp_path, archive):
    root = tmp_path / "to"
    restore(root, archive)
    catalogue = Catalogue(root)
    assert catalogue.names() == ["again"]
    assert catalogue.find("again").settings.metadata["made_by"].string_value == "tests"
    assert payloads(catalogue, "again") == list(range(NUM_POINTS))
    upsert(catalogue, "again", 30, 60)
    assert payloads(catalogue, "again") == list(range(60))
    catalogue.close()
    catalogue = Catalogue(root)
    assert payloads(catalogue, "again") == list(range(60))
    catalogue.close()


def test_restoring_under_an_existing_name_is_refused(tmp_path, archive):
    root = tmp_path / "to"
    restore(root, archive)
    with pytest.raises(StoreError, match="has a collection or alias 'again' already"):
        restore(root, archive)
    (root / "aliases.json").write_text(json.dumps({"other": "again"}))
    with pytest.raises(StoreError, match="has a collection or alias 'other' already"):
        restore(root, archive, "other")


def test_restoring_into_a_served_directory_is_refused(tmp_path):
    with embedded_server(tmp_path), pytest.raises(StoreError, match="is being served"), offline(tmp_path):
        pass


def _cut(archive, to):
    to.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])


def _without_end(archive, to):
    with tarfile.open(archive) as tar:
        last = tar.getmembers()[-1]
    to.write_bytes(archive.read_bytes()[: last.offset])


def _with_a_changed_byte(archive, to):
    content = archive.read_bytes()
    with tarfile.open(archive) as tar:
        member = next(member for member in tar if member.name.endswith("edge_config.json"))
    place = member.offset_data + 5
    to.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def _of_one_file(name, content=b"x"):
    def make(archive, to):
        with tarfile.open(to, "w") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    return make


def _of_a_link(archive, to):
    with tarfile.open(to, "w") as tar:
        member = tarfile.TarInfo("shard-0/link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(member)


def _with(settings=None, table=None, shard=True):
    """The archive written anew with other settings, or another table of files, whose checksums are right."""

    def make(archive, to):
        files = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name != "snapshot.json" and (shard or not member.name.startswith("shard-0/")):
                    files[member.name] = tar.extractfile(member).read()
        if settings is not None:
            files["settings.json"] = settings
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        files["snapshot.json"] = json.dumps({"format": 1, "files": sums}).encode() if table is None else table
        with tarfile.open(to, "w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return make


def _stored(collection, **others):
    return json.dumps({"collection": collection, "indexed_points": 0, **others}).encode()


VECTORS = {"params": {"size": 2, "distance": "Dot"}}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda archive, to: to.write_bytes(b""), "is truncated or not a snapshot"),
        (_with(table=b"{}"), "its table of files is missing"),
        (_with(table=b"[1]"), "its table of files is missing"),
        (_with(table=b'{"format": 1}'), "is damaged"),
        (_with(table=b'{"format": 1, "files": 3}'), "is damaged"),
        (_with(table=b"\xff\xfe"), "is truncated or not a snapshot"),
        (_with(settings=b""), "has no settings of a collection"),
        (_with(settings=b"[]"), "has no settings of a collection"),
        (_with(settings=b"{}"), "has no settings of a collection"),
        (_with(settings=_stored(7)), "has no settings of a collection"),
        (_with(settings=_stored({"nonsense": 1})), "has no settings of a collection"),
        (_with(settings=_stored({})), "has no settings of a collection"),
        (_with(settings=_stored({"vectorsConfig": VECTORS}, indexed_points="many")), "has no settings of a collection"),
        (_with(shard=False), "has no shard that the engine can open"),
        (_of_one_file("settings.json/x"), "has an unexpected member"),
        (_of_one_file("shard-0"), "has an unexpected member"),
        (_cut, "is truncated or not a snapshot"),
        (_without_end, "its table of files is missing"),
        (_with_a_changed_byte, "is damaged"),
        (_of_one_file("../evil"), "has an unexpected member"),
        (_of_one_file("shard-0/../../evil"), "has an unexpected member"),
        (_of_one_file("/tmp/evil"), "has an unexpected member"),
        (_of_a_link, "has an unexpected member"),
        (_of_one_file("snapshot.json", b'{"format": 1, "files": {}}'), "is damaged"),
        (lambda archive, to: to.write_text("not a tar file at all"), "is truncated or not a snapshot"),
        (lambda archive, to: None, "No such file"),
    ],
)
def test_a_damaged_archive_is_refused_in_one_line_and_leaves_no_files(tmp_path, archive, spoil, complaint):
    spoiled, root = tmp_path / "spoiled", tmp_path / "to"
    spoil(archive, spoiled)
    with pytest.raises(StoreError, match=complaint) as caught:
        restore(root, spoiled)
    assert "\n" not in str(caught.value)
    assert not list((root / "collections").iterdir())
    assert not (tmp_path / "evil").exists()


def test_the_archive_matches_its_description_and_is_small_on_disk(archive):
    checksum = archive.with_name(archive.name + ".checksum").read_text()
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == checksum
    assert archive.stat().st_blocks * 512 < 20 * 2**20 < archive.stat().st_size, "holes stay holes"


def test_unfinished_snapshots_are_removed_at_the_next_start(archive):
    (archive.parent / "x.copy" / "shard-0").mkdir(parents=True)
    shutil.copy(archive, archive.parent / "x.new")
    Snapshots(archive.parents[2])
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name, archive.name + ".checksum"]
