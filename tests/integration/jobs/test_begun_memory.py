"""A training goes on with the memory that it was begun with, or not at all."""

import json
import logging

import pytest

from jobs import distill
from jobs.memory.store import MEMORY, MemoryAddress, begun_memory, remember_memory
from refbert.errors import InputError
from refbert.memory.manifest import manifest_of
from refbert.teacher import load_teacher
from tests.integration.jobs.in_process import without_ray
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.server.process import embedded_server
from vector_store.store import IDENTITY, Store
from vector_store.versions import promote


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with embedded_server(tmp_path_factory.mktemp("store")) as url:
        yield url


@pytest.fixture(scope="module")
def manifest(tiny_run):
    config = tiny_run()
    return manifest_of(load_teacher(config.teacher), config.references)


@pytest.fixture
def memory(url, manifest):
    """Open a collection, which is there."""
    with connect(StoreConfig(), url) as client:
        made = []

        def open_collection(name):
            made.append(Store(client, StoreConfig(collection=name)))
            made[-1].ensure(manifest)
            return made[-1]

        yield open_collection
        for store in made:
            store.delete_collection()


def begun(config, url, manifest, collection):
    remember_memory(config, MemoryAddress(url, manifest, collection))


def test_a_run_goes_on_with_the_collection_that_its_alias_named(home, tiny_run, url, manifest, memory, caplog):
    config = tiny_run(store__collection="live")
    memory("one"), memory("two")
    with connect(config.store, url) as client:
        promote(client, config.store, "live", "one")
        assert begun_memory(config, url) == config, "a fresh run reads what the alias names"
        begun(config, url, manifest, "one")
        promote(client, config.store, "live", "two")
    with caplog.at_level(logging.INFO):
        assert begun_memory(config, url).store.collection == "one"
    assert "going on with collection 'one': 'live' names 'two' by now" in caplog.text


def test_another_collection_under_the_same_name_or_none_is_refused_in_one_line(home, tiny_run, url, manifest, memory):
    config = tiny_run(store__collection="one")
    store = memory("one")
    begun(config, url, manifest, "one")
    assert begun_memory(config, url).store.collection == "one"
    store.delete_collection()
    for what in ("it is gone", "another collection has that name"):
        with pytest.raises(InputError, match=f"was begun with collection 'one', and at {url} {what}") as error:
            begun_memory(config, url)
        assert "\n" not in str(error.value)
        memory("one")
    (config.run_directory / MEMORY).unlink()
    assert begun_memory(config, url) == config


def test_a_training_looks_at_the_memory_that_it_was_begun_with_before_it_fills_or_trains(
    home, tiny_run, url, manifest, memory, monkeypatch
):
    without_ray(monkeypatch, url)
    config = tiny_run(store__collection="one")
    store = memory("one")
    begun(config, url, manifest, "one")
    store.delete_collection()
    memory("one")
    monkeypatch.setattr(distill, "filled_memory", lambda *_: pytest.fail("it is filled"))
    with pytest.raises(InputError, match="another collection has that name"):
        distill.run(config)


def test_each_collection_has_an_identity_of_its_own_and_one_of_before_has_none(home, tiny_run, url, manifest, memory):
    one, two = memory("one"), memory("two")
    assert len({one.identity(), two.identity(), None}) == 3
    config = tiny_run(store__collection="one")
    begun(config, url, manifest, "one")
    path = config.run_directory / MEMORY
    held = json.loads(path.read_text())
    assert held == {"collection": "one", "identity": one.identity()}
    path.write_text(json.dumps(held | {IDENTITY: None}))
    assert begun_memory(config, url).store.collection == "one"
