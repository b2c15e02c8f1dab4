"""What `--show` promises, against what an ingest then makes."""

import re

import pytest
from qdrant_client import grpc as api

from jobs.corpus.prepared import prepare
from jobs.memory.fill import fill_memory
from jobs.memory.store import running_store
from jobs.plan import plan
from vector_store.client import connect
from vector_store.codec import payload_of
from vector_store.schema import Parts
from vector_store.store import Store, payload_fields

pytestmark = pytest.mark.usefixtures("ray_cluster", "home")


def promised(config) -> tuple[float, int, str]:
    """Mean kB per reference, references in all, and how they are known."""
    memory = plan(config)["memory"]
    found = re.search(r"^([\d.]+) kB per reference in the mean.*; (\d+) references \((.*)\)", memory)
    assert found, memory
    return float(found[1]), int(found[2]), found[3]


@pytest.mark.usefixtures("in_process")
def test_the_planned_size_of_a_memory_matches_the_ingested_one(tiny_run):
    config = tiny_run(references__datatype="int8", references__count=2)
    _, references, known_by = promised(config)
    assert known_by.startswith("estimated")
    counted = prepare(config).counts.distinct
    assert references == pytest.approx(counted, rel=0.1)
    kilobytes, references, known_by = promised(config)
    assert (references, known_by) == (counted, "counted")
    with running_store(config) as url, connect(config.store, url) as client:
        fill_memory(config, url)
        store = Store(client, config.store)
        assert store.bytes_estimate() / store.count() / 1000 == pytest.approx(kilobytes, rel=0.05)
        scroll = api.ScrollPoints(
            collection_name=config.store.collection,
            limit=500,
            with_payload=payload_fields(payload_of(Parts())),
        )
        fetched = client.call(client.points.Scroll, scroll, 10).ByteSize() / counted / 1000
    lookup = re.search(r"^2 of ([\d.]+) kB = ([\d.]+) kB per text", plan(config)["look-up"])
    assert float(lookup[1]) == pytest.approx(fetched, rel=0.1)
    assert float(lookup[2]) == pytest.approx(2 * fetched, rel=0.1)


def test_the_number_of_texts_is_estimated_from_the_length_of_lines(tiny_run, tmp_path):
    (tmp_path / "corpus.txt").write_text("".join(f"a line of text, number {number}\n" for number in range(5000)))
    config = tiny_run(corpus={"path": str(tmp_path / "corpus.txt"), "heldout_fraction": 0.2})
    assert promised(config)[1] == pytest.approx(4000, rel=0.1)


@pytest.mark.usefixtures("prepared_home")
def test_the_plan_shows_what_each_node_of_a_cluster_will_hold(tiny_run):
    nodes = ",".join(f"http://node{number}:6334" for number in range(3))
    config = tiny_run(store={"url": nodes, "shard_number": 4, "replication_factor": 2})
    counted = prepare(config).counts.distinct
    said = plan(config)["store"]
    found = re.fullmatch(
        r"4 shards x 2 copies; one shard: (\d+) references, .* GB disk, .* GB RAM; the fullest of 3 nodes \(3 shards, "
        r"others 2\): (\d+) references, ([\d.e-]+) GB disk, ([\d.e-]+) GB RAM",
        said,
    )
    assert found, said
    one_shard, fullest = int(found[1]), int(found[2])
    assert 4 * one_shard == pytest.approx(counted, abs=4)
    assert fullest == 3 * one_shard
    assert float(found[3]) * 1e6 / fullest == pytest.approx(promised(config)[0], rel=0.05)
    assert plan(tiny_run())["store"].startswith(f"1 shard on the embedded server: {counted} references")
