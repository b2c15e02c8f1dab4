"""An alias that is switched again and again while a memory is exported, read and loaded: each operation sees one version."""

import threading
from contextlib import contextmanager

import pyarrow.parquet
import pytest

from jobs.corpus.prepared import prepare
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from refbert.memory.texts import reference_id
from refbert.teacher import load_teacher
from tests.chaos.load import make_point, manifest, point_id
from tests.integration.jobs.in_process import compute_in_process
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.retriever import Retriever
from vector_store.schema import Parts, Query
from vector_store.server.process import embedded_server
from vector_store.store import Store
from vector_store.transfer import export_points
from vector_store.versions import promote

LIVE = StoreConfig(collection="live", lookup_deadline_ms=30_000, message_bytes=100_000, upsert_bytes=50_000)


@pytest.fixture
def versions(tmp_path, is_long):
    """Two versions without a common point, the even numbers and the odd ones, behind an alias; yields URL and numbers."""
    num_points = 4_000 if is_long else 600
    described = manifest()
    with embedded_server(tmp_path / "store") as url, connect(LIVE, url) as client:
        numbers = {"even": range(0, num_points, 2), "odd": range(1, num_points, 2)}
        for name, own in numbers.items():
            store = Store(client, LIVE.model_copy(update={"collection": name}))
            store.ensure(described)
            store.upsert([make_point(number, described) for number in own])
        promote(client, LIVE, "live", "even")
        yield url, {name: {point_id(number) for number in own} for name, own in numbers.items()}


@contextmanager
def switching(url, moments):
    """Switch the alias at random moments while the block runs; yields how often that was."""
    stop, switches = threading.Event(), []

    def switch():
        with connect(LIVE, url) as client:
            while not stop.wait(moments.uniform(0, 0.05)):
                promote(client, LIVE, "live", ("odd", "even")[len(switches) % 2])
                switches.append(None)

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        yield switches
    finally:
        stop.set()
        thread.join()


@pytest.mark.timeout(600)
def test_exports_and_look_ups_during_promotions_are_of_one_version(tmp_path, versions, is_long, moments, monkeypatch):
    monkeypatch.setattr("vector_store.retriever.FOLLOW_S", 0.0)  # follows with every look-up
    url, ids = versions
    described, num_exports = manifest(), 8 if is_long else 2
    seen = set()
    with switching(url, moments) as switches, connect(LIVE, url) as client:
        for number in range(num_exports):
            folder = tmp_path / f"export-{number}"
            done = export_points(Store(client, LIVE), folder, rows_per_file=100)
            files = [pyarrow.parquet.read_table(file, columns=["id"]) for file in folder.glob("points-*.parquet")]
            exported = {one for file in files for one in file["id"].to_pylist()}
            assert exported in ids.values()
            assert done.num_points == len(exported)
        retriever = Retriever(client, LIVE, described, "keywords", read=Parts(text=True), count=2)
        for _ in range(20 * num_exports):
            asked = [make_point(number, described) for number in moments.sample(range(500), 16)]
            found = retriever.neighbours([Query(point.id, point.keywords, point.sentence) for point in asked])
            assert set(found.rungs) == {"live"}
            chosen = {one for of_query in found.ids for one in of_query}
            (name,) = (name for name, own in ids.items() if chosen <= own)
            assert chosen
            seen.add(name)
    print(f"{len(switches)} switches during {num_exports} exports and {20 * num_exports} look-ups; read {sorted(seen)}")
    assert len(switches) > num_exports
    assert retriever.counts["missing"] == 0
    assert seen == {"even", "odd"}, "the alias was followed"


@pytest.fixture
def load(is_long, ray_cluster, tmp_path, tiny_run, monkeypatch):
    """A load of a corpus in this process: its options, its corpus, and the ids that it stores."""
    if not is_long:
        pytest.skip("one promotion at a chosen moment: tests/integration/jobs/test_alias_switched_meanwhile.py")
    monkeypatch.setenv("REFBERT_HOME", str(tmp_path / "home"))
    config = tiny_run(ingest__batch=16, corpus__max_texts=300)
    compute_in_process(monkeypatch)
    corpus = prepare(config)
    teacher = load_teacher(config.teacher)
    ids = {reference_id(teacher.fingerprint, text) for text in corpus.table("train")["text"].to_pylist()}
    return config, corpus, ids


@pytest.mark.timeout(600)
def test_a_load_during_promotions_fills_one_version(load, moments):
    config, corpus, ids = load
    with running_store(config) as url, connect(config.store, url) as client:
        for name in ("even", "odd"):
            named = config.model_copy(update={"store": config.store.model_copy(update={"collection": name})})
            fill_memory(named, url, corpus)
            Store(client, named.store).delete(("split", "train"))
            assert Store(client, named.store).readmit() == len(ids)
        live = config.model_copy(update={"store": config.store.model_copy(update={"collection": "live"})})
        promote(client, live.store, "live", "even")
        with switching(url, moments) as switches:
            fill_memory(live, url, corpus)
        stores = [Store(client, config.store.model_copy(update={"collection": name})) for name in ("even", "odd")]
        held = [{point.id for page in store.pages() for point in page} for store in stores]
    print(f"{len(switches)} switches during a load of {len(ids)}")
    assert len(switches) > 1
    assert sorted(held, key=len) == [set(), ids]


@pytest.mark.timeout(600)
def test_two_loads_at_once_end_with_the_memory_of_one(load):
    config, corpus, ids = load
    with running_store(config) as url, connect(config.store, url) as client:
        counts, errors = [], []

        def fill():
            try:
                counts.append(fill_memory(config, url, corpus))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=fill) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        store = Store(client, config.store)
        held = [point.id for page in store.pages() for point in page]
        again = fill_memory(config, url, corpus)
    print([dict(each) for each in counts])
    assert (len(held), set(held)) == (len(ids), ids)
    for each in (*counts, again):
        assert each["read"] == sum(each[name] for name in ("skipped", "duplicate", "written", "rejected"))
    assert again["written"] == 0
