"""An alias that is switched in the middle of an operation: each operation reads and writes one version, whole."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from vector_store.comparison import compare
from vector_store.config import StoreConfig
from vector_store.retriever import Retriever
from vector_store.schema import Parts, Query, parts, point_id
from vector_store.store import Store, pinned
from vector_store.term_statistics import publish_term_statistics
from vector_store.transfer import export_points, import_points
from vector_store.verification import verify
from vector_store.versions import promote


@pytest.fixture
def versions(client, config, manifest, make_points):
    """An alias of the first of two collections without a common point, and a way to switch it to the second."""

    def sound(num, seed):
        made = make_points(num, seed=seed)
        renamed = [dataclasses.replace(point, text=f"{seed} {parts(point.text)[0]}") for point in made]
        return [dataclasses.replace(one, id=point_id(manifest.fingerprint, parts(one.text))) for one in renamed]

    of_version = {f"{config.collection}-{name}": sound(20, seed) for seed, name in enumerate("ab")}
    for name, points in of_version.items():
        store = Store(client, config.model_copy(update={"collection": name}))
        store.ensure(manifest)
        store.upsert(points)
    a, b = of_version
    alias = f"live-{config.collection}"
    promote(client, config, alias, a)
    yield Versions(client, config.model_copy(update={"collection": alias}), a, b, of_version)
    for name in of_version:
        Store(client, config.model_copy(update={"collection": name})).delete_collection()


@dataclasses.dataclass
class Versions:
    client: object
    config: StoreConfig
    a: str
    b: str
    points: dict

    def switch(self, to=None):
        promote(self.client, self.config, self.config.collection, to or self.b)

    def store(self, name):
        return Store(self.client, self.config.model_copy(update={"collection": name}))

    def after(self, service, method, number=1):
        """Switch the alias once this call of the client was answered so many times."""
        stubs = getattr(self.client, service)
        setattr(stubs, method, SwitchedAfter(getattr(stubs, method), number, self.switch))


class SwitchedAfter:
    """A method of a stub that switches the alias once it was called so many times, by one call or several at once."""

    def __init__(self, stub, number, switch):
        self.stub, self.left, self.switch = stub, number, switch

    def __call__(self, *given, **options):
        answer = self.stub(*given, **options)
        self.left -= 1
        if self.left == 0:
            self.switch()
        return answer

    def future(self, *given, **options):
        answer = self(*given, **options)
        return SimpleNamespace(result=lambda: answer, cancel=lambda: None)


def ids(points):
    return {point.id for point in points}


def test_an_export_during_a_promotion_holds_one_version(versions, tmp_path):
    versions.config = versions.config.model_copy(update={"message_bytes": 4_000, "upsert_bytes": 3_000})  # small pages
    versions.after("points", "Scroll", 3)
    done = export_points(Store(versions.client, versions.config), tmp_path / "out", rows_per_file=100)
    assert pinned(versions.client, versions.config).collection == versions.b, "it was switched meanwhile"
    assert (done.num_points, done.num_left_out) == (20, 0)
    imported = versions.store(f"{versions.a}-copy")
    import_points(imported, tmp_path / "out")
    try:
        assert compare(imported, versions.store(versions.a)).is_equal
    finally:
        imported.delete_collection()


@pytest.mark.parametrize("criterion", ["keywords", "dense", "hybrid", "random"])
def test_a_look_up_across_a_promotion_reads_one_version(versions, manifest, criterion):
    retriever = Retriever(versions.client, versions.config, manifest, criterion, read=Parts(text=True), count=2)
    versions.after("points", "Scroll" if criterion == "random" else "QueryBatch")
    asked = versions.points[versions.a]
    found = retriever.neighbours([Query(point.id, point.keywords, point.sentence) for point in asked])
    assert pinned(versions.client, versions.config).collection == versions.b
    assert found.rungs == ["live"] * 20
    assert all(len(of_query) == 2 for of_query in found.ids)
    assert {one for of_query in found.ids for one in of_query} <= ids(asked)
    assert all(text is not None for of_query in found.texts for text in of_query)
    assert retriever.counts["missing"] == 0


def test_a_retriever_follows_its_alias_with_statistics_and_cache_of_the_new_version(versions, manifest, monkeypatch):
    monkeypatch.setattr("vector_store.retriever.FOLLOW_S", 0.0)
    for name in (versions.a, versions.b):
        publish_term_statistics(versions.client, versions.config.model_copy(update={"collection": name}))
    asked = [Query(point.id, point.keywords, point.sentence) for point in versions.points[versions.a]]
    retriever = Retriever(versions.client, versions.config, manifest, "keywords", read=Parts(text=True))
    before = retriever.neighbours(asked)
    versions.switch()
    after = retriever.neighbours(asked)
    direct = Retriever(
        versions.client, versions.config.model_copy(update={"collection": versions.b}), manifest, "keywords",
        read=Parts(text=True),
    ).neighbours(asked)  # fmt: skip
    assert {one for of_query in before.ids for one in of_query} <= ids(versions.points[versions.a])
    assert (after.ids, after.texts) == (direct.ids, direct.texts)
    assert np.array_equal(after.scores, direct.scores), "weighed by the new version's statistics"


def test_a_version_that_is_deleted_after_a_promotion_is_left_at_once(versions, manifest):
    retriever = Retriever(versions.client, versions.config, manifest, "keywords")
    asked = [Query(point.id, point.keywords) for point in versions.points[versions.a]]
    retriever.neighbours(asked)
    versions.switch()
    versions.store(versions.a).delete_collection()
    found = retriever.neighbours(asked)
    assert found.rungs == ["live"] * 20
    assert {one for of_query in found.ids for one in of_query} <= ids(versions.points[versions.b])


def test_verify_and_compare_and_statistics_of_an_alias_read_one_version(versions):
    for operation in (
        lambda: verify(Store(versions.client, versions.config)).num_checked,
        lambda: compare(Store(versions.client, versions.config), versions.store(versions.a)).num_equal,
        lambda: publish_term_statistics(versions.client, versions.config).num_points,
    ):
        versions.switch(to=versions.a)
        stub = versions.client.points.Scroll
        versions.after("points", "Scroll")
        assert operation() == 20
        assert pinned(versions.client, versions.config).collection == versions.b
        versions.client.points.Scroll = stub
    assert versions.store(versions.a).kept("term_statistics") is not None
    assert versions.store(versions.b).kept("term_statistics") is None


def test_delete_counts_and_deletes_in_the_same_version(versions):
    store = Store(versions.client, versions.config)
    versions.after("points", "Scroll")
    assert store.delete(("split", "test")) == 7
    assert pinned(versions.client, versions.config).collection == versions.b, "it was switched meanwhile"
    assert versions.store(versions.a).count() == 13
    assert versions.store(versions.b).count() == 20


def test_an_import_into_an_alias_fills_one_version(versions, tmp_path, manifest):
    export_points(versions.store(versions.b), tmp_path / "out", rows_per_file=5)
    versions.after("points", "Upsert", 2)
    done = import_points(Store(versions.client, versions.config), tmp_path / "out")
    assert (done.num_read, done.num_written) == (20, 20)
    assert versions.store(versions.a).count() == 40
    assert versions.store(versions.b).count() == 20
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"] == 20


def test_a_writer_of_an_alias_writes_one_version(versions, make_points):
    store = Store(versions.client, versions.config)
    new = make_points(8, seed=9)
    with store.writer() as writer:
        writer.submit(new[:4])
        writer.finish()
        versions.switch()
        writer.submit(new[4:])
        assert writer.finish().written == 4
    assert versions.store(versions.a).existing([point.id for point in new]) == ids(new)
    assert versions.store(versions.b).existing([point.id for point in new]) == set()


def test_deleting_by_an_aliass_name_deletes_no_collection(versions):
    assert Store(versions.client, versions.config).delete_collection() is False
    assert versions.store(versions.a).count() == 20
