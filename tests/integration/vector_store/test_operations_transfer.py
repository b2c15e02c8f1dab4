"""A memory through parquet files: exported, imported into another store, and refused where a file is damaged."""

import dataclasses
import json

import numpy as np
import pytest
from qdrant_client import grpc as api

from vector_store.client import connect
from vector_store.codec import STATES, encode
from vector_store.comparison import compare
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMismatch, StoreError
from vector_store.schema import parts, point_id
from vector_store.server.process import embedded_server
from vector_store.store import IDENTITY, Store
from vector_store.transfer import export_points, import_points, read_export
from vector_store.verification import verify
from vector_store.versions import PREVIOUS_OF

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def filled(store, manifest, make_points):
    """A collection of 600 sound points, more than two pages of them."""
    store.ensure(manifest)
    store.upsert(
        [dataclasses.replace(point, id=point_id(manifest.fingerprint, parts(point.text))) for point in make_points(600)]
    )
    return store


@pytest.fixture(scope="module")
def other_url(tmp_path_factory):
    """Another store: a server of its own."""
    with embedded_server(tmp_path_factory.mktemp("other")) as url:
        yield url


@pytest.fixture
def target(other_url, config):
    """An empty collection there, not created yet."""
    there = StoreConfig(url=other_url, collection=config.collection)
    with connect(there, other_url) as client:
        store = Store(client, there)
        yield store
        store.delete_collection()


@pytest.mark.parametrize("rows_per_file", [100, 256, 300, 1000])
def test_an_exported_memory_imports_equal(filled, target, tmp_path, rows_per_file):
    done = export_points(filled, tmp_path / "out", rows_per_file)
    assert (done.num_points, done.num_left_out) == (600, 0)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    num_files = -(-600 // rows_per_file)
    assert files == ["blobs.parquet", "manifest.json", *(f"points-{number:05d}.parquet" for number in range(num_files))]
    assert max(file.rows for file in done.files) <= rows_per_file
    seen = []
    brought = import_points(target, tmp_path / "out", seen.append)
    assert (brought.num_read, brought.num_skipped, brought.num_written) == (600, 0, 600)
    assert sum(seen) == 600
    assert compare(filled, target).is_equal
    assert verify(target).num_bad == 0


def test_points_without_a_sentence_vector_are_exported_and_imported(store, target, manifest, make_points, tmp_path):
    store.ensure(manifest.model_copy(update={"words_dim": 0}))
    store.upsert([dataclasses.replace(point, sentence=None) for point in make_points(5)])
    export_points(store, tmp_path / "out", 100)
    import_points(target, tmp_path / "out")
    assert compare(store, target).is_equal


def test_an_export_of_a_release_without_pairs_is_imported(store, target, manifest, make_points, tmp_path):
    store.ensure(manifest)
    store.upsert(make_points(4))
    (file,) = export_points(store, tmp_path / "out", 100).files
    path = tmp_path / "out" / file.name
    parquet.write_table(parquet.read_table(path).drop_columns("text_pair"), path, write_page_checksum=True)
    import_points(target, tmp_path / "out")
    assert compare(store, target).is_equal


def test_int8_states_are_imported_as_the_stored_bytes(store, target, manifest, make_points, tmp_path):
    store.ensure(manifest.model_copy(update={"datatype": "int8"}))
    store.upsert(make_points(600))
    export_points(store, tmp_path / "out", 1000)
    import_points(target, tmp_path / "out")
    assert compare(store, target).is_equal
    export_points(target, tmp_path / "back", 1000)
    out, back = (parquet.read_table(tmp_path / name / "points-00000.parquet") for name in ("out", "back"))
    assert out.column("states").to_pylist() == back.column("states").to_pylist()


def test_an_empty_memory_is_exported_and_imported(store, target, manifest, tmp_path):
    store.ensure(manifest)
    assert export_points(store, tmp_path / "out", 100).files == []
    import_points(target, tmp_path / "out")
    assert target.manifest() == manifest


def test_metadata_is_exported_and_imported_without_that_of_versions(filled, target, tmp_path):
    text = api.Value(string_value="AAEC")
    filled.merge_metadata({"projection_matrix": text, f"{PREVIOUS_OF}live": api.Value(string_value="older")})
    export_points(filled, tmp_path / "out", 1000)
    import_points(target, tmp_path / "out")
    assert target.metadata() == {"projection_matrix": text, IDENTITY: api.Value(string_value=filled.identity())}


def test_the_files_are_plain_parquet_and_contain_the_manifest(filled, manifest, tmp_path):
    export_points(filled, tmp_path / "out", 1000)
    table = parquet.read_table(tmp_path / "out" / "points-00000.parquet")
    assert json.loads(table.schema.metadata[b"manifest"]) == manifest.model_dump()
    row = table.slice(0, 1).to_pylist()[0]
    assert len(row["states"]) == row["num_tokens"] * manifest.dim * 2
    assert len(row["token_ids"]) == row["num_tokens"]
    assert table.column("id").to_pylist() == sorted(table.column("id").to_pylist())


def test_an_interrupted_import_can_be_continued(filled, target, manifest, tmp_path):
    export_points(filled, tmp_path / "out", 200)
    target.ensure(manifest)
    target.upsert([point for page in filled.pages() for point in page][:250])
    brought = import_points(target, tmp_path / "out")
    assert (brought.num_read, brought.num_skipped, brought.num_written) == (600, 250, 350)
    assert import_points(target, tmp_path / "out").num_written == 0
    assert compare(filled, target).is_equal


def test_an_import_does_not_change_stored_points(filled, target, manifest, tmp_path):
    export_points(filled, tmp_path / "out", 1000)
    point = next(filled.pages(1))[0]
    target.ensure(manifest)
    target.upsert([dataclasses.replace(point, source="mine")])
    import_points(target, tmp_path / "out")
    found = compare(filled, target)
    assert (found.num_differing, found.fields) == (1, {"source": 1})


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "flipped", "other rows"])
def test_a_damaged_file_is_named_and_the_points_before_it_stay(filled, target, tmp_path, damage):
    export_points(filled, tmp_path / "out", 200)
    path = tmp_path / "out" / "points-00001.parquet"
    whole = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
        case "other rows":
            path.write_bytes(_fewer_rows(path))
    with pytest.raises(StoreError, match=r"points-00001\.parquet is missing, truncated or damaged") as caught:
        import_points(target, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert target.count() == 200
    path.write_bytes(whole)
    assert import_points(target, tmp_path / "out").num_written == 400
    assert compare(filled, target).is_equal


def _fewer_rows(path):
    table = parquet.read_table(path)
    parquet.write_table(table.slice(1), path)
    return path.read_bytes()


def test_an_unfinished_export_is_not_imported_and_can_be_started_again(filled, target, tmp_path):
    folder = tmp_path / "out"

    def stop(num_points):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_points(filled, folder, 100, stop)
    assert list(folder.iterdir())
    with pytest.raises(StoreError, match=r"has no manifest\.json"):
        import_points(target, folder)
    export_points(filled, folder, 100)
    import_points(target, folder)
    assert compare(filled, target).is_equal


def test_an_export_refuses_a_folder_with_other_files(filled, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"not empty .*thesis\.tex"):
        export_points(filled, tmp_path, 100)
    export_points(filled, tmp_path / "out", 1000)
    with pytest.raises(StoreError, match=r"not empty .*manifest\.json"):
        export_points(filled, tmp_path / "out", 1000)


def test_another_manifest_is_refused_before_anything_is_written(filled, target, manifest, tmp_path):
    export_points(filled, tmp_path / "out", 1000)
    target.ensure(manifest.model_copy(update={"fingerprint": "f2"}))
    with pytest.raises(CollectionMismatch, match="f2"):
        import_points(target, tmp_path / "out")
    assert target.count() == 0


def test_files_of_different_exports_are_not_mixed(filled, store, target, manifest, make_points, tmp_path):
    export_points(filled, tmp_path / "a", 1000)
    store.delete_collection()
    store.ensure(manifest.model_copy(update={"layer": 2}))
    store.upsert(make_points(600))
    export_points(store, tmp_path / "b", 1000)
    (tmp_path / "a" / "points-00000.parquet").write_bytes((tmp_path / "b" / "points-00000.parquet").read_bytes())
    with pytest.raises(CollectionMismatch, match="mixes exports"):
        import_points(target, tmp_path / "a")


@pytest.mark.parametrize("content", ["", "{", '{"rows": 3}'])
def test_an_invalid_export_manifest_is_named(target, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"manifest\.json is not an export of this format"):
        read_export(tmp_path)


def test_damaged_points_are_left_out_of_an_export_and_reported(filled, client, config, target, tmp_path):
    pages = iter(filled.pages(1))
    (first,), (second,) = next(pages), next(pages)
    for point, damage in ((first, np.float16(0)), (second, np.float16("nan"))):
        message = encode(dataclasses.replace(point, states=point.states * damage), filled.manifest())
        if not damage:
            message.payload[STATES].list_value.values.add().integer_value = 1
        request = api.UpsertPoints(collection_name=config.collection, wait=True, points=[message])
        client.call(client.points.Upsert, request, 10)
    done = export_points(filled, tmp_path / "out", 1000)
    assert (done.num_points, done.num_left_out) == (598, 2)
    assert [identifier for identifier, _ in done.first_left_out] == [first.id, second.id]
    assert [reason for _, reason in done.first_left_out] == [
        "payload field 'states' holds a list, wanted a string",
        "states hold NaN or infinite values",
    ]
    assert import_points(target, tmp_path / "out").num_written == 598
    assert verify(target).num_bad == 0
