"""The store's client, writer and reader on a cluster of nodes, some of which are away (tests/qdrant_cluster.py)."""

import dataclasses
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from tests.qdrant_cluster import Cluster
from vector_store.__main__ import UNAVAILABLE, main
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Query, SparseVector
from vector_store.snapshots import create_snapshot
from vector_store.store import Store
from vector_store.term_statistics import publish_term_statistics
from vector_store.versions import promote


@pytest.fixture
def open_cluster(server_url):
    """Open a cluster in front of the tests' embedded server."""
    opened = []

    def open_(num_nodes=3, **options):
        opened.append(Cluster(server_url, num_nodes, **options).__enter__())
        return opened[-1]

    yield open_
    for cluster in opened:
        cluster.__exit__()


def config_of(cluster, **options):
    return StoreConfig(**{"url": cluster.url, "write_deadline_s": 20, "lookup_deadline_ms": 5000, **options})


def queries_of(points):
    return [Query(point.id, point.keywords, point.sentence, point.document) for point in points]


@contextmanager
def without_node_1(open_cluster, manifest, points):
    """A collection over three nodes without copies, of which one is dead."""
    cluster = open_cluster(3)
    config = config_of(cluster)
    with connect(config, config.url) as client:
        Store(client, config).ensure(manifest)
        Store(client, config).upsert(points)
        cluster.kill(1)
        yield cluster, client, config, points


def later(seconds, what, *arguments):
    timer = threading.Timer(seconds, what, arguments)
    timer.start()
    return timer


def test_a_collection_over_several_shards_is_written_read_and_searched_whole(open_cluster, manifest, make_points):
    cluster, points = open_cluster(3), make_points(60)
    config = config_of(cluster, replication_factor=2)
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        assert store.upsert(points) == 60
        assert store.count() == 60
        assert [point.id for page in store.pages(7) for point in page] == sorted(point.id for point in points)
        assert cluster.copies_are_equal("references")
        assert all(len(cluster.ids("references", shard, shard)) > 5 for shard in range(3))
        found = Retriever(client, config, manifest, "keywords").neighbours(queries_of(points))
        assert found.rungs == ["live"] * 60


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_with_two_copies_a_lost_node_costs_nothing(open_cluster, manifest, make_points, how, monkeypatch):
    monkeypatch.setattr("vector_store.client.SHORTEST_ATTEMPT_S", 1)
    cluster, points = open_cluster(3), make_points(60)
    config = config_of(cluster, shard_number=2, replication_factor=2, upsert_bytes=2000, write_deadline_s=6)
    with connect(config, config.url, rank=0) as client:
        store = Store(client, config)
        store.ensure(manifest)
        store.upsert(points[:30])
        getattr(cluster, how)(0)
        assert store.upsert(points[30:]) == 30
        assert store.existing([point.id for point in points]) == {point.id for point in points}
        found = Retriever(client, config, manifest, "keywords").neighbours(queries_of(points))
        assert found.rungs == ["live"] * 60
        cluster.start(0)
        assert cluster.copies_are_equal("references")


def test_calls_go_on_when_the_node_with_the_only_copy_is_back_within_the_deadline(open_cluster, manifest, make_points):
    cluster, points = open_cluster(3), make_points(60)
    config = config_of(cluster)
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest)
        store.upsert(points[:20])
        for call, wanted in [
            (lambda: store.upsert(points), 60),
            (store.count, 60),
            (lambda: len(store.existing([point.id for point in points])), 60),
            (store.manifest, manifest),
            (lambda: sum(map(len, store.pages())), 60),
        ]:
            cluster.kill(1)
            timer = later(0.5, cluster.start, 1)
            assert call() == wanted
            timer.join()


def test_a_shard_that_stays_away_ends_calls_in_one_line_that_names_the_dead_node(open_cluster, manifest, make_points):
    with without_node_1(open_cluster, manifest, make_points(60)) as (cluster, client, config, points):
        store = Store(client, config.model_copy(update={"write_deadline_s": 0.5}))
        store._manifest = manifest
        for call in (
            lambda: store.upsert(points), store.count, store.manifest, lambda: store.existing([each.id for each in points]),
            lambda: list(store.pages()), lambda: store.delete(("split", "test")), lambda: store.drop_residuals("r"),
        ):  # fmt: skip
            with pytest.raises(StoreUnavailable) as caught:
                call()
            assert "\n" not in str(caught.value)
            assert f"{cluster.nodes[1].url} does not answer at all" in str(caught.value)


def test_a_look_up_without_a_shard_degrades_and_one_with_patience_waits(open_cluster, manifest, make_points):
    with without_node_1(open_cluster, manifest, make_points(60)) as (cluster, client, config, points):
        assert Retriever(client, config, manifest, "keywords").neighbours(queries_of(points)).rungs == ["null"] * 60
        timer = later(0.5, cluster.start, 1)
        patient = Retriever(client, config, manifest, "keywords", patience_s=20)
        assert patient.neighbours(queries_of(points)).rungs == ["live"] * 60
        timer.join()


def test_without_most_nodes_a_change_ends_as_unavailable_and_an_upsert_at_its_deadline(
    open_cluster, manifest, make_points
):
    cluster = open_cluster(3)
    config = config_of(cluster, replication_factor=3, shard_number=1, url=cluster.urls[0])
    with connect(config, config.url) as client:
        Store(client, config).ensure(manifest)
        store = Store(client, config.model_copy(update={"write_deadline_s": 0.5}))
        store.manifest()
        cluster.kill(1)
        cluster.kill(2)
        other = Store(client, config.model_copy(update={"collection": "other", "write_deadline_s": 0.5}))
        with pytest.raises(StoreUnavailable, match="consensus"):
            other.ensure(manifest)
        with pytest.raises(StoreUnavailable, match="DEADLINE_EXCEEDED"):
            store.upsert(make_points(20))
        cluster.start(1)
        assert other.manifest() == manifest, "it was applied when most nodes were back"


def test_a_key_that_may_only_read_reads_and_searches_and_is_told_that_it_may_not_write(
    open_cluster, manifest, make_points
):
    cluster, points = open_cluster(1, api_key="all", read_only_key="reads"), make_points(12)
    config = config_of(cluster)
    with connect(config, config.url, "all") as client:
        Store(client, config).ensure(manifest)
        Store(client, config).upsert(points)
    with connect(config, config.url, "reads") as client:
        store = Store(client, config)
        assert store.require(manifest) == manifest
        assert store.count() == sum(map(len, store.pages())) == 12
        assert Retriever(client, config, manifest, "keywords").neighbours(queries_of(points)).rungs == ["live"] * 12
        for write in (lambda: store.upsert(points), lambda: store.ensure(manifest), store.delete_collection):
            with pytest.raises(StoreError, match="this key may not write"):
                write()
    with connect(config, config.url, "wrong") as client, pytest.raises(StoreError, match="key sent is not accepted"):
        Store(client, config).count()


def test_info_and_aliases_show_what_lives_beside_a_collection_whose_shard_is_away(
    open_cluster, manifest, make_points, capsys, monkeypatch
):
    monkeypatch.setattr("vector_store.__main__.SHOWN_WITHIN_S", 0.5)
    cluster = open_cluster(3)
    for name, copies in (("a-dead", 1), ("b-living", 2)):
        config = config_of(cluster, collection=name, shard_number=2, replication_factor=copies)
        with connect(config, config.url) as client:
            Store(client, config).ensure(manifest)
            Store(client, config).upsert(make_points(12))
            assert promote(client, config, f"{name}-alias", name).collection == name
    cluster.kill(1)
    assert main(["info", cluster.url]) == UNAVAILABLE
    said = capsys.readouterr().out
    assert f"{cluster.nodes[1].url} does not answer" in said
    assert "a-dead: cannot be read now" in said
    assert "b-living: 12 points" in said
    assert main(["aliases", cluster.url]) == UNAVAILABLE
    said = capsys.readouterr().out
    assert "a-dead-alias -> a-dead  (before: cannot be read now: " in said
    assert "b-living-alias -> b-living  (before: none)" in said


def test_no_snapshot_is_made_of_a_part_of_a_memory(open_cluster, manifest, make_points):
    cluster = open_cluster(3)
    config = config_of(cluster, shard_number=2)
    with connect(config, config.url, rank=0) as client:
        store = Store(client, config)
        store.ensure(manifest)
        store.upsert(make_points(12))
        with pytest.raises(
            StoreError, match=r"a snapshot would hold a part of 'references': its shards .*export"
        ) as caught:
            create_snapshot(client, config.collection)
        assert "\n" not in str(caught.value)
        cluster.kill(0)
        with pytest.raises(StoreUnavailable):
            create_snapshot(client, config.collection)


def test_rank_and_scores_do_not_depend_on_the_number_of_shards_nor_on_deletions(open_cluster, manifest, make_points):
    keyword = SparseVector(np.array([9_999], np.uint32), np.ones(1, np.float32))  # one product each: no sum's last bit
    tied = [dataclasses.replace(each, keywords=keyword, document=each.id) for each in make_points(12, seed=2)]
    cluster, points = open_cluster(1), [*make_points(150), *tied]
    by_id = sorted(point.id for point in tied)
    ranked = []
    for shards in (1, 4):
        config = config_of(cluster, collection=f"shards-{shards}", shard_number=shards)
        with connect(config, config.url) as client:
            store = Store(client, config)
            store.ensure(manifest)
            store.upsert([*points, *make_points(50, seed=1)] if shards == 4 else points)
            for number in range(25) if shards == 4 else ():
                store.delete(("document", f"d{number}"))  # of both seeds
            store.upsert(points)
            store.delete(("source", "nobody"))
            publish_term_statistics(client, config)
            found = Retriever(client, config, manifest, "keywords", count=8).neighbours(queries_of(points))
            ranked.append((found.ids, found.scores))
            for point, ids in zip(tied, found.ids[-len(tied) :], strict=True):
                assert ids == [each for each in by_id if each != point.id][:8], "equal scores come by id"
    (one, scores), (four, their_scores) = ranked
    assert one == four
    np.testing.assert_allclose(scores, their_scores, rtol=1e-6)  # a sum's last bit is a segment's own
