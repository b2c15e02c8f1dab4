import os
import time

import grpc
import pytest
from qdrant_client import grpc as api

from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import CollectionExists, CollectionMissing, InvalidPoint, StoreError, StoreUnavailable

DEAD_URL = "http://127.0.0.1:1"


class Failure(grpc.RpcError):
    def __init__(self, code, details="", trailing=()):
        self.code, self.details, self.trailing_metadata = lambda: code, lambda: details, lambda: trailing


def stub(*outcomes):
    """A stub method that goes through these outcomes, one per attempt."""
    left = list(outcomes)

    def method(request, timeout, metadata):
        method.timeouts.append(timeout)
        method.metadata = metadata
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    method.timeouts = []
    return method


@pytest.fixture
def client():
    with connect(StoreConfig(), DEAD_URL, api_key="secret") as client:
        yield client


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"])
def test_a_transient_failure_is_retried(client, code):
    method = stub(Failure(grpc.StatusCode[code]), Failure(grpc.StatusCode[code]), "answer")
    assert client.call(method, object(), deadline_s=10) == "answer"
    assert len(method.timeouts) == 3


AWAY = [
    "Service internal error: 1 of 1 read operations failed: Tonic status error: code: 'The service is currently unavailable'",
    "Service internal error: 1 out of 3 shards failed to apply operation. First error captured: whatever",
    "Service internal error: Waiting for consensus operation commit failed. Timeout set at: 10 seconds",
]
"""Texts of INTERNAL by which Qdrant 1.18.3 says that a shard or a node is away."""


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_web_server_that_says_the_store_behind_it_is_away_is_waited_for(client, status):
    details = f"last error: Failed parsing HTTP/2 (Trying to connect an http1.x server (HTTP status {status}))"
    assert client.call(stub(Failure(grpc.StatusCode.UNAVAILABLE, details), "answer"), object(), 10) == "answer"


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("UNAVAILABLE", "Failed parsing HTTP/2 (Trying to connect an http1.x server (HTTP status 404))"),
        ("UNAVAILABLE", "Failed parsing HTTP/2 (Trying to connect an http1.x server (HTTP status 301))"),
        ("UNIMPLEMENTED", "Received http2 header with status: 404"),
    ],
)
def test_a_web_server_in_the_place_of_a_store_is_refused_at_the_first_attempt(client, code, details):
    with pytest.raises(StoreError, match=r"answers HTTP and no gRPC.* give the address of its gRPC port") as caught:
        client.call(stub(Failure(grpc.StatusCode[code], details)), object(), deadline_s=10)
    assert not isinstance(caught.value, StoreUnavailable)


@pytest.mark.parametrize("details", AWAY)
def test_an_internal_error_that_says_that_a_node_is_away_is_retried(client, details):
    method = stub(Failure(grpc.StatusCode.INTERNAL, details), "answer")
    assert client.call(method, api.CountPoints(), deadline_s=10) == "answer"
    assert len(method.timeouts) == 2


@pytest.mark.parametrize("details", AWAY)
def test_an_internal_error_that_stays_is_a_store_that_is_away_in_one_line(client, details):
    method = stub(*[Failure(grpc.StatusCode.INTERNAL, details + "\nand a second line")] * 99)
    with pytest.raises(StoreUnavailable, match="and a second line") as caught:
        client.call(method, api.CountPoints(), deadline_s=0.2)
    assert details in str(caught.value)
    assert "\n" not in str(caught.value)
    assert DEAD_URL in str(caught.value)


def test_a_last_attempt_that_is_cut_off_does_not_hide_what_the_store_said_before(client):
    said, cut_off = Failure(grpc.StatusCode.INTERNAL, AWAY[2]), Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")
    with pytest.raises(StoreUnavailable, match="consensus"):
        client.call(stub(said, *[cut_off] * 99), api.CountPoints(), deadline_s=0.2)
    with pytest.raises(StoreUnavailable, match="DEADLINE_EXCEEDED: too late"):
        client.call(stub(*[cut_off] * 99), api.CountPoints(), deadline_s=0.2)


@pytest.mark.parametrize("details", ["Service internal error: a bug", f"No space left on device; {AWAY[1]}"])
def test_other_internal_errors_are_not_retried(client, details):
    method = stub(Failure(grpc.StatusCode.INTERNAL, details), "answer")
    with pytest.raises(StoreError, match="INTERNAL") as caught:
        client.call(method, api.CountPoints(), deadline_s=10)
    assert type(caught.value) is StoreError


def test_a_store_that_limits_calls_is_asked_again_when_it_says_so(client):
    method = stub(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", (("retry-after", "1"),)), "answer")
    started = time.monotonic()
    assert client.call(method, api.CountPoints(), deadline_s=10) == "answer"
    assert time.monotonic() - started >= 1


def test_a_key_that_may_only_read_is_told_so(client):
    method = stub(Failure(grpc.StatusCode.PERMISSION_DENIED, "Write access is required"))
    with pytest.raises(StoreError, match="this key may not write"):
        client.call(method, api.UpsertPoints(), deadline_s=10)


def test_every_attempt_sends_the_key_and_fits_the_deadline(client):
    method = stub("answer")
    client.call(method, object(), deadline_s=2)
    assert method.metadata == (("api-key", "secret"),)
    assert 0 < method.timeouts[0] <= 2


def test_a_slow_attempt_leaves_time_for_another(client):
    method = stub("answer")
    client.call(method, object(), deadline_s=60)
    assert method.timeouts[0] == pytest.approx(20)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("NOT_FOUND", CollectionMissing),
        ("ALREADY_EXISTS", CollectionExists),
        ("INVALID_ARGUMENT", InvalidPoint),
        ("UNAUTHENTICATED", StoreError),
        ("PERMISSION_DENIED", StoreError),
        ("UNIMPLEMENTED", StoreError),
    ],
)
def test_other_statuses_are_not_retried_and_raise_their_own_error(client, code, kind):
    method = stub(Failure(grpc.StatusCode[code], "because"))
    with pytest.raises(kind) as caught:
        client.call(method, api.CountPoints(), deadline_s=10)
    assert type(caught.value) is kind
    assert "CountPoints" in str(caught.value)


def test_a_message_over_the_limit_is_not_retried(client):
    details = "Received message larger than max (9 vs. 4)"
    method = stub(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, details))
    with pytest.raises(InvalidPoint, match=r"raise store\.message_bytes"):
        client.call(method, api.CountPoints(), deadline_s=10)


def test_a_dead_port_is_unavailable_after_the_deadline_and_not_much_later(client):
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="check that the store runs"):
        client.call(client.points.Count, api.CountPoints(collection_name="x"), deadline_s=0.6)
    assert time.monotonic() - started < 2


def test_ask_makes_one_attempt_for_each_request(client):
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        client.ask(client.points.Count, [api.CountPoints(collection_name="x")] * 3, deadline_s=5)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("url", ["embedded", "localhost:6334", "http://"])
def test_connect_refuses_what_is_not_the_url_of_a_server(url):
    with pytest.raises(StoreError, match="wanted http"):
        connect(StoreConfig(), url)


def test_the_key_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "from env")
    method = stub("answer")
    with connect(StoreConfig(api_key_env="SOME_KEY"), DEAD_URL) as client:
        client.call(method, object(), deadline_s=1)
    assert method.metadata == (("api-key", "from env"),)


def test_a_client_used_after_a_fork_raises_instead_of_hanging(tmp_path):
    with connect(StoreConfig(), "http://127.0.0.1:1") as client:
        said = tmp_path / "said"
        child = os.fork()
        if not child:
            try:
                client.ask(client.points.Get, [], 1)
            except RuntimeError as error:
                said.write_text(str(error))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert f"was opened by process {os.getpid()} and is used by {child}; open one in each process" in said.read_text()


@pytest.mark.parametrize(("given", "sent"), [("secret\n", "secret"), (" secret ", "secret"), ("", None), (" \n", None)])
def test_a_key_is_sent_without_the_white_space_around_it(monkeypatch, given, sent):
    monkeypatch.setenv("QDRANT_API_KEY", given)
    with connect(StoreConfig(), "http://127.0.0.1:9") as client:
        assert dict(client._metadata or ()).get("api-key") == sent


@pytest.mark.parametrize("key", ["one\ntwo", "clé"])
def test_what_can_be_no_key_is_named_by_its_variable_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("QDRANT_API_KEY", key)
    with pytest.raises(
        StoreError, match=r"\$QDRANT_API_KEY holds line breaks or characters beyond printable ASCII"
    ) as caught:
        connect(StoreConfig(), "http://127.0.0.1:9")
    assert key not in str(caught.value)
