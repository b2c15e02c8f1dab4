"""Copies of shards that differ after failed writes: found, told apart by node, and made equal (tests/qdrant_cluster.py)."""

import dataclasses
import threading

import pytest

from tests.qdrant_cluster import Cluster
from vector_store.__main__ import BAD, FINE, UNAVAILABLE, main
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.copies import compare_copies
from vector_store.errors import StoreUnavailable
from vector_store.schema import parts, point_id
from vector_store.store import Store
from vector_store.transfer import export_points, import_points


@pytest.fixture
def cluster(server_url):
    with Cluster(server_url, num_nodes=3) as cluster:
        yield cluster


@pytest.fixture
def sound_points(manifest, make_points):
    return [dataclasses.replace(each, id=point_id(manifest.fingerprint, parts(each.text))) for each in make_points(40)]


@pytest.fixture
def opened(cluster, manifest):
    """Open a memory with two copies of each of two shards: client, config and store."""
    clients = []

    def open_(**options):
        config = StoreConfig(
            **{"url": cluster.url, "shard_number": 2, "replication_factor": 2, "write_deadline_s": 20, **options}
        )
        clients.append(client := connect(config, config.url))
        store = Store(client, config)
        store.ensure(manifest)
        return client, config, store

    yield open_
    for client in clients:
        client.close()


def later(seconds, what, *arguments):
    timer = threading.Timer(seconds, what, arguments)
    timer.start()
    return timer


def impatient(config):
    return config.model_copy(update={"write_deadline_s": 0.5})


def test_a_failed_write_is_repeated_until_every_copy_has_it(cluster, opened, sound_points):
    _, _, store = opened(write_consistency_factor=2)
    cluster.kill(1)
    timer = later(0.5, cluster.start, 1)
    assert store.upsert(sound_points) == 40
    timer.join()
    assert cluster.copies_are_equal("references")
    assert store.count() == 40


def test_points_that_a_copy_lacks_are_not_stored_yet(cluster, opened, sound_points):
    client, config, store = opened(write_consistency_factor=2)
    cluster.kill(1)
    with pytest.raises(StoreUnavailable):
        Store(client, impatient(config)).upsert(sound_points)
    cluster.start(1)
    assert not cluster.copies_are_equal("references"), "the living copy has kept them, as on a real server"
    ids = [point.id for point in sound_points]
    assert store.existing(ids) == set()
    store.upsert([point for point in sound_points if point.id not in store.existing(ids)])
    assert store.existing(ids) == set(ids)
    assert cluster.copies_are_equal("references")


def test_an_import_writes_what_a_copy_lacks(cluster, opened, sound_points, tmp_path):
    client, config, store = opened()
    store.upsert(sound_points)
    export_points(store, tmp_path / "export", 100)
    cluster.lose("references", 1, [point.id for point in sound_points[:9]])
    done = import_points(store, tmp_path / "export")
    num_lost = done.num_written
    assert (done.num_read, done.num_skipped) == (40, 40 - num_lost)
    assert num_lost > 0
    assert cluster.copies_are_equal("references")
    assert compare_copies(client, config).num_differing == 0


def test_while_a_copy_is_away_the_others_say_what_is_stored(cluster, opened, sound_points, caplog):
    client, config, store = opened()
    store.upsert(sound_points)
    cluster.kill(1)
    ids = [point.id for point in sound_points]
    assert Store(client, impatient(config)).existing(ids) == set(ids)
    assert "a copy of 'references' does not answer" in caplog.text


def test_verify_says_which_points_are_missing_where_and_repair_writes_them_again(cluster, opened, sound_points, capsys):
    _, _, store = opened()
    store.upsert(sound_points)
    store.keep("blob", b"content")
    at_1 = cluster.ids("references", 0, 1) & {point.id for point in sound_points}
    lost = sorted(at_1)[:3]
    cluster.lose("references", 1, lost)
    assert main(["verify", cluster.url]) == BAD
    said = capsys.readouterr().out
    assert "40 points checked, 0 bad" in said
    assert "copies: 41 points compared in 2 copies, 3 differ" in said
    assert f"{cluster.nodes[1].url} lacks 3" in said
    for identifier in lost:
        assert f"{identifier}: missing at {cluster.nodes[1].url}" in said
    assert f"shard 0 at {cluster.nodes[1].url}: {len(cluster.ids('references', 0, 1))} points" in said
    assert main(["verify", cluster.url, "--repair"]) == FINE
    assert "3 written again, 0 still differ" in capsys.readouterr().out
    assert cluster.copies_are_equal("references")
    assert main(["verify", cluster.url]) == FINE
    assert "0 differ" in capsys.readouterr().out


def test_a_node_without_a_copy_is_not_said_to_lack_its_points(cluster, opened, sound_points):
    client, config, store = opened(shard_number=1)  # on the nodes 0 and 1; node 2 answers as one of these
    store.upsert(sound_points)
    lost = sorted(point.id for point in sound_points)[:5]
    for node in (0, 1):
        cluster.lose("references", node, lost)
        found = compare_copies(client, config, repair=True)
        assert dict(found.missing) == {cluster.nodes[node].url: 5}
        assert (found.num_repaired, found.num_left) == (5, 0)


def test_residuals_go_to_the_points_that_every_copy_has(cluster, opened, sound_points):
    client, config, store = opened()
    store.upsert(sound_points)
    lost = [point.id for point in sound_points[:9]]
    cluster.lose("references", 1, lost)
    there = store.existing([point.id for point in sound_points])
    assert len(there) < 40
    assert store.set_residuals("reader", {point.id: point.vector for point in sound_points}) == len(there)
    with_residual = {point.id for page in store.pages() for point in page if "reader" in point.residuals}
    assert there <= with_residual
    compare_copies(client, config, repair=True)
    assert store.set_residuals("reader", {point.id: point.vector for point in sound_points}) == 40


def test_content_that_differs_is_found_and_the_fuller_one_is_kept(cluster, opened, sound_points, manifest):
    client, config, store = opened(write_consistency_factor=2)
    store.upsert(sound_points)
    residual = sound_points[0].vector
    cluster.kill(1)
    with pytest.raises(StoreUnavailable):  # the copies that live have it
        Store(client, impatient(config)).set_residuals("reader", {point.id: residual for point in sound_points})
    cluster.start(1)
    found = compare_copies(client, config)
    assert 0 < found.num_differing <= 40
    assert found.missing.total() == 0
    assert found.first_differing[0][1] == "its content differs between copies"
    repaired = compare_copies(client, config, repair=True)
    assert (repaired.num_repaired, repaired.num_left) == (found.num_differing, 0)
    assert cluster.copies_are_equal("references")
    assert sum("reader" in point.residuals for page in store.pages() for point in page) >= found.num_differing


def test_a_deletion_that_failed_in_one_copy_is_whole_once_it_is_repeated(cluster, opened, sound_points):
    client, config, store = opened(write_consistency_factor=2)
    store.upsert(sound_points)
    document = sound_points[0].document
    ids = {point.id for point in sound_points if point.document == document}
    # The ids that are remembered are written first, to both copies; then the node goes, and keeps what the other deletes.
    cluster.before_call = lambda method: cluster.kill(1) if method == "Delete" else None
    with pytest.raises(StoreUnavailable):
        Store(client, impatient(config)).delete(("document", document))
    cluster.before_call = lambda method: None
    cluster.start(1)
    assert not cluster.copies_are_equal("references")
    store.delete(("document", document))
    assert cluster.copies_are_equal("references")
    assert not ids & (cluster.ids("references", 0, 1) | cluster.ids("references", 1, 1))
    assert ids <= store.deleted_ids()


def test_verify_checks_what_it_can_read_while_a_node_is_away(cluster, opened, sound_points, capsys, monkeypatch):
    _, _, store = opened()
    store.upsert(sound_points)
    cluster.kill(1)
    monkeypatch.setattr("vector_store.copies.NODE_S", 0.5)
    assert main(["verify", cluster.url]) == UNAVAILABLE
    said = capsys.readouterr().out
    assert "40 points checked, 0 bad" in said
    assert "not every copy was compared" in said
    assert cluster.nodes[1].url in said


def test_writes_that_need_several_copies_are_warned_of(opened, caplog):
    opened(write_consistency_factor=2)
    assert "needs 2 copies for every write" in caplog.text
    assert "--repair" in caplog.text
