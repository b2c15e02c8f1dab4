"""Which node of a cluster a process asks first. What happens when one fails is tested on real servers."""

import pytest

from vector_store.nodes import first_node, is_this_machine

NODES = ("http://a:6334", "http://b:6334", "http://c:6334")


def test_workers_of_a_job_are_spread_over_the_nodes_by_rank():
    assert [first_node(NODES, rank, is_here=lambda _: False) for rank in range(6)] == [0, 1, 2, 0, 1, 2]


def test_the_node_on_the_same_machine_comes_first_whatever_the_rank():
    assert {first_node(NODES, rank, is_here=lambda host: host == "b") for rank in (None, 0, 1, 2)} == {1}


def test_clients_without_a_rank_take_turns():
    assert {first_node(NODES, None, is_here=lambda _: False) for _ in range(3)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("127.0.0.1", True), ("localhost", True), ("192.0.2.1", False), ("no.such.host.invalid", False)],
)
def test_this_machine_is_told_from_others(host, is_here):
    assert is_this_machine(host) is is_here
