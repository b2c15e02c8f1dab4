"""Kill -9 of the server while several processes write, and while an index is built: nothing acknowledged is lost."""

import subprocess
import time
from contextlib import ExitStack

import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import PATIENCE_S, audit, children, kill_server, server_pid, wait_until
from tests.chaos.load import acknowledged, make_point, manifest, num_acknowledged, start_writer
from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.schema import SENTENCE, Point
from vector_store.server.process import embedded_server
from vector_store.store import Store

NUM_WRITERS = 3
WRITE_DEADLINE_S = 180.0


@pytest.mark.timeout(900)
def test_no_point_is_lost_or_repeated_when_the_server_is_killed_during_a_load(tmp_path, is_long, moments):
    num_points, num_kills = (21_000, 20) if is_long else (2_400, 3)
    share = num_points // NUM_WRITERS
    path, journals = tmp_path / "store", [tmp_path / f"writer-{number}.journal" for number in range(NUM_WRITERS)]
    kill_at = sorted(moments.sample(range(num_points // 50, num_points * 7 // 10), num_kills))
    print(f"kill when acknowledged: {kill_at}")
    with ExitStack() as held:
        url = held.enter_context(embedded_server(path))
        config = StoreConfig(url=url)
        client = held.enter_context(connect(config, url))
        Store(client, config).ensure(manifest())
        # Each also writes the first points of the next one's share: two processes send the same ids.
        ranges = [(share * n, min(share * (n + 1) + share // 10, num_points)) for n in range(NUM_WRITERS)]
        writers = [
            held.enter_context(start_writer(url, journal, numbers, batch=4, write_deadline_s=WRITE_DEADLINE_S))
            for journal, numbers in zip(journals, ranges, strict=True)
        ]
        held.callback(lambda: [writer.kill() for writer in writers])

        between = []
        served = 0
        for moment in kill_at:
            # At least one acknowledgement since the last start: the kill falls into writing, whatever the moments are.
            wait_until(
                lambda moment=moment, served=served: num_acknowledged(journals) >= max(moment, served + 1),
                f"{moment} points are acknowledged, see {tmp_path}/writer-*.log",
            )
            time.sleep(moments.uniform(0, 0.03))
            between.append(num_acknowledged(journals) - served)
            assert any(writer.poll() is None for writer in writers), "the load ended before the last kill"
            kill_server(path)
            served = num_acknowledged(journals)
            assert held.enter_context(embedded_server(path)) == url, "the server came back at another port"
        for writer, journal in zip(writers, journals, strict=True):
            assert writer.wait(timeout=600) == 0, journal.with_suffix(".log").read_text()[-4000:]

        kill_server(path)  # so that what is read below was on disk
        assert held.enter_context(embedded_server(path)) == url
        found = audit(client, config, num_points, acknowledged(journals))
        print(f"kills={num_kills} {found}; acknowledged between kills: {between}")
        assert found.acknowledged == num_points
        assert found.is_exact
        assert min(between) > 0


@pytest.mark.timeout(1800)
def test_no_point_is_lost_when_the_server_is_killed_while_an_index_is_built_or_swapped_in(tmp_path, is_long, moments):
    if not is_long:
        pytest.skip("each build takes seconds, even of a small index: in the long form only")
    num_points, kinds = 2_000, ["build", "write", "swap"] * 2
    meanwhile = {"write": 1_500, "swap": 6_000}  # enough for the writer to be at it until the kill
    path, journal = tmp_path / "store", tmp_path / "writer.journal"
    described = manifest(tokens=1, dim=128)
    with ExitStack() as held:
        url = held.enter_context(embedded_server(path))
        config = StoreConfig(url=url)
        client = held.enter_context(connect(config, url))
        Store(client, config).ensure(described)

        def start_writing(upto: int, batch: int) -> subprocess.Popen:
            writer = start_writer(url, journal, (0, upto), batch=batch, write_deadline_s=WRITE_DEADLINE_S)
            held.callback(writer.kill)
            return held.enter_context(writer)

        def finish_writing(writer: subprocess.Popen) -> None:
            assert writer.wait(timeout=600) == 0, journal.with_suffix(".log").read_text()[-4000:]

        def start_building() -> None:
            """Ask for the index as a bulk load does: pause it, and let it be wanted again.

            It comes where more than a fifth is on top of what the last one holds.
            """
            for kilobytes in (0, 10):
                request = api.UpdateCollection(collection_name=config.collection)
                request.optimizers_config.indexing_threshold = kilobytes
                client.call(client.collections.Update, request, PATIENCE_S)
            wait_until(lambda: children(server_pid(path)), "a build starts")

        def finish_building() -> None:
            wait_until(lambda: not children(server_pid(path)), "the build ends")

        finish_writing(start_writing(num_points, batch=64))
        start_building()
        started = time.monotonic()
        finish_building()
        build_s = time.monotonic() - started
        print(f"an undisturbed build takes {build_s:.1f} s")
        for kind in kinds:
            num_points += num_points * 3 // 10
            finish_writing(start_writing(num_points, batch=64))
            start_building()
            started = time.monotonic()
            writer = None
            if kind in meanwhile:  # what is written meanwhile must be in the index's copy as well
                num_points += meanwhile[kind]
                before = num_acknowledged([journal])
                writer = start_writing(num_points, batch=1)
                wait_until(lambda before=before: num_acknowledged([journal]) > before, "a write during the build")
            if kind == "swap":
                finish_building()
                time.sleep(moments.uniform(0, 0.3))
            else:
                time.sleep(moments.uniform(0, 0.7 * build_s))
            num_building = len(children(server_pid(path)))
            num_writing = int(writer is not None and writer.poll() is None)
            kill_server(path)
            killed_s = time.monotonic() - started
            assert held.enter_context(embedded_server(path)) == url, "the server came back at another port"
            if writer is not None:
                finish_writing(writer)
            found = audit(client, config, num_points, acknowledged([journal]))
            print(f"killed in {kind} after {killed_s:.1f} s, {num_building} building, {num_writing} writing: {found}")
            assert found.is_exact

        num_points += num_points * 3 // 10
        finish_writing(start_writing(num_points, batch=64))
        start_building()
        finish_building()
        wait_until(lambda: is_green(client, config), "the collection is green")
        found = audit(client, config, num_points, acknowledged([journal]))
        asked = [make_point(number, described) for number in range(0, num_points, num_points // 200)]
        num_found = sum(finds_by_index(client, config, point) for point in asked)
        print(f"kills={len(kinds)} {found}; {num_found} of {len(asked)} found by the index")
        assert found.is_exact
        assert num_found >= 0.95 * len(asked)


def is_green(client: Client, config: StoreConfig) -> bool:
    request = api.GetCollectionInfoRequest(collection_name=config.collection)
    return client.call(client.collections.Get, request, PATIENCE_S).result.status == api.CollectionStatus.Green


def finds_by_index(client: Client, config: StoreConfig, point: Point) -> bool:
    """Whether a search of what is indexed brings the point first for its own vector."""
    nearest = api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=point.sentence)))
    request = api.QueryPoints(collection_name=config.collection, query=nearest, using=SENTENCE, limit=1)
    request.params.indexed_only = True
    found = client.call(client.points.Query, request, PATIENCE_S).result
    return bool(found) and found[0].id.uuid == point.id
