"""Aliases: a second name of a collection, switched while others read."""

import threading
import uuid

import grpc
import pytest
from qdrant_client import grpc as api
from qdrant_client import models

from tests.integration.vector_store.contract.collection import NAME, OVER_GRPC, SPARSE, VECTORS, ids
from tests.store_clients import REFUSALS, refusal


def create_alias(alias, collection=NAME):
    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias))


def rename_alias(old, new):
    return models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name=old, new_alias_name=new))


def delete_alias(alias):
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def aliases_of(official, collection=NAME):
    return sorted(alias.alias_name for alias in official.get_collection_aliases(collection).aliases)


@pytest.fixture
def second(filled):
    """Another collection, of one point with id 1000."""
    name = f"second-{uuid.uuid4()}"
    filled.create_collection(name, vectors_config=VECTORS, sparse_vectors_config=SPARSE)
    filled.upsert(name, [models.PointStruct(id=1000, vector={"dense": [0.0, 0.0, 1.0, 0.0]}, payload={"group": "a"})])
    yield name
    filled.delete_collection(name)


def test_every_call_accepts_an_alias_of_the_collection(filled):
    filled.update_collection_aliases([create_alias("current")])
    assert filled.count("current").count == 10
    filled.upsert("current", [models.PointStruct(id=70, vector={}, payload={"n": 70})])
    filled.set_payload("current", {"extra": 1}, points=[70])
    assert filled.retrieve("current", [70])[0].payload == {"n": 70, "extra": 1}
    filled.delete("current", models.PointIdsList(points=[70]))
    assert len(filled.scroll("current", limit=100)[0]) == 10
    found = filled.query_points("current", query=[[1.0, 0.0]], using="many", limit=1).points
    assert ids(found) == [9]
    batch = filled.query_batch_points("current", [models.QueryRequest(query=[[1.0, 0.0]], using="many", limit=1)])
    assert ids(batch[0].points) == [9]
    filled.create_payload_index("current", "group", models.PayloadSchemaType.KEYWORD, wait=True)
    filled.delete_payload_index("current", "group", wait=True)
    assert filled.collection_exists("current")
    assert filled.get_collection("current").points_count == 10
    filled.update_collection("current", metadata={"by_alias": True})
    assert filled.get_collection(NAME).config.metadata["by_alias"] is True


def test_aliases_are_listed_renamed_and_deleted(filled, second):
    filled.update_collection_aliases([create_alias("a"), create_alias("b"), create_alias("c", second)])
    assert aliases_of(filled) == ["a", "b"]
    assert aliases_of(filled, second) == ["c"]
    everywhere = {(alias.alias_name, alias.collection_name) for alias in filled.get_aliases().aliases}
    assert {("a", NAME), ("b", NAME), ("c", second)} <= everywhere
    filled.update_collection_aliases([rename_alias("a", "z"), delete_alias("b")])
    assert aliases_of(filled) == ["z"]
    filled.update_collection_aliases([delete_alias("never was")])
    assert NAME in [collection.name for collection in filled.get_collections().collections]
    assert "z" not in [collection.name for collection in filled.get_collections().collections]


def test_an_alias_is_switched_to_another_collection_and_back(filled, second):
    filled.update_collection_aliases([create_alias("current")])
    filled.update_collection_aliases([create_alias("current", second)])
    assert filled.count("current").count == 1
    filled.update_collection_aliases([delete_alias("current"), create_alias("current")])
    assert filled.count("current").count == 10


def test_deleting_a_collection_deletes_its_aliases_and_deleting_an_alias_name_no_collection(filled, second):
    filled.update_collection_aliases([create_alias("current"), create_alias("other", second)])
    filled.delete_collection("current")
    assert filled.count("current").count == 10
    filled.delete_collection(NAME)
    assert not filled.collection_exists("current")
    with pytest.raises(REFUSALS) as caught:
        filled.count("current")
    assert refusal(caught.value)[0] == "NOT_FOUND"
    assert aliases_of(filled) == []
    assert aliases_of(filled, second) == ["other"]


def change_aliases(client, *actions):
    client.collections.UpdateAliases(api.ChangeAliases(actions=actions), timeout=10, metadata=client._metadata)


def create_action(alias, collection=NAME):
    return api.AliasOperations(create_alias=api.CreateAlias(collection_name=collection, alias_name=alias))


@pytest.mark.parametrize(
    ("action", "codes"),
    [
        (create_action("x", "nowhere"), {"NOT_FOUND"}),
        (create_action(NAME), {"ALREADY_EXISTS", "INVALID_ARGUMENT"}),
        (
            api.AliasOperations(rename_alias=api.RenameAlias(old_alias_name="nothing", new_alias_name="x")),
            {"NOT_FOUND", "INVALID_ARGUMENT"},
        ),
    ],
)
def test_bad_alias_changes_are_refused(filled, client, action, codes):
    with pytest.raises(grpc.RpcError) as caught:
        change_aliases(client, action)
    assert caught.value.code().name in codes
    assert aliases_of(filled) == []


def test_a_collection_is_not_created_under_an_aliass_name(filled):
    filled.update_collection_aliases([create_alias("current")])
    with pytest.raises(REFUSALS, match=r"Alias with the same name already exists"):
        filled.create_collection("current", vectors_config=VECTORS)
    assert filled.count("current").count == 10


@OVER_GRPC
def test_calls_succeed_while_an_alias_is_switched(filled, second, client):
    """Each answer is whole and from one of the two collections; none is an error."""
    filled.update_collection_aliases([create_alias("current")])
    count = api.CountPoints(collection_name="current", exact=True)
    done, answers, errors = threading.Event(), set(), []

    def ask():
        while not done.is_set():
            try:
                answers.add(client.points.Count(count, timeout=10, metadata=client._metadata).result.count)
            except grpc.RpcError as error:
                errors.append(error)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    for turn in range(40):
        change_aliases(client, create_action("current", [second, NAME][turn % 2]))
    done.set()
    for thread in asking:
        thread.join()
    assert errors == []
    assert answers == {1, 10}
