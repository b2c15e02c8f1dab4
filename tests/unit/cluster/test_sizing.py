"""The size of a cluster follows from the bytes of a reference; the documented table is that of `cluster.sizing`."""

import re

import pytest

from cluster import sizing
from cluster.sizing import ReferenceSize, size, table
from jobs.memory.shard_plan import HELD_BYTES
from tests.conftest import REPOSITORY

EACH = ReferenceSize(stored_bytes=10_000, ram_bytes=HELD_BYTES)


def test_a_small_memory_needs_three_nodes_with_two_shards_each():
    made = size(1_000_000, EACH)
    assert (made.nodes, made.shards) == (3, 6)
    data_gb = 10 * sizing.DISK_PER_STORED_BYTE
    assert made.shard_gb == pytest.approx(data_gb / 6)
    assert made.disk_gb == pytest.approx(sizing.LOGS_GB + 2 * data_gb / 3 * 1.5)  # two copies, a third of the disk free


@pytest.mark.parametrize("references", [10**6, 10**7, 10**8, 10**9, 10**10])
def test_no_limit_is_exceeded_and_every_copy_has_its_own_node(references):
    for replication in (1, 2, 3):
        made = size(references, EACH, replication=replication)
        assert made.shard_gb <= sizing.SHARD_GB
        assert made.disk_gb <= sizing.NODE_DISK_GB
        assert made.ram_gb <= sizing.NODE_RAM_GB
        assert made.shards % made.nodes == 0
        held_gb = (made.disk_gb - sizing.LOGS_GB) * (1 - sizing.FREE_DISK) * made.nodes
        assert held_gb == pytest.approx(replication * references * 10_000 * sizing.DISK_PER_STORED_BYTE / 1e9)


def test_memory_and_disk_grow_with_the_size_of_a_reference():
    plain, dense = size(10**8, EACH), size(10**8, EACH._replace(ram_bytes=HELD_BYTES + 1792))
    more_gb = (dense.ram_gb - sizing.BASE_GB) * dense.nodes - (plain.ram_gb - sizing.BASE_GB) * plain.nodes
    assert more_gb == pytest.approx(2 * 10**8 * 1792 / 1e9)  # of two copies
    smaller = size(10**8, EACH._replace(stored_bytes=5_000))
    halves = [(made.disk_gb - sizing.LOGS_GB) * made.nodes for made in (plain, smaller)]
    assert halves[1] == pytest.approx(halves[0] / 2)


def test_more_copies_than_nodes_are_refused():
    with pytest.raises(ValueError, match="replication 3 over 2 nodes"):
        size(1000, EACH, nodes=2, replication=3)


def test_the_command_measures_a_run_and_refuses_invalid_counts(capsys, tmp_path, tiny_teacher_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"A text of some words, number {number}.\n" for number in range(50)))
    options = [f"corpus.path={corpus}", f"teacher.model={tiny_teacher_path}", "corpus.label_field=null"]
    options += ["corpus.document_field=null"]
    assert sizing.main([*options, "--references", "5000000"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| 5,000,000 \| 3 \| 6 \|", printed, re.MULTILINE)
    assert sizing.main([*options, "--references", "0"]) == 2
    assert "give 1 or more" in capsys.readouterr().err


def test_the_documented_table_equals_the_computed_one():
    text = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    (shown,) = re.findall(r"<!-- sizing -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    given = re.match(r"(\d+) bytes per reference, (\d+) of memory; 2 copies:", shown)
    assert given
    assert shown == table(ReferenceSize(float(given[1]), int(given[2])), sizing.POWERS)
