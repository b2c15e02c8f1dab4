"""Verify, delete, compare and versions: the same tests against the embedded server and a Qdrant server."""

import dataclasses
import re
import threading

import numpy as np
import pytest
from qdrant_client import grpc as api

from vector_store.codec import STATES, TEXT, TEXT_PAIR, TOKEN_IDS, VECTOR, encode
from vector_store.comparison import compare
from vector_store.errors import CollectionMismatch, CollectionMissing, InvalidPoint, StoreError
from vector_store.retriever import Retriever
from vector_store.schema import Parts, Query, SparseVector, parts, point_id
from vector_store.store import Store
from vector_store.transfer import export_points, import_points
from vector_store.verification import OTHER_ID, verify
from vector_store.versions import Version, promote, rollback, versions


@pytest.fixture
def make_sound(make_points, manifest):
    """Points whose ids are the hashes of their texts."""

    def make(num, **options):
        points = make_points(num, **options)
        return [dataclasses.replace(point, id=point_id(manifest.fingerprint, parts(point.text))) for point in points]

    return make


@pytest.fixture
def other_store(client, config):
    """A second collection beside `store`."""
    store = Store(client, config.model_copy(update={"collection": f"{config.collection}-b"}))
    yield store
    store.delete_collection()


def write_raw(client, config, message):
    request = api.UpsertPoints(collection_name=config.collection, wait=True, points=[message])
    client.call(client.points.Upsert, request, 10)


# ---------------------------------------------------------------- reading whole points


@pytest.mark.parametrize("page", [1, 7, 256])
def test_pages_contain_every_whole_point_in_the_order_of_ids(store, manifest, make_sound, page):
    store.ensure(manifest)
    points = {point.id: point for point in make_sound(40)}
    store.upsert(list(points.values()))
    pages = list(store.pages(page))
    assert max(len(found) for found in pages) == min(page, 40)
    found = [point for one in pages for point in one]
    assert [point.id for point in found] == sorted(points)
    for point in found:
        written = points[point.id]
        assert np.array_equal(point.states, written.states)
        assert np.array_equal(point.token_ids, written.token_ids)
        order = np.argsort(point.keywords.indices)
        assert np.array_equal(point.keywords.indices[order], written.keywords.indices)
        assert np.array_equal(point.keywords.values[order], written.keywords.values)
        assert np.allclose(point.sentence, written.sentence / np.linalg.norm(written.sentence), atol=1e-3)
        for field in ("text", "source", "document", "split"):
            assert getattr(point, field) == getattr(written, field)


def test_pages_can_be_limited_to_one_document(store, manifest, make_sound):
    store.ensure(manifest)
    store.upsert(make_sound(40))
    assert {point.text for page in store.pages(where=("document", "d3")) for point in page} == {"text 6", "text 7"}
    assert list(store.pages(where=("document", "none such"))) == []


# ---------------------------------------------------------------- verify


def test_a_valid_memory_passes_verification(store, manifest, make_sound):
    store.ensure(manifest)
    store.upsert(make_sound(30))
    seen = []
    found = verify(store, seen.append)
    assert (found.num_checked, found.num_bad, found.first_bad) == (30, 0, [])
    assert sum(seen) == 30


def damaged(message, kind):
    states = message.payload[STATES]
    match kind:
        case "not base64":
            states.string_value = "states!"
        case "no states":
            states.string_value = ""
        case "half a row":
            states.string_value = "AAAAAAAA"
        case "too many tokens":
            states.string_value = "A" * 96  # 72 bytes: 9 float16 rows of 4
        case "NaN states":
            states.string_value = "AH4AfgB+AH4="
            message.payload[TOKEN_IDS].string_value = "AQAAAA=="
        case "infinite states":
            states.string_value = "AHwAfAB8AHw="
            message.payload[TOKEN_IDS].string_value = "AQAAAA=="
        case "token ids of another length":
            message.payload[TOKEN_IDS].string_value = "AQAAAA==" if len(states.string_value) > 12 else "AQAAAAEAAAA="
        case "states of another kind":
            states.list_value.values.add().integer_value = 3
        case "text of another kind":
            message.payload[TEXT].struct_value.fields["is"].bool_value = True
        case "a vector cut short":
            message.payload[VECTOR].string_value = "AAAA"
        case "no payload":
            message.payload.clear()
        case "no sentence":
            del message.vectors.vectors.vectors["sentence"]
        case "another text":
            message.payload[TEXT].string_value = "changed"
        case "a second text":
            message.payload[TEXT_PAIR].string_value = "more"
        case "a numbered id":
            message.id.num = 7
    return message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("not base64", "base64|padding|base64-encoded"),
        ("no states", r"states of shape \(0, 4\)"),
        ("half a row", "reshape"),
        ("too many tokens", r"states of shape \(9, 4\) for \d token ids, wanted \(\d, 4\)"),
        ("NaN states", "states hold NaN or infinite"),
        ("infinite states", "states hold NaN or infinite"),
        ("token ids of another length", r"states of shape \(\d, 4\) for \d token ids"),
        ("states of another kind", "'states' holds a list, wanted a string"),
        ("text of another kind", "'text' holds a struct, wanted a string"),
        ("no payload", "'vector' holds nothing, wanted a string"),
        ("a vector cut short", "not one int8 vector of 4"),
        ("no sentence", "has no sentence vector, the collection has a dense index"),
        ("another text", OTHER_ID),
        ("a second text", OTHER_ID),
        ("a numbered id", "not a UUID"),
    ],
)
def test_verify_finds_each_damage_and_goes_on(store, client, config, manifest, make_sound, kind, reason):
    store.ensure(manifest)
    points = make_sound(12)
    store.upsert(points[1:])
    message = damaged(encode(points[0], manifest), kind)
    write_raw(client, config, message)
    found = verify(store)
    assert (found.num_checked, found.num_bad) == (12, 1)
    (identifier, given), = found.first_bad  # fmt: skip
    assert identifier == (message.id.uuid or str(message.id.num))
    assert list(found.reasons) == [given]
    assert re.search(reason, given), given


def test_verify_counts_all_bad_points_and_lists_the_first(store, manifest, make_points):
    store.ensure(manifest)
    store.upsert(make_points(25))  # their ids are hashes of something else
    found = verify(store)
    assert found.reasons == {OTHER_ID: 25}
    assert len(found.first_bad) == 10


# ---------------------------------------------------------------- delete


@pytest.mark.parametrize(
    ("where", "num_deleted"), [(("document", "d3"), 2), (("split", "test"), 10), (("source", "made up"), 30)]
)
def test_deleting_by_a_field_deletes_exactly_its_points(store, manifest, make_sound, where, num_deleted):
    store.ensure(manifest)
    points = make_sound(30)
    store.upsert(points)
    assert store.count(where) == num_deleted
    assert store.delete(where) == num_deleted
    kept = {point.id for point in points if getattr(point, where[0]) != where[1]}
    assert {point.id for page in store.pages() for point in page} == kept
    assert store.delete(where) == 0


def test_deleted_points_are_remembered_until_they_are_readmitted(
    store, other_store, manifest, make_sound, tmp_path, client, config
):
    store.ensure(manifest)
    points = make_sound(30)
    store.upsert(points)
    export_points(store, tmp_path / "export", rows_per_file=100)
    gone = {point.id for point in points if point.document in ("d1", "d2")}
    assert store.delete(("document", "d1")) + store.delete(("document", "d2")) == 4
    assert store.deleted_ids() == gone
    done = import_points(store, tmp_path / "export")
    assert (done.num_skipped, done.num_deleted, done.num_written) == (26, 4, 0)
    assert store.deleted_ids() == gone, "an import of an older export does not forget it"
    assert store.count() == 26, "what is remembered is no point"
    assert store.readmit() == 4
    assert import_points(store, tmp_path / "export").num_written == 4
    assert (store.readmit(), store.deleted_ids()) == (0, frozenset())


# ---------------------------------------------------------------- compare


def test_memories_of_the_same_points_are_equal_in_any_order_of_writing(store, other_store, manifest, make_sound):
    points = make_sound(30)
    store.ensure(manifest)
    other_store.ensure(manifest.model_copy(update={"encoder": "/another/path/to/it"}))
    store.upsert(points)
    other_store.upsert(points[::-1])
    found = compare(store, other_store)
    assert found.is_equal
    assert found.num_equal == 30


def test_compare_reports_missing_points_and_differing_fields(store, other_store, manifest, make_sound):
    points = sorted(make_sound(30), key=lambda point: point.id)
    store.ensure(manifest)
    other_store.ensure(manifest.model_copy(update={"fingerprint": "f2", "bm25_b": 0.5}))
    store.upsert(points[:29])  # the last id is only in B, the first two only in A
    states = points[5].states.copy()
    states[0, 0] += np.float16(2)
    changed = [
        dataclasses.replace(points[5], states=states, text="other"),
        dataclasses.replace(points[6], keywords=SparseVector(np.array([1], np.uint32), np.array([1], np.float32))),
        dataclasses.replace(points[7], sentence=-points[7].sentence, split="heldout"),
    ]
    other_store.upsert([*points[2:5], *changed, *points[8:]])
    seen = []
    found = compare(store, other_store, seen.append)
    assert not found.is_equal
    assert found.manifest_fields == ["fingerprint", "bm25_b"]
    assert (found.num_equal, found.num_differing, found.num_only_a, found.num_only_b) == (24, 3, 2, 1)
    assert found.fields == {"text": 1, "states": 1, "keywords": 1, "sentence": 1, "split": 1}
    assert found.state_difference == pytest.approx(2, abs=0.01)
    assert found.first_only_a == [point.id for point in points[:2]]
    assert found.first_only_b == [points[29].id]
    assert found.first_differing == [point.id for point in points[5:8]]
    assert sum(seen) == 29


def test_compare_names_a_point_that_cannot_be_decoded(store, other_store, client, config, manifest, make_sound):
    points = make_sound(3)
    store.ensure(manifest)
    other_store.ensure(manifest)
    write_raw(client, config, damaged(encode(points[0], manifest), "text of another kind"))
    with pytest.raises(InvalidPoint, match=f"{points[0].id}.*'text' holds a struct"):
        compare(store, other_store)


# ---------------------------------------------------------------- versions behind an alias


@pytest.fixture
def alias(client, config):
    name = f"live-{config.collection}"
    yield name
    request = api.ChangeAliases()
    request.actions.add().delete_alias.alias_name = name
    client.call(client.collections.UpdateAliases, request, 10)


def test_an_alias_is_promoted_and_rolled_back_version_by_version(store, other_store, client, config, manifest, alias):
    a, b = config.collection, f"{config.collection}-b"
    store.ensure(manifest)
    other_store.ensure(manifest)
    assert promote(client, config, alias, a) == Version(alias, a, None)
    assert promote(client, config, alias, b) == Version(alias, b, a)
    assert promote(client, config, alias, b) == Version(alias, b, a), "again changes nothing"
    assert Version(alias, b, a) in versions(client, config)
    assert rollback(client, config, alias) == Version(alias, a, None)
    with pytest.raises(StoreError, match="first version"):
        rollback(client, config, alias)
    assert Store(client, config.model_copy(update={"collection": alias})).manifest() == manifest


def test_a_refused_promotion_leaves_the_alias_unchanged(store, other_store, client, config, manifest, alias):
    a, b = config.collection, f"{config.collection}-b"
    store.ensure(manifest)
    other_store.ensure(manifest.model_copy(update={"fingerprint": "f2"}))
    promote(client, config, alias, a)
    with pytest.raises(CollectionMissing, match=r"no such collection, it has .*" + a):
        promote(client, config, alias, "none-such")
    with pytest.raises(CollectionMismatch, match=r"fingerprint='f2'.*fingerprint='f1'.*--other-teacher"):
        promote(client, config, alias, b)
    with pytest.raises(StoreError, match="not an alias"):
        promote(client, config, a, b)
    assert Version(alias, a, None) in versions(client, config)
    assert promote(client, config, alias, b, other_teacher=True) == Version(alias, b, a)
    with pytest.raises(StoreError, match="no alias"):
        rollback(client, config, "none-such")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("datatype", "int8"), ("vector_datatype", "float16"), ("tokens", 4), ("text_tokens", 16), ("tokenizer", "t2"),
        ("layer", 2), ("words_dim", 0), ("token_bytes", 2), ("projection", "p1"), ("bm25_b", 0.5),
    ],
)  # fmt: skip
def test_whatever_running_readers_compare_is_compared_before_a_promotion(
    store, other_store, client, config, manifest, alias, field, value
):
    b = f"{config.collection}-b"
    store.ensure(manifest)
    other_store.ensure(manifest.model_copy(update={field: value, "encoder": "/another/path/to/it"}))
    promote(client, config, alias, config.collection)
    with pytest.raises(CollectionMismatch) as readers:
        other_store.require(manifest)
    assert field in str(readers.value)
    with pytest.raises(CollectionMismatch, match=f"written with {field}={value!r}, and .* with {field}=.*would refuse"):
        promote(client, config, alias, b)
    assert versions_of(client, config, alias) == [Version(alias, config.collection, None)]
    assert promote(client, config, alias, b, other_teacher=True).collection == b
    assert rollback(client, config, alias).collection == config.collection, "those readers were there before"


def test_a_version_that_corrects_no_answers_of_a_served_student_is_not_promoted(
    store, other_store, client, config, manifest, alias
):
    a, b = config.collection, f"{config.collection}-b"
    for one in (store, other_store):
        one.ensure(manifest)
    promote(client, config, alias, a)
    store.keep("correction_5t0d", b"v1")
    promote(client, config, alias, b), rollback(client, config, alias)
    store.keep("correction_5t0d_v1", b"maps")
    with pytest.raises(CollectionMismatch, match=r"corrects no answers of student 5t0d, and .* does"):
        promote(client, config, alias, b)
    other_store.keep("correction_5t0d", b"v2")
    with pytest.raises(CollectionMismatch, match="5t0d"):
        promote(client, config, alias, b)
    other_store.keep("correction_5t0d_v2", b"maps")
    assert promote(client, config, alias, b) == Version(alias, b, a)


def versions_of(client, config, alias):
    return [version for version in versions(client, config) if version.alias == alias]


def test_rolling_back_to_a_deleted_version_is_refused(store, other_store, client, config, manifest, alias):
    store.ensure(manifest)
    other_store.ensure(manifest)
    promote(client, config, alias, config.collection)
    promote(client, config, alias, f"{config.collection}-b")
    store.delete_collection()
    with pytest.raises(CollectionMissing, match="is gone"):
        rollback(client, config, alias)


def test_readers_of_an_alias_lose_no_look_up_while_it_is_switched(
    store, other_store, client, config, manifest, make_sound, alias
):
    points = make_sound(20)
    for one in (store, other_store):
        one.ensure(manifest)
        one.upsert(points)
    promote(client, config, alias, config.collection)
    stop, steps, errors = threading.Event(), [], []

    def read():
        live = config.model_copy(update={"collection": alias})
        retriever = Retriever(client, live, manifest, "keywords", read=Parts(text=True))
        queries = [Query(point.id, point.keywords) for point in points]
        try:
            while not stop.is_set():
                steps.extend(retriever.neighbours(queries).rungs)
        except Exception as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            promote(client, config, alias, f"{config.collection}-b")
            rollback(client, config, alias)
    finally:
        stop.set()
        reader.join()
    assert not errors
    assert len(steps) >= 20
    assert set(steps) == {"live"}
