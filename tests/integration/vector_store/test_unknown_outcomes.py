"""A change whose answer leaves open whether it was made: a cluster's consensus timed out."""

import grpc
import pytest
from qdrant_client import grpc as api

from vector_store.errors import CollectionMissing, StoreUnavailable
from vector_store.store import Store, aliases, collection_names
from vector_store.versions import Version, promote, rollback

CONSENSUS = "Service internal error: Waiting for consensus operation commit failed. Timeout set at: 10 seconds"


class Refused(grpc.RpcError, grpc.Call):
    """An answer with a status, as grpcio raises it."""

    def __init__(self, code, details):
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details

    def initial_metadata(self): ...
    def trailing_metadata(self): ...
    def is_active(self): ...
    def time_remaining(self): ...
    def cancel(self): ...
    def add_callback(self, callback): ...


@pytest.fixture
def unanswered(client, monkeypatch):
    """Make a method's calls end without saying what became of them; `is_made` says whether the server made the change."""

    def without_answer(method, is_made):
        stub, sent = getattr(client.collections, method), []

        def call(message, **options):
            if not sent and is_made:
                stub(message, **options)
            sent.append(message)
            raise Refused(grpc.StatusCode.INTERNAL, CONSENSUS)

        monkeypatch.setattr(client.collections, method, call)

    return without_answer


@pytest.fixture
def impatient(config):
    return config.model_copy(update={"write_deadline_s": 2.0})


@pytest.fixture
def served(client, config, manifest):
    """An alias of the first of two collections."""
    a, b, alias = (f"{config.collection}{end}" for end in ("-a", "-b", "-live"))
    stores = [Store(client, config.model_copy(update={"collection": name})) for name in (a, b)]
    for store in stores:
        store.ensure(manifest)
    promote(client, config, alias, a)
    yield alias, a, b
    for store in stores:
        store.delete_collection()


def test_a_switch_that_was_made_without_an_answer_is_a_promotion(client, impatient, served, unanswered):
    alias, a, b = served
    unanswered("UpdateAliases", is_made=True)
    assert promote(client, impatient, alias, b) == Version(alias, b, a)
    assert aliases(client)[alias] == b


def test_a_switch_that_was_not_made_may_still_be_and_is_safe_to_repeat(
    client, impatient, served, unanswered, monkeypatch
):
    alias, a, b = served
    with monkeypatch.context() as patch:
        patch.setattr(client.collections, "UpdateAliases", client.collections.UpdateAliases)
        unanswered("UpdateAliases", is_made=False)
        with pytest.raises(
            StoreUnavailable, match=r"switching .*-live.* may still be applied .*promote again: that is safe"
        ):
            promote(client, impatient, alias, b)
    assert aliases(client)[alias] == a
    # Applied when the nodes are back, and only then repeated; and the other way round.
    request = api.ChangeAliases()
    request.actions.add().delete_alias.alias_name = alias
    created = request.actions.add().create_alias
    created.alias_name, created.collection_name = alias, b
    client.call(client.collections.UpdateAliases, request, 10)
    assert promote(client, impatient, alias, b) == Version(alias, b, a)
    client.call(client.collections.UpdateAliases, request, 10)
    assert rollback(client, impatient, alias) == Version(alias, a, None)


def test_a_rollback_without_an_answer_says_what_to_look_at(client, impatient, served, unanswered):
    alias, _, b = served
    promote(client, impatient, alias, b)
    unanswered("UpdateAliases", is_made=False)
    with pytest.raises(StoreUnavailable, match=f"may still be applied.*only where '{alias}' still names '{b}'"):
        rollback(client, impatient, alias)


def test_a_collection_that_was_created_without_an_answer_is_used(client, impatient, manifest, unanswered):
    store = Store(client, impatient)
    unanswered("Create", is_made=True)
    assert store.ensure(manifest) == manifest
    assert store.count() == 0
    assert store.delete_collection()


def test_a_collection_that_was_not_created_may_still_be(client, impatient, manifest, unanswered):
    unanswered("Create", is_made=False)
    with pytest.raises(StoreUnavailable, match=r"creating collection .* may still be applied"):
        Store(client, impatient).ensure(manifest)


def test_a_deletion_without_an_answer_is_one_where_the_collection_is_gone(
    client, config, impatient, manifest, unanswered
):
    Store(client, config).ensure(manifest)
    store = Store(client, impatient)
    unanswered("Delete", is_made=True)
    assert store.delete_collection() is True
    assert impatient.collection not in collection_names(client)
    assert store.delete_collection() is False


def test_a_deletion_that_was_not_made_may_still_be(client, config, impatient, manifest, unanswered):
    Store(client, config).ensure(manifest)
    store = Store(client, impatient)
    unanswered("Delete", is_made=False)
    with pytest.raises(StoreUnavailable, match=r"deleting collection .* may still be applied"):
        store.delete_collection()
    assert store.count() == 0


def test_a_refusal_is_no_unknown_outcome(client, impatient, served):
    with pytest.raises(CollectionMissing, match="no such collection"):
        promote(client, impatient, served[0], "none-such")
