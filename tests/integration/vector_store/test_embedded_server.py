"""The embedded server as a process: leases, restarts, kills, keys. For the embedded server only."""

import json
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import is_alive, kill_server, server_pid
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMissing, StoreError, StoreUnavailable
from vector_store.retriever import Retriever
from vector_store.schema import Query
from vector_store.server.process import embedded_server, serve
from vector_store.store import Store


def wait_until(condition, deadline_s=10.0):
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def store_at(url, **config):
    config = StoreConfig(url=url, **config)
    return Store(connect(config, url), config)


@contextmanager
def filled_store(path, manifest, points):
    """A running server that holds the points: its address, a client, its config, and a query for each point."""
    queries = [Query(point.id, point.keywords, document=point.document) for point in points]
    with embedded_server(path) as url:
        config = StoreConfig(url=url)
        with connect(config, url) as client:
            store = Store(client, config)
            store.ensure(manifest)
            store.upsert(points)
            yield url, client, config, queries


def create_plain(client, name):
    create = api.CreateCollection(collection_name=name)
    create.vectors_config.params.size, create.vectors_config.params.distance = 2, api.Distance.Dot
    client.call(client.collections.Create, create, 10)


# ---------------------------------------------------------------- durability


def test_everything_survives_a_clean_restart(tmp_path, manifest, make_points):
    points = make_points(30)
    with embedded_server(tmp_path) as url:
        store = store_at(url)
        store.ensure(manifest)
        store.upsert(points)
        pid = server_pid(tmp_path)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid))
    with embedded_server(tmp_path) as again:
        assert again == url, "the port is kept, so that clients find the server again"
        store = store_at(again)
        assert store.manifest() == manifest
        assert store.count() == 30
        assert store.fetch([points[3].id]).ids == [[points[3].id]]
    assert "stopped serving" in (tmp_path / "server.log").read_text()


def _upsert_until_killed(url: str, acknowledged) -> None:
    with connect(StoreConfig(url=url), url) as client:
        for batch in range(10_000):
            points = []
            for n in range(batch * 5, batch * 5 + 5):
                point = api.PointStruct(id=api.PointId(num=n))
                point.payload["n"].integer_value = n
                point.vectors.vectors.vectors["keywords"].sparse.CopyFrom(api.SparseVector(indices=[n], values=[1.0]))
                points.append(point)
            request = api.UpsertPoints(collection_name="references", wait=True, points=points)
            try:
                client.points.Upsert(request, timeout=10)
            except grpc.RpcError:
                return
            acknowledged.value = batch + 1


def test_every_acknowledged_point_survives_a_kill_under_load(tmp_path, manifest):
    spawn = multiprocessing.get_context("spawn")
    acknowledged = spawn.Value("i", 0)
    with embedded_server(tmp_path) as url:
        store_at(url).ensure(manifest.model_copy(update={"dense_index": False}))
        writer = spawn.Process(target=_upsert_until_killed, args=(url, acknowledged))
        writer.start()
        wait_until(lambda: acknowledged.value > 50, deadline_s=30)
        kill_server(tmp_path)
        writer.join(15)
    with embedded_server(tmp_path) as url, connect(StoreConfig(url=url), url) as client:
        wanted = [api.PointId(num=n) for n in range(acknowledged.value * 5)]
        request = api.GetPoints(
            collection_name="references", ids=wanted, with_payload=api.WithPayloadSelector(enable=True)
        )
        found = client.call(client.points.Get, request, 10).result
        assert {point.payload["n"].integer_value for point in found} == set(range(acknowledged.value * 5))


def test_aliases_and_settings_survive_a_kill(tmp_path):
    with embedded_server(tmp_path) as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")
        action = api.AliasOperations(create_alias=api.CreateAlias(collection_name="c", alias_name="current"))
        client.call(client.collections.UpdateAliases, api.ChangeAliases(actions=[action]), 10)
        update = api.UpdateCollection(collection_name="current")
        update.optimizers_config.indexing_threshold = 0
        client.call(client.collections.Update, update, 10)
        kill_server(tmp_path)
    with embedded_server(tmp_path) as url, connect(StoreConfig(), url) as client:
        found = client.call(client.collections.Get, api.GetCollectionInfoRequest(collection_name="current"), 10)
        assert found.result.config.optimizer_config.indexing_threshold == 0
        assert found.result.config.optimizer_config.HasField("indexing_threshold")


def test_a_list_of_alias_changes_is_applied_whole_or_not_at_all(tmp_path):
    with embedded_server(tmp_path) as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")

        def create(collection, alias):
            return api.AliasOperations(create_alias=api.CreateAlias(collection_name=collection, alias_name=alias))

        changes = api.ChangeAliases(actions=[create("c", "first"), create("nowhere", "second")])
        with pytest.raises(CollectionMissing, match="nowhere"):
            client.call(client.collections.UpdateAliases, changes, 10)
        assert not client.call(client.collections.ListAliases, api.ListAliasesRequest(), 10).aliases


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """384 MB of memory as a disk."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=384m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def large_points(batch, num=16):
    """Points that no compression makes smaller: 64 kB each."""
    points = []
    for n in range(batch * num, batch * num + num):
        point = api.PointStruct(id=api.PointId(num=n))
        point.payload["noise"].string_value = os.urandom(32_768).hex()
        point.vectors.vector.dense.data.extend([float(n), 1.0])
        points.append(point)
    return api.UpsertPoints(collection_name="c", wait=True, points=points)


def readable(client):
    request = api.ScrollPoints(collection_name="c", limit=10_000, with_payload=api.WithPayloadSelector(enable=True))
    result = client.call(client.points.Scroll, request, 30).result
    assert all(len(point.payload["noise"].string_value) == 65_536 for point in result)
    return sorted(point.id.num for point in result)


def test_a_full_disk_refuses_writes_loses_nothing_and_goes_on_once_there_is_room(small_disk):
    config = StoreConfig(message_bytes=512 * 2**20)
    root = small_disk / "store"
    ballast = small_disk / "ballast"

    def fill(client, first):
        """Write until refused; returns the batch that was."""
        for batch in range(first, 1000):
            request, started = large_points(batch), time.monotonic()
            try:
                client.call(client.points.Upsert, request, 30)
            except StoreError as error:
                refusal = str(error)
                break
        assert "No space left on device" in refusal
        assert "free some space" in refusal
        assert time.monotonic() - started < 5, "refused at once, not tried until the deadline"
        return batch

    with embedded_server(root, message_bytes=config.message_bytes) as url, connect(config, url) as client:
        create_plain(client, "c")
        ballast.write_bytes(bytes(80 * 2**20))
        batches = fill(client, 0)
        assert batches > 10
        assert readable(client) == list(range(batches * 16))
        kill_server(root)
    with embedded_server(root, message_bytes=config.message_bytes) as url, connect(config, url) as client:
        assert readable(client) == list(range(batches * 16))
        with pytest.raises(StoreError, match="No space left"):
            client.call(client.points.Upsert, large_points(batches), 30)
        ballast.unlink()
        more = fill(client, batches)
        assert more > batches + 5
        assert readable(client) == list(range(more * 16))
        some = api.PointsSelector(points=api.PointsIdsList(ids=[api.PointId(num=0)]))
        client.call(client.points.Delete, api.DeletePoints(collection_name="c", points=some), 10)
        client.call(client.collections.Delete, api.DeleteCollection(collection_name="c"), 10)
        create_plain(client, "c")
        client.call(client.points.Upsert, large_points(0), 30)
        assert readable(client) == list(range(16))


def test_a_store_on_a_disk_that_others_filled_says_so_and_opens_once_there_is_room(small_disk):
    root = small_disk / "store"
    with embedded_server(root) as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")
        client.call(client.points.Upsert, large_points(0), 30)
        kill_server(root)
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "ballast").write_bytes(bytes(384 * 2**20))
    with pytest.raises(StoreUnavailable, match="No space left on device"), embedded_server(root):
        pass
    (small_disk / "ballast").unlink()
    with embedded_server(root) as url, connect(StoreConfig(), url) as client:
        assert readable(client) == list(range(16))


# ---------------------------------------------------------------- leases


def test_it_lives_while_any_user_does_and_ends_after_the_last(tmp_path):
    first = embedded_server(tmp_path)
    url = first.__enter__()
    pid = server_pid(tmp_path)
    with embedded_server(tmp_path) as same:
        assert same == url
        first.__exit__(None, None, None)
        time.sleep(4)
        assert is_alive(pid)
    wait_until(lambda: not is_alive(pid))


def _hold(path: str, ready) -> None:
    with embedded_server(path):
        ready.set()
        time.sleep(60)


def test_a_killed_user_gives_its_lease_back(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    user = spawn.Process(target=_hold, args=(str(tmp_path), ready))
    user.start()
    assert ready.wait(30)
    pid = server_pid(tmp_path)
    user.kill()
    user.join()
    wait_until(lambda: not is_alive(pid))


def test_simultaneous_starters_end_with_one_server(tmp_path):
    def start(_):
        server = embedded_server(tmp_path)
        return server, server.__enter__()

    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(start, range(4)))
    try:
        assert len({url for _, url in started}) == 1
        serving = [line for line in (tmp_path / "server.log").read_text().splitlines() if " serving " in line]
        assert len(serving) == 1
    finally:
        for server, _ in started:
            server.__exit__(None, None, None)


def test_attaching_while_the_server_leaves_gets_a_living_server(tmp_path):
    with embedded_server(tmp_path):
        pass
    wait_until(lambda: "stopped serving" in (tmp_path / "server.log").read_text())  # and its process is still ending
    with embedded_server(tmp_path) as url:
        assert store_at(url).delete_collection() is False


def test_a_strangers_server_on_the_old_port_is_not_mistaken_for_ours(tmp_path):
    (tmp_path / "a").mkdir()
    with embedded_server(tmp_path / "b") as other:
        (tmp_path / "a" / "address.json").write_text(json.dumps({"url": other, "pid": 1, "instance": "old"}))
        with embedded_server(tmp_path / "a") as url:
            assert url != other


def test_it_starts_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with embedded_server("relative") as url:
        assert url.startswith("http://127.0.0.1:")


def test_the_address_file_is_for_its_owner_only(tmp_path):
    with embedded_server(tmp_path):
        assert stat.S_IMODE((tmp_path / "address.json").stat().st_mode) == 0o600


def test_a_failed_start_shows_the_log(tmp_path):
    (tmp_path / "collections").write_text("a file where a folder belongs")
    with (
        pytest.raises(StoreUnavailable, match=r"did not start, it ended with code 2:(.|\n)*File exists"),
        embedded_server(tmp_path),
    ):
        pass


# ---------------------------------------------------------------- keys and hosts


def test_a_key_is_required_where_one_is_set(tmp_path, manifest):
    with embedded_server(tmp_path, api_key="right") as url:
        config = StoreConfig(url=url, api_key_env="NO_SUCH_VARIABLE")
        for key, complaint in ((None, "no API key was sent"), ("wrong", "is not accepted")):
            with connect(config, url, api_key=key) as client, pytest.raises(StoreError, match=complaint):
                Store(client, config).count()
        with connect(config, url, api_key="right") as client:
            Store(client, config).ensure(manifest)
        with grpc.insecure_channel(url.removeprefix("http://")) as channel:
            assert "embedded" in api.QdrantStub(channel).HealthCheck(api.HealthCheckRequest()).title


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "some.host"])
def test_off_loopback_without_a_key_it_refuses_to_start(tmp_path, host):
    with pytest.raises(StoreError, match="without an API key"):
        serve(tmp_path, host=host)
    with pytest.raises(StoreError, match="without an API key"), embedded_server(tmp_path, host=host):
        pass
    assert not (tmp_path / "address.json").exists()


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("stub", "method", "request_"),
    [
        (api.PointsStub, "Facet", api.FacetCounts()),
        (api.PointsStub, "UpdateBatch", api.UpdateBatchPoints()),
        (api.CollectionsStub, "CreateShardKey", api.CreateShardKeyRequest()),
        (api.SnapshotsStub, "CreateFull", api.CreateFullSnapshotRequest()),
    ],
)
def test_what_is_left_out_is_unimplemented_by_name(tmp_path_factory, stub, method, request_):
    with (
        embedded_server(tmp_path_factory.getbasetemp() / "unimplemented") as url,
        grpc.insecure_channel(url.removeprefix("http://")) as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub(channel), method)(request_, timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert f"/{method} is not implemented by the embedded server" in caught.value.details()


def test_reflection_is_off(tmp_path_factory):
    with (
        embedded_server(tmp_path_factory.getbasetemp() / "unimplemented") as url,
        grpc.insecure_channel(url.removeprefix("http://")) as channel,
    ):
        for version in ("v1", "v1alpha"):
            ask = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
            with pytest.raises(grpc.RpcError) as caught:
                list(ask(iter([b""]), timeout=10))
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (api.UpdateCollection(params=api.CollectionParamsDiff(on_disk_payload=True)), "UpdateCollection.params"),
        (
            api.UpdateCollection(optimizers_config=api.OptimizersConfigDiff(memmap_threshold=1)),
            "OptimizersConfigDiff.memmap_threshold",
        ),
        (
            api.UpdateCollection(hnsw_config=api.HnswConfigDiff(max_indexing_threads=1)),
            "HnswConfigDiff.max_indexing_threads",
        ),
    ],
)
def test_an_option_that_cannot_be_changed_is_refused_by_name(tmp_path_factory, request_, name):
    with (
        embedded_server(tmp_path_factory.getbasetemp() / "unimplemented") as url,
        connect(StoreConfig(), url) as client,
    ):
        create_plain(client, "c")
        request_.collection_name = "c"
        with pytest.raises(StoreError, match=rf"UNIMPLEMENTED\): {name} is not implemented"):
            client.call(client.collections.Update, request_, 10)
        client.collections.Delete(api.DeleteCollection(collection_name="c"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_vectors_are_refused(tmp_path_factory, value):
    with embedded_server(tmp_path_factory.getbasetemp() / "finite") as url, connect(StoreConfig(), url) as client:
        create_plain(client, "c")
        point = api.PointStruct(id=api.PointId(num=1))
        point.vectors.vector.dense.data.extend([1.0, value])
        with pytest.raises(grpc.RpcError) as caught:
            client.points.Upsert(api.UpsertPoints(collection_name="c", points=[point]))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        client.collections.Delete(api.DeleteCollection(collection_name="c"))


def test_large_messages_pass_up_to_the_limit(tmp_path):
    config = StoreConfig(message_bytes=8 * 2**20)
    with embedded_server(tmp_path, message_bytes=config.message_bytes) as url, connect(config, url) as client:
        create_plain(client, "c")
        point = api.PointStruct(id=api.PointId(num=1))
        point.payload["text"].string_value = "x" * 6 * 2**20
        client.call(client.points.Upsert, api.UpsertPoints(collection_name="c", wait=True, points=[point]), 10)
        get = api.GetPoints(collection_name="c", ids=[point.id], with_payload=api.WithPayloadSelector(enable=True))
        assert len(client.call(client.points.Get, get, 10).result[0].payload["text"].string_value) == 6 * 2**20


# ---------------------------------------------------------------- the ladder


def test_the_ladder_goes_live_cached_null_and_back(tmp_path, manifest, make_points):
    with filled_store(tmp_path, manifest, make_points(20)) as (url, client, config, queries):
        retriever = Retriever(client, config, manifest, "keywords", with_text=True)
        live = retriever.neighbours(queries[:3])
        assert live.steps == ["live"] * 3

        kill_server(tmp_path)
        gone = retriever.neighbours(queries[:4])
        assert gone.steps == ["cached"] * 3 + ["null"]
        assert gone.ids == [*live.ids, []]
        assert gone.texts == [*live.texts, []]
        assert (gone.scores[:3] == live.scores).all()
        assert (gone.states[:3] == live.states).all()
        assert (gone.mask[:3] == live.mask).all()

        with embedded_server(tmp_path) as again:
            assert again == url
            wait_until(lambda: retriever.neighbours(queries[:4]).steps == ["live"] * 4, deadline_s=15)
        assert retriever.counts["cached"] >= 3


def test_a_store_that_hangs_costs_one_deadline_and_then_rests(manifest, make_points):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = StoreConfig(url=url, lookup_deadline_ms=300)
        with connect(config, url) as client:
            retriever = Retriever(client, config, manifest, "keywords")
            point = make_points(1)[0]
            started = time.monotonic()
            for _ in range(5):
                assert retriever.neighbours([Query(point.id, point.keywords)]).steps == ["null"]
            assert 0.2 < time.monotonic() - started < 0.9


def test_a_patient_look_up_waits_for_a_store_that_comes_back_and_not_for_one_that_does_not(
    tmp_path, manifest, make_points
):
    with filled_store(tmp_path, manifest, make_points(20)) as (url, client, config, queries):
        waits = Retriever(client, config, manifest, "keywords", patience_s=60)
        gives_up = Retriever(client, config, manifest, "keywords", patience_s=4)
        wanted = waits.neighbours(queries)
        kill_server(tmp_path)
        started = time.monotonic()
        assert gives_up.neighbours(queries).steps == ["null"] * 20
        assert 1.5 < time.monotonic() - started < 30
        started = time.monotonic()
        assert gives_up.neighbours(queries).steps == ["null"] * 20
        assert time.monotonic() - started < 3, "the wait is for the store's absence, not for each look-up"
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(waits.neighbours, queries)
            time.sleep(1)
            assert not asked.done()
            with embedded_server(tmp_path) as again:
                assert again == url
                assert asked.result().ids == wanted.ids
        assert waits.counts["live"] == 40
        assert waits.counts["cached"] == waits.counts["null"] == 0


# ---------------------------------------------------------------- the command line


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vector_store", *arguments], capture_output=True, text=True, timeout=60
    )


def test_info_shows_collections_points_and_manifests(tmp_path, manifest, make_points):
    with embedded_server(tmp_path) as url:
        store = store_at(url)
        store.ensure(manifest)
        store.upsert(make_points(3))
        for place in (url, str(tmp_path)):
            shown = run("info", place)
            assert shown.returncode == 0, shown.stderr
            assert "references: 3 points" in shown.stdout
            assert '"fingerprint":"f1"' in shown.stdout


def test_a_served_directory_is_not_served_twice(tmp_path):
    with embedded_server(tmp_path):
        second = run("serve", str(tmp_path))
    assert second.returncode == 75
    assert "already served" in second.stderr


def test_help_has_an_example():
    assert "python -m vector_store serve ./store" in run("--help").stdout
