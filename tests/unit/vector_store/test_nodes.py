"""Which node of a cluster a process uses first and after a failure; failover is also tested on real servers."""

from types import SimpleNamespace

import grpc
import pytest

from vector_store.nodes import Nodes, first_node, is_this_machine

NODES = ("http://a:6334", "http://b:6334", "http://c:6334")


def test_workers_of_a_job_are_distributed_over_the_nodes_by_rank():
    assert [first_node(NODES, rank, is_here=lambda _: False) for rank in range(6)] == [0, 1, 2, 0, 1, 2]


def test_the_node_on_the_same_machine_comes_first_whatever_the_rank():
    assert {first_node(NODES, rank, is_here=lambda host: host == "b") for rank in (None, 0, 1, 2)} == {1}


def test_clients_without_a_rank_take_turns():
    assert {first_node(NODES, None, is_here=lambda _: False) for _ in range(3)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("127.0.0.1", True), ("localhost", True), ("192.0.2.1", False), ("no.such.host.invalid", False)],
)
def test_addresses_of_this_machine_are_recognized(host, is_here):
    assert is_this_machine(host) is is_here


class Failure(grpc.RpcError):
    def __init__(self, code: str) -> None:
        self.code, self.details = lambda: grpc.StatusCode[code.partition(":")[0]], lambda: code


@pytest.mark.parametrize(
    ("code", "is_left"),
    [
        ("UNAVAILABLE", True),
        ("DEADLINE_EXCEEDED", True),
        ("CANCELLED", True),
        ("INTERNAL: 1 of 1 read operations failed: 'The service is currently unavailable'", True),
        ("INTERNAL: a bug", False),
        ("NOT_FOUND", False),
    ],
    ids=["dead", "stuck", "shutting down", "cut off from its peers", "failing", "refusing"],
)
def test_calls_fail_over_from_a_node_that_is_away(code, is_left):
    def fail(request):
        raise Failure(code)

    channels = [SimpleNamespace(unary_unary=lambda: fail), SimpleNamespace(unary_unary=lambda: str)]
    nodes = Nodes(NODES[:2], channels, first=0)
    with pytest.raises(Failure):
        nodes.unary_unary()("request")
    assert nodes.url == NODES[is_left]


def test_a_node_that_lacks_a_peer_is_left_for_one_that_has_not_been_silent():
    nodes = Nodes(NODES, [SimpleNamespace()] * 3, first=0)
    nodes.failed(0)
    assert nodes.url == NODES[1]
    nodes.failed(1, answers=True)
    nodes.failed(2, answers=True)
    assert nodes.url == NODES[1], "the silent one is passed over"
