"""An alias that is switched while a job runs: the job fills, plans and reads the version that it began with."""

import pytest

from jobs.corpus.prepared import prepare
from jobs.memory import fill
from jobs.memory.load_progress import load_state
from jobs.memory.neighbour_plan import neighbour_plan
from jobs.memory.store import at_one_version, running_store
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_texts
from refbert.teacher import load_teacher
from vector_store.client import connect
from vector_store.errors import StoreUnavailable
from vector_store.store import Store
from vector_store.versions import promote

pytestmark = pytest.mark.usefixtures("ray_cluster", "prepared_home", "in_process")


@pytest.fixture
def live(tiny_run):
    """A run whose memory is an alias of the first of two collections, its URL, a way to switch and one to open."""
    config = tiny_run(store__collection="live", ingest__batch=64)
    with running_store(config) as url, connect(config.store, url) as client:

        def store(name):
            return Store(client, config.store.model_copy(update={"collection": name}))

        manifest = manifest_of(load_teacher(config.teacher), config.references)
        for name in ("first", "second"):
            store(name).ensure(manifest)
        promote(client, config.store, "live", "first")
        yield config, url, lambda: promote(client, config.store, "live", "second"), store


def test_a_load_during_a_promotion_fills_one_version_and_its_state_is_there(live, monkeypatch):
    config, url, switch, store = live
    one_chunk = fill.EncodeAndStore.__call__

    def encode_and_switch(self, batch):
        done = one_chunk(self, batch)
        switch()
        return done

    monkeypatch.setattr(fill.EncodeAndStore, "__call__", encode_and_switch)
    corpus = prepare(config)
    counts = fill.fill_memory(config, url, corpus)
    assert counts["written"] == corpus.counts.distinct > 2 * config.ingest.batch
    assert store("first").count() == corpus.counts.distinct
    assert store("first").kept("term_statistics") is not None
    assert load_state(store("first"))["state"] == "complete"
    assert store("second").count() == 0
    assert load_state(store("second")) == {}
    assert store("live").config.collection == "second"


def test_a_training_plans_and_reads_the_version_that_was_filled(live):
    config, url, switch, _ = live
    corpus, teacher = prepare(config), load_teacher(config.teacher)
    address = fill.filled_memory(config, url, corpus, teacher)
    switch()
    assert address.of(config.store).collection == "first"
    texts = reference_texts(teacher, address.manifest, config.references)
    plan = neighbour_plan(config.store, config.references, address, corpus, texts)
    in_first = neighbour_plan(
        config.store.model_copy(update={"collection": "first"}), config.references, address, corpus, texts
    )
    assert plan == in_first


def test_a_job_of_many_processes_names_one_version_to_all(live):
    config, url, switch, _ = live
    pinned = at_one_version(config, url)
    switch()
    assert pinned.store.collection == "first"
    assert at_one_version(config, url).store.collection == "second"
    with pytest.raises(StoreUnavailable):
        at_one_version(config, "http://127.0.0.1:9", patience_s=0.2)
