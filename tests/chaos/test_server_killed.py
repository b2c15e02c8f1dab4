"""Kill -9 of the server while several processes write, and while an index is built: nothing acknowledged is lost."""

import time
from contextlib import ExitStack

import pytest
from qdrant_client import grpc as api

from tests.chaos.faults import PATIENCE_S, audit, children, kill_server, server_pid, wait_until
from tests.chaos.load import acknowledged, make_point, manifest, num_acknowledged, start_writer
from vector_store.client import Client, connect
from vector_store.config import StoreConfig
from vector_store.schema import SENTENCE
from vector_store.server.process import embedded_server
from vector_store.store import Store

NUM_WRITERS = 3
WRITE_DEADLINE_S = 180.0


@pytest.mark.timeout(900)
def test_a_load_survives_kills_of_the_server_without_losing_or_repeating_a_point(tmp_path, is_long, moments):
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
def test_a_memory_survives_kills_of_the_server_while_its_index_is_built_and_taken_into_use(tmp_path, is_long, moments):
    if not is_long:
        pytest.skip("an index is built after 10 quiet seconds: in the long form only")
    path, journal = tmp_path / "store", tmp_path / "writer.journal"
    num_points = 12_000  # at 256 dimensions enough bytes for the engine to want an index
    kinds = ["build", "write", "swap"] * 2
    with ExitStack() as held:
        url = held.enter_context(embedded_server(path))
        config = StoreConfig(url=url)
        client = held.enter_context(connect(config, url))
        described = manifest(tokens=1, dim=256)
        Store(client, config).ensure(described)

        def start_writing(upto: int):
            return held.enter_context(
                start_writer(url, journal, (0, upto), batch=64, write_deadline_s=WRITE_DEADLINE_S)
            )

        assert start_writing(num_points).wait(timeout=600) == 0
        indexed, build_s = 0, 3.0
        for kind in kinds:
            # A collection that has an index is indexed again when it has grown by a fifth.
            grown = num_indexed(client, config) > indexed
            indexed = num_indexed(client, config)
            num_points += num_points // 4 if grown else 64
            assert start_writing(num_points).wait(timeout=600) == 0
            wait_until(lambda: children(server_pid(path)), "a build starts")
            started = time.monotonic()
            writer = None
            if kind == "swap":
                wait_until(lambda: not children(server_pid(path)), "the build ends")
                build_s = time.monotonic() - started
                time.sleep(moments.uniform(0, 0.2))
            else:
                time.sleep(moments.uniform(0, build_s))
            if kind == "write":
                num_points += 256
                writer = start_writing(num_points)
                before = num_acknowledged([journal])
                wait_until(lambda before=before: num_acknowledged([journal]) > before, "a write during the build")
            orphans = children(server_pid(path))
            kill_server(path)
            assert held.enter_context(embedded_server(path)) == url, "the server came back at another port"
            assert writer is None or writer.wait(timeout=600) == 0, journal.with_suffix(".log").read_text()[-4000:]
            found = audit(client, config, num_points, acknowledged([journal]))
            print(f"killed in {kind} after {time.monotonic() - started:.1f} s, {len(orphans)} builds alive: {found}")
            assert found.is_exact

        wait_until(
            lambda: num_indexed(client, config) >= 12_000 and not children(server_pid(path)), "an index is in use"
        )
        found = audit(client, config, num_points, acknowledged([journal]))
        print(f"kills={len(kinds)} indexed={num_indexed(client, config)} {found}")
        assert found.is_exact
        own = [
            nearest_by_sentence(client, config, make_point(number, described)) for number in range(0, num_points, 97)
        ]
        assert sum(own) >= 0.95 * len(own), "HNSW finds a point by its own vector"


def num_indexed(client: Client, config: StoreConfig) -> int:
    request = api.GetCollectionInfoRequest(collection_name=config.collection)
    return client.call(client.collections.Get, request, PATIENCE_S).result.indexed_vectors_count


def nearest_by_sentence(client: Client, config: StoreConfig, point) -> bool:
    """Whether a dense search for the point's own vector brings it first."""
    nearest = api.Query(nearest=api.VectorInput(dense=api.DenseVector(data=point.sentence)))
    request = api.QueryPoints(collection_name=config.collection, query=nearest, using=SENTENCE, limit=1)
    return client.call(client.points.Query, request, PATIENCE_S).result[0].id.uuid == point.id
