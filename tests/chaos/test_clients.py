"""A writer killed in the middle of an upsert, and a server that stands still: writers wait, readers degrade, all recover."""

import os
import signal
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.faults import audit, is_alive, server_pid, wait_until
from tests.chaos.load import acknowledged, make_point, manifest, num_acknowledged, point_id, start_writer
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.retriever import Retriever
from vector_store.schema import Query
from vector_store.server.process import embedded_server
from vector_store.store import Store

QUIET_S = 1.0
WRITE_DEADLINE_S, STOP_S = 21.0, 8.0
"""An attempt to write lasts a third of the deadline: a longer stop makes writers send again what the server has queued."""


@pytest.mark.timeout(900)
def test_a_writer_killed_during_an_upsert_leaves_whole_points_and_can_be_resumed(tmp_path, is_long, moments):
    num_points, num_kills = (12_000, 10) if is_long else (2_000, 2)
    journal = tmp_path / "writer.journal"
    kill_at = sorted(moments.sample(range(1, num_points * 8 // 10), num_kills))
    print(f"kill when stored: {kill_at}")
    with embedded_server(tmp_path / "store") as url, ExitStack() as held:
        config = StoreConfig(url=url)
        client = held.enter_context(connect(config, url))
        store = Store(client, config)
        store.ensure(manifest())
        pid = server_pid(tmp_path / "store")

        def start() -> subprocess.Popen:
            # One upsert of 400 points is many messages of 5 kB: most kills fall between two of them or into one.
            return held.enter_context(start_writer(url, journal, (0, num_points), batch=400, upsert_bytes=5000))

        unfinished = []
        for moment in kill_at:
            stored_before = store.count()
            writer = start()
            held.callback(writer.kill)
            wait_until(partial(is_in_an_upsert, store, journal, max(moment, stored_before + 1)), f"{moment} are stored")
            writer.kill()
            writer.wait()
            stored = settled_count(store)
            unfinished.append(stored - num_acknowledged([journal]))
            found = audit(client, config, num_points, acknowledged([journal]))
            assert (found.readable, found.lost, found.duplicated, found.strange) == (stored, 0, 0, 0)
        writer = start()
        assert writer.wait(timeout=600) == 0, journal.with_suffix(".log").read_text()[-4000:]
        found = audit(client, config, num_points, acknowledged([journal]))
        print(f"kills={num_kills} {found}; stored and not acknowledged at each kill: {unfinished}")
        assert found.is_exact
        assert found.acknowledged == num_points
        assert max(unfinished) > 0, "no kill fell into an upsert"
        assert is_alive(pid), "a client's death is nothing to the server"


def settled_count(store: Store) -> int:
    """How many points are stored once what a dead writer had sent is worked off: the count has stood still for QUIET_S."""
    counts = [store.count()]

    def stands_still() -> bool:
        time.sleep(QUIET_S)
        counts.append(store.count())
        return counts[-1] == counts[-2]

    wait_until(stands_still, "the server has worked off what it had been sent")
    return counts[-1]


def is_in_an_upsert(store: Store, journal: Path, at_least: int) -> bool:
    """Whether so many points are stored, and some of them not acknowledged yet."""
    stored = store.count()
    return stored >= at_least and stored > num_acknowledged([journal])


@pytest.mark.timeout(900)
def test_writers_wait_for_a_frozen_server_and_readers_degrade_and_recover(tmp_path, is_long, moments):
    num_stops, share, num_known = (4 if is_long else 1), 3_000, 8
    num_points = share * num_stops
    stop_at = [moments.randrange(share // 10, share // 2) for _ in range(num_stops)]
    print(f"stopped for {STOP_S:g} s when so many of a share of {share} are acknowledged: {stop_at}")
    with embedded_server(tmp_path / "store") as url, ExitStack() as held:
        config = StoreConfig(url=url, lookup_deadline_ms=3000)
        client = held.enter_context(connect(config, url))
        described = manifest()
        store = Store(client, config)
        store.ensure(described)
        known = [make_point(number, described) for number in range(num_known)]
        store.upsert(known)
        queries = [Query(point.id, point.keywords, point.sentence) for point in known]
        never_asked = [Query(point_id(num_points + n), known[n].keywords, known[n].sentence) for n in range(2)]
        retriever = Retriever(client, config, described, "dense")

        def are_live() -> bool:
            return retriever.neighbours(queries).rungs == ["live"] * num_known

        pid = server_pid(tmp_path / "store")
        held.callback(lambda: os.kill(pid, signal.SIGCONT))
        all_journals: list[Path] = []
        num_degraded = 0
        for turn, moment in enumerate(stop_at):
            journals = [tmp_path / f"writer-{turn}-{number}.journal" for number in range(2)]
            all_journals += journals
            first, middle, last = share * turn, share * turn + share // 2, share * (turn + 1)
            writers = [
                held.enter_context(start_writer(url, journal, part, batch=4, write_deadline_s=WRITE_DEADLINE_S))
                for journal, part in zip(journals, [(first, middle), (middle, last)], strict=True)
            ]
            held.callback(lambda writers=writers: [writer.kill() for writer in writers])
            wait_until(
                lambda journals=journals, moment=moment: num_acknowledged(journals) >= moment,
                f"{moment} of {share} are acknowledged",
            )
            live = retriever.neighbours(queries)
            assert live.rungs == ["live"] * num_known
            assert any(writer.poll() is None for writer in writers), "the load ended before the server stood still"
            os.kill(pid, signal.SIGSTOP)
            resume_at, before = time.monotonic() + STOP_S, None
            while time.monotonic() < resume_at:
                found = retriever.neighbours([*queries, *never_asked])
                assert found.rungs == ["cached"] * num_known + ["null"] * 2
                assert found.ids == [*live.ids, [], []]
                assert np.array_equal(found.states[:num_known], live.states)
                assert not found.mask[num_known:].any()
                num_degraded += len(found.ids)
                # The first look-up waits for its deadline, and by then what was acknowledged is in the journals.
                before = num_acknowledged(journals) if before is None else before
                time.sleep(0.2)
            assert num_acknowledged(journals) == before, "a server that stands still acknowledges nothing"
            os.kill(pid, signal.SIGCONT)
            for writer, journal in zip(writers, journals, strict=True):
                assert writer.wait(timeout=600) == 0, journal.with_suffix(".log").read_text()[-4000:]
            wait_until(are_live, "look-ups are live again")
        found = audit(client, config, num_points, acknowledged(all_journals))
        print(f"stops={num_stops} degraded={num_degraded} {found}; look-ups by step: {retriever.counts}")
        assert found.is_exact
        assert found.acknowledged == num_points
        assert server_pid(tmp_path / "store") == pid
