"""A cluster (tests/qdrant_cluster.py) whose nodes are killed at random moments: what was acknowledged stays, once, and alike.

A moment is the number of a call, or of a copy's write, among those of the same work undisturbed: every one may be drawn.
"""

import contextlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.faults import audit, scrolled_ids, wait_until
from tests.chaos.load import acknowledged, make_point, manifest, point_id, write
from tests.qdrant_cluster import Cluster
from vector_store.__main__ import BAD, FINE, UNAVAILABLE, main
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.copies import compare_copies
from vector_store.errors import StoreUnavailable
from vector_store.location import config_of
from vector_store.retriever import Retriever
from vector_store.schema import Parts, Query
from vector_store.store import Store, aliases
from vector_store.transfer import export_points, import_points
from vector_store.versions import Version, promote, rollback

MAPS = b"of a student" * 1000
VERBS = ("import", "export", "compare", "verify", "delete", "promote")
SOON_S = 1.0
"""Deadline of a call to a node that stays away."""


@pytest.fixture
def open_cluster(engine_url):
    with contextlib.ExitStack() as opened:
        yield lambda num_nodes=3: opened.enter_context(Cluster(engine_url, num_nodes))


@pytest.fixture(scope="module")
def exported(engine_url, tmp_path_factory, is_long):
    """An export of the numbers up to some number, with what is kept beside them: its folder, and how many they are."""
    folder, num_points = tmp_path_factory.mktemp("exported") / "export", 3_000 if is_long else 240
    config = StoreConfig(url=engine_url, collection="exported")
    with connect(config, engine_url) as client:
        store = Store(client, config)
        store.ensure(manifest())
        store.upsert([make_point(number, manifest()) for number in range(num_points)])
        store.keep("maps", MAPS)
        export_points(store, folder, rows_per_file=num_points // 3)
        store.delete_collection()
    return folder, num_points


def config_on(cluster, **options):
    return StoreConfig(
        **{"url": cluster.url, "write_deadline_s": 60, "upsert_bytes": 5_000, "upserts_in_flight": 2, **options}
    )


class Moments:
    """Counts a cluster's calls, or the writes of its copies, and does something at some of them."""

    def __init__(self, cluster, at=(), do=lambda node: None, of="call"):
        self.at, self.do, self.of, self.cluster = set(at), do, of, cluster
        self._numbers, self.count, self.num_done = itertools.count(), 0, 0
        setattr(cluster, f"before_{of}", self)

    def __call__(self, method_or_node):
        number = next(self._numbers)
        self.count = number + 1
        if number in self.at:
            self.num_done += 1
            self.do(method_or_node)

    def end(self):
        setattr(self.cluster, f"before_{self.of}", lambda _: None)


class Outage:
    """Kills a node, and starts it after a time; while one is away no other is killed."""

    def __init__(self, cluster, back_after_s, node=None):
        self.cluster, self.back_after_s, self.node = cluster, back_after_s, node
        self.num, self._away, self._timers = 0, threading.Lock(), []

    def __call__(self, node):
        if not self._away.acquire(blocking=False):
            return
        self.num += 1
        number = node if self.node is None else self.node
        self.cluster.kill(number)
        self._timers.append(timer := threading.Timer(self.back_after_s, self._back, [number]))
        timer.start()

    def _back(self, number):
        self.cluster.start(number)
        self._away.release()

    def end(self):
        for timer in self._timers:
            timer.join()


# ---------------------------------------------------------------- a shard's only copy


@pytest.mark.timeout(900)
def test_an_import_goes_on_when_the_only_copy_was_away_at_random_moments(
    open_cluster, exported, moments, away_s, is_long
):
    folder, num_points = exported
    undisturbed = open_cluster()
    counted, config = Moments(undisturbed), config_on(undisturbed)
    with connect(config, config.url) as client:
        import_points(Store(client, config), folder)
    cluster = open_cluster()
    config = config_on(cluster)
    outage = Outage(cluster, away_s, node=1)
    at = sorted(moments.sample(range(counted.count), 6))
    print(f"of {counted.count} calls, killed at {at}")
    with connect(config, config.url) as client:
        disturbed = Moments(cluster, at, outage)
        done = import_points(Store(client, config), folder)
        disturbed.end()
        outage.end()
        found = audit(client, config, num_points, map(point_id, range(num_points)))
        assert Store(client, config).kept("maps") == MAPS
    print(f"{outage.num} outages of {away_s:g} s, {done}: {found}")
    assert outage.num > 0
    assert found.is_exact
    assert done.num_read == done.num_skipped + done.num_written == num_points


def words_of(verb, cluster, exported, tmp_path, turn):
    """The command line of a verb on the cluster's collection `there`."""
    return {
        "import": ["import", exported[0], cluster.url, "--collection", f"new-{turn}"],
        "export": ["export", cluster.url, tmp_path / f"out-{turn}", "--collection", "there", "--rows-per-file", "100"],
        "compare": ["compare", cluster.url, cluster.url, "--collection", "there"],
        "verify": ["verify", cluster.url, "--collection", "there"],
        "delete": ["delete", cluster.url, "--collection", "there", "--document", f"d{turn}", "--yes"],
        "promote": ["promote", cluster.url, "alias", "there" if turn % 2 else "other"],
    }[verb]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "verb", ["import", *(pytest.param(each, marks=pytest.mark.long) for each in VERBS if each != "import")]
)
def test_a_command_goes_on_after_an_outage_and_ends_in_one_line_where_the_only_copy_stays_away(
    open_cluster, exported, tmp_path, verb, moments, away_s, is_long, capsys, monkeypatch
):
    cluster, (folder, num_points) = open_cluster(), exported
    config = config_on(cluster, collection="there", upsert_bytes=100_000)
    monkeypatch.setattr("vector_store.copies.NODE_S", SOON_S)
    with connect(config, config.url) as client:
        import_points(Store(client, config), folder)
        Store(client, config.model_copy(update={"collection": "other"})).ensure(manifest())
    turns = itertools.count()

    def run(words, deadline_s):
        monkeypatch.setattr(
            "vector_store.location.config_of",
            lambda *given: config_of(*given).model_copy(update={"write_deadline_s": deadline_s}),
        )
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, capsys.readouterr()

    counted = Moments(cluster)
    assert run(words_of(verb, cluster, exported, tmp_path, next(turns)), 60)[0] == FINE
    for_a_while, for_good = (
        moments.sample(range(counted.count), min(counted.count, n)) for n in ((3, 6) if is_long else (1, 1))
    )
    outage = Outage(cluster, away_s, node=1)
    for moment in for_a_while:
        disturbed = Moments(cluster, [moment], outage)
        code, said = run(words_of(verb, cluster, exported, tmp_path, next(turns)), 60)
        disturbed.end()
        outage.end()
        assert code == FINE, said
    num_ended = 0
    for moment in for_good:
        words = words_of(verb, cluster, exported, tmp_path, next(turns))
        disturbed = Moments(cluster, [moment], lambda _: cluster.kill(1))
        code, said = run(words, SOON_S)
        disturbed.end()
        if code != FINE:  # what the last calls of a command ask for may live elsewhere
            num_ended += 1
            assert code == UNAVAILABLE, said
            silent, is_known, _ = said.err.partition(" not answer at all")  # else the deadline came first
            assert cluster.nodes[1].url in (silent.rpartition("; ")[2] if is_known else said.err), said.err
            assert said.err.count("\n") == 1, said.err
        cluster.start(1)
        code, said = run(words, 60)
        assert code == FINE, said
    print(
        f"{verb}: of {counted.count} calls, away for {away_s:g} s at {for_a_while}, for good at {for_good}: {num_ended} ended"
    )
    assert outage.num == len(for_a_while)
    assert num_ended > 0 or not is_long
    with connect(config, config.url) as client:
        for name in [name for name in cluster.held if name.startswith("new-")]:
            found = audit(client, config.model_copy(update={"collection": name}), num_points, [])
            assert found.is_exact
        deleted = {point_id(number) for number in range(2 * next(turns))} if verb == "delete" else set()
        assert deleted.isdisjoint(scrolled_ids(client, "there"))
        assert Store(client, config).count() == num_points - len(deleted)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("copies", "factor"), [*(pytest.param(n, 1, marks=pytest.mark.long) for n in (1, 2)), (2, 2)])
def test_nothing_acknowledged_is_lost_or_doubled_while_nodes_die_during_loads(
    open_cluster, tmp_path, copies, factor, moments, away_s, is_long, monkeypatch
):
    monkeypatch.setattr("vector_store.client.SHORTEST_ATTEMPT_S", 1)
    cluster, num_points, num_kills = open_cluster(), *((3_000, 6) if is_long else (240, 3))
    config = config_on(cluster, replication_factor=copies, write_consistency_factor=factor)
    share = num_points // 3
    # Each also writes the first points of the next one's share: two writers send the same ids.
    shares = [range(share * n, min(share * (n + 1) + share // 10, num_points)) for n in range(3)]
    journals = [tmp_path / f"writer-{number}.journal" for number in range(3)]
    at = moments.sample(range(num_points * copies // 8), num_kills)
    print(f"a node is killed before one of its copies is written, at writes {sorted(at)}")
    with connect(config, config.url) as client, ThreadPoolExecutor(3) as pool:
        Store(client, config).ensure(manifest())
        outage = Outage(cluster, away_s)
        disturbed = Moments(cluster, at, outage, of="copy")
        for done in [
            pool.submit(write, config.url, journal, numbers, 4, config)
            for journal, numbers in zip(journals, shares, strict=True)
        ]:
            done.result()
        disturbed.end()
        outage.end()
        found = audit(client, config, num_points, acknowledged(journals))
        print(f"{outage.num} outages of {away_s:g} s: {found}")
        assert outage.num > 0
        assert found.is_exact
        assert found.acknowledged == num_points
        assert cluster.copies_are_equal("references"), "a failed write is repeated until every copy has it"
        assert compare_copies(client, config).num_differing == 0


# ---------------------------------------------------------------- copies


@pytest.mark.timeout(900)
def test_copies_that_diverge_at_random_are_equal_after_a_repair_and_hold_what_was_acknowledged(
    open_cluster, tmp_path, moments, is_long, capsys
):
    cluster, num_rounds, share = open_cluster(), *((10, 200) if is_long else (2, 40))
    config = config_on(cluster, replication_factor=2, write_consistency_factor=2, upsert_bytes=2_000)
    impatient = config.model_copy(update={"write_deadline_s": SOON_S})
    num_points, journal = num_rounds * share, tmp_path / "writer.journal"
    residual = make_point(0, manifest()).vector
    with connect(config, config.url) as client:
        Store(client, config).ensure(manifest())
        for turn in range(num_rounds):
            node, half = moments.randrange(3), share * turn + share // 2
            write(config.url, journal, range(share * turn, half), 8, config)
            disturbed = Moments(cluster, [moments.randrange(share // 4)], cluster.kill, of="copy")
            with contextlib.suppress(StoreUnavailable):
                write(config.url, journal, range(half, share * (turn + 1)), share, impatient)
            disturbed.end()
            cluster.kill(node)
            with contextlib.suppress(StoreUnavailable):
                ids = map(point_id, range(share * turn, half))  # which every copy has
                Store(client, impatient).set_residuals(f"reader-{turn}", dict.fromkeys(ids, residual))
            for number in range(3):
                cluster.start(number)
            cluster.lose("references", node, moments.sample(sorted(acknowledged([journal])), 5))
        assert not cluster.copies_are_equal("references")
        assert main(["verify", cluster.url]) == BAD
        assert main(["verify", cluster.url, "--repair"]) == FINE
        said = capsys.readouterr().out
        assert cluster.copies_are_equal("references")
        repaired = audit(client, config, num_points, acknowledged([journal]))
        print(f"{said}after the repair: {repaired}")
        assert repaired.acknowledged >= num_points // 2
        assert (repaired.lost, repaired.duplicated, repaired.strange) == (0, 0, 0)
        write(config.url, journal, range(num_points), 16, config)
        assert audit(client, config, num_points, acknowledged([journal])).is_exact
        assert cluster.copies_are_equal("references")


@pytest.mark.long  # its sibling is in tests/integration/vector_store/test_copies.py
@pytest.mark.timeout(900)
def test_a_deletion_that_failed_in_one_copy_is_whole_once_it_is_repeated(open_cluster, moments):
    cluster, num_points = open_cluster(), 60
    config = config_on(cluster, replication_factor=2, write_consistency_factor=2)
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest())
        store.upsert([make_point(number, manifest()) for number in range(num_points)])
        documents = moments.sample(range(num_points // 2), 20)
        num_failed = 0
        for document in documents:
            ids = {point_id(2 * document), point_id(2 * document + 1)}
            # The first two writes are of the ids that are remembered, in both copies; then come three shards' copies.
            disturbed = Moments(cluster, [2 + moments.randrange(6)], cluster.kill, of="copy")
            try:
                Store(client, config.model_copy(update={"write_deadline_s": SOON_S})).delete(
                    ("document", f"d{document}")
                )
            except StoreUnavailable:
                num_failed += 1
            disturbed.end()
            for number in range(3):
                cluster.start(number)
            store.delete(("document", f"d{document}"))
            left = {
                (shard, node): ids & cluster.ids("references", shard, node)
                for shard, copies in enumerate(cluster.held["references"].shards)
                for node in copies
            }
            assert not any(left.values()), left
            assert ids <= store.deleted_ids()
        print(f"{num_failed} of {len(documents)} deletions failed")
        assert num_failed > 0
        assert cluster.copies_are_equal("references")


@pytest.mark.timeout(900)
def test_a_node_killed_between_the_acknowledgement_and_its_copy_loses_nothing(
    open_cluster, tmp_path, moments, away_s, is_long
):
    cluster, num_rounds, share = open_cluster(5), *((8, 120) if is_long else (1, 40))
    config = config_on(cluster, shard_number=3, replication_factor=2, upsert_bytes=2_000)
    journal, num_points = tmp_path / "writer.journal", num_rounds * share
    with connect(config, config.url) as client:
        store = Store(client, config)
        store.ensure(manifest())
        for turn in range(num_rounds):
            killed = []

            def kill(node, killed=killed):
                cluster.kill(node)
                killed.append(node)

            disturbed = Moments(cluster, [moments.randrange(share)], kill, of="copy")
            write(config.url, journal, range(share * (turn + 1)), 4, config)
            disturbed.end()
            (behind,) = killed  # the last round's writes are acknowledged, and it has none of them
            others = {
                node
                for copies in cluster.held["references"].shards
                if behind in copies
                for node in copies
                if node != behind
            }
            alone = moments.choice(sorted(others))
            cluster.kill(
                alone
            )  # before the copy that is behind could recover: the acknowledged points live nowhere else
            cluster.start(behind)
            impatient = Store(client, config.model_copy(update={"write_deadline_s": SOON_S}))
            # A node that is back may be too slow to answer in time on a busy machine, and is named, too.
            with pytest.raises(StoreUnavailable, match=rf"{cluster.nodes[alone].url}\b.* (does|do) not answer at all"):
                impatient.count()
            back = threading.Timer(away_s, cluster.start, [alone])
            back.start()
            found = audit(client, config, share * (turn + 1), acknowledged([journal]))
            back.join()
            print(f"node {behind} was behind, node {alone} was away: {found}")
            assert found.is_exact
            assert cluster.copies_are_equal("references")
        assert found.acknowledged == num_points


# ---------------------------------------------------------------- consensus


@pytest.mark.timeout(900)
def test_a_promotion_that_ends_without_consensus_is_safe_to_repeat(open_cluster, moments, is_long, capsys, monkeypatch):
    monkeypatch.setattr("vector_store.retriever.FOLLOW_S", 0.0)
    cluster, numbers = open_cluster(), {"even": range(0, 60, 2), "odd": range(1, 60, 2)}
    config = config_on(cluster, shard_number=1, replication_factor=3, lookup_deadline_ms=20_000, cache_bytes=1)
    live = config.model_copy(update={"collection": "live"})
    impatient = config.model_copy(update={"write_deadline_s": SOON_S})
    ids = {name: {point_id(number) for number in own} for name, own in numbers.items()}
    with connect(config, config.url) as client, connect(live, live.url) as reading:
        for name, own in numbers.items():
            store = Store(client, config.model_copy(update={"collection": name}))
            store.ensure(manifest())
            store.upsert([make_point(number, manifest()) for number in own])
        promote(client, config, "live", "even")
        retriever = Retriever(reading, live, manifest(), "keywords", read=Parts(text=True), count=2)
        asked = [make_point(number, manifest()) for number in range(60)]
        queries = [Query(point.id, point.keywords, point.sentence) for point in asked]

        def read_one_version():
            """Which version one look-up reads: a node that has just come back may be taken for dead for seconds."""
            deadline = time.monotonic() + 20
            while set((found := retriever.neighbours(moments.sample(queries, 8))).rungs) != {"live"}:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            chosen = {one for of_query in found.ids for one in of_query}
            return next(name for name, own in ids.items() if chosen <= own)

        counted = Moments(cluster)
        promote(client, config, "live", "odd")
        num_calls = counted.count
        served, others = "odd", {"odd": "even", "even": "odd"}
        at = list(range(num_calls)) if is_long else [moments.randrange(num_calls - 1), num_calls - 1]
        num_unknown = 0
        for moment in at:
            new = others[served]
            away = moments.sample(range(3), 2)
            disturbed = Moments(cluster, [moment], lambda _, away=away: [cluster.kill(node) for node in away])
            with pytest.raises(StoreUnavailable) as caught:
                promote(client, impatient, "live", new)
            num_unknown += "may still be applied" in str(caught.value)
            disturbed.end()
            assert read_one_version() == served, "without most nodes nothing is switched"
            monkeypatch.setattr(
                "vector_store.location.config_of",
                lambda *given: config_of(*given).model_copy(update={"write_deadline_s": SOON_S}),
            )
            capsys.readouterr()
            assert main(["promote", cluster.url, "live", new]) == UNAVAILABLE
            said = capsys.readouterr().err
            assert said.count("\n") == 1, said
            backs = [threading.Timer(moments.uniform(0, 0.3), cluster.start, [node]) for node in away]
            for back in backs:
                back.start()
            for _ in range(2):  # while what was not agreed upon is applied, or after
                assert promote(client, config, "live", new) == Version("live", new, served)
            for back in backs:
                back.join()
            assert promote(client, config, "live", new) == Version("live", new, served)
            assert aliases(client) == {"live": new}
            # A node that has just come back learns of the switch last: it reads the version before, whole, until then.
            wait_until(lambda new=new: read_one_version() == new, "the reader's node has applied the switch", 20)
            assert rollback(client, config, "live").collection == served
            assert promote(client, config, "live", new) == Version("live", new, served)
            served = new
        print(f"{len(at)} of {num_calls} moments: {num_unknown} promotions may still have been applied")
        assert num_unknown > 0
        assert retriever.counts["missing"] == 0
        for name, own in ids.items():
            assert set(scrolled_ids(client, name)) == own
