"""The service on real Ray Serve: HTTP and gRPC through its proxies, keys, and students replaced under load."""

import socket
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import ray
from ray import serve

from jobs import serve as job
from jobs.serve import served
from jobs.service.proto import refbert_pb2 as messages
from jobs.service.proto.refbert_pb2_grpc import RefBertStub
from jobs.service.replica import QUIET, application
from refbert.errors import InputError

TEXTS = ["The film is slow and far too long.", "A lovely phone."]
KEY = {"authorization": "Bearer sk-one"}


@pytest.fixture(scope="module")
def service(serving, classifier, tmp_path_factory):
    """The run served with keys; yields its config, its HTTP address and the file of its keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("sk-one\n")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    config = serving(
        serve__api_keys_file=str(file),
        serve__grpc_port=port,
        serve__memory_check_s=0.5,
        serve__models={"labels": str(classifier)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "application", of_one_version)
        with served(config) as address, httpx.Client(base_url=address, headers=KEY, timeout=30) as client:
            yield config, client, file


def of_one_version(config, student=None, **options):
    """The application with a version, as Serve's config files give it one: a new `user_config` is then no new code."""
    deployment = application(config, **options)._bound_deployment
    deployment = deployment.options(user_config={"student": student}, version="1", _internal=True)
    return deployment.bind(*deployment.init_args)


def deploy(config, student):
    """Deploy again, with another student in the `user_config` alone; Serve asks the running replicas to take it."""
    serve.run(of_one_version(config, student), name=config.name, route_prefix="/", logging_config=QUIET)


@pytest.mark.long
def test_a_replica_that_does_not_find_the_wanted_keys_refuses_to_start_and_says_why(serving, ray_cluster, monkeypatch):
    monkeypatch.setenv("REFBERT_TEST_KEYS", "sk-one")  # of this process alone: the nodes were started before
    config = serving(serve__api_keys_env="REFBERT_TEST_KEYS")
    with (
        pytest.raises(InputError, match=r"wants keys, and its replica on .* finds none in .REFBERT_TEST_KEYS"),
        served(config),
    ):
        pass


def vectors(client, texts):
    answer = client.post("/v1/embeddings", json={"input": texts})
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def test_the_proxy_returns_equal_vectors_for_batch_and_single_and_one_request_id(service):
    _, client, _ = service
    alone = np.concatenate([vectors(client, text) for text in TEXTS])
    np.testing.assert_allclose(vectors(client, TEXTS), alone, atol=1e-5)
    answer = client.get("/readyz", headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    refused = client.post("/v1/embeddings", json={"input": ""}, headers={"x-request-id": "mine"})
    assert refused.json()["error"]["request_id"] == "mine"
    assert client.post("/v1/embeddings", content=b" " * (17 * 2**20)).status_code == 413
    assert "RefBERT" in client.get("/").text
    head = client.head("/healthz")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(client.get("/healthz").content)))
    labelled = client.post("/v1/classify", json={"input": TEXTS, "model": "labels"}).json()
    assert (labelled["model"], len(labelled["data"])) == ("labels", 2)


def test_a_key_is_required_and_rotates_without_a_restart(service):
    _, client, file = service
    assert client.post("/v1/embeddings", json={"input": "x"}, headers={"authorization": "Bearer no"}).status_code == 401
    assert httpx.post(f"{client.base_url}/v1/embeddings", json={"input": "x"}).headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{client.base_url}/readyz").status_code == 200
    file.write_text("sk-one\nsk-two\n")
    deadline = time.monotonic() + 10
    while client.get("/v1/models", headers={"authorization": "Bearer sk-two"}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert client.get("/v1/models").status_code == 200


def test_grpc_returns_what_http_returns(service):
    config, client, _ = service
    metadata = [("authorization", "Bearer sk-one"), ("x-request-id", "grpc-1")]
    with grpc.insecure_channel(f"127.0.0.1:{config.serve.grpc_port}") as channel:
        stub = RefBertStub(channel)
        texts = [messages.Text(text=text) for text in TEXTS] + [messages.Text(text=TEXTS[0], second=TEXTS[1])]
        answer, call = stub.Embed.with_call(messages.EmbedRequest(texts=texts, explain=True), metadata=metadata)
        assert ("x-request-id", "grpc-1") in [(item.key, item.value) for item in call.trailing_metadata()]
        found = np.stack([np.frombuffer(embedding.vector, "<f4") for embedding in answer.embeddings])
        np.testing.assert_allclose(found, vectors(client, [*TEXTS, TEXTS]), atol=1e-5)
        read = answer.embeddings[0].references[0]
        assert read.attention_mass["0"] > 0
        assert read.rung == read.step != ""
        near = stub.Similarity(messages.SimilarityRequest(source=texts[0], texts=texts), metadata=metadata)
        np.testing.assert_allclose(near.similarities, found @ found[0], atol=1e-5)
        status = stub.Status(messages.StatusRequest(), metadata=metadata)
        assert (status.model, status.memory, status.dimensions) == ("served", "ok", found.shape[1])
        for call_it, request, sent, code, message in (
            (stub.Embed, messages.EmbedRequest(texts=texts), (), "UNAUTHENTICATED", "authorization"),
            (stub.Embed, messages.EmbedRequest(), metadata, "INVALID_ARGUMENT", "got 0 texts"),
            (
                stub.Embed,
                messages.EmbedRequest(texts=[messages.Text(text="x" * 17 * 2**20)]),
                metadata,
                "INVALID_ARGUMENT",
                "bytes",
            ),
            (
                stub.Embed,
                messages.EmbedRequest(texts=[messages.Text(text="x" * 65 * 2**20)]),
                metadata,
                "RESOURCE_EXHAUSTED",  # by the proxy, which has not read it: Ray's own limit is 2 GiB
                "larger than max",
            ),
            (stub.Classify, messages.ClassifyRequest(texts=texts), metadata, "INVALID_ARGUMENT", "has no head"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call_it(request, metadata=sent)
            assert error.value.code().name == code
            assert message in error.value.details()
    assert 'refbert_requests_total{route="grpc/Embed",status="OK"} 1.0' in client.get("/metrics").text


def test_serve_replaces_the_student_without_a_failed_request_and_a_wrong_folder_changes_nothing(
    service, classifier, steady_load
):
    config, client, _ = service
    replica = replicas(config)
    with steady_load(client) as statuses:
        time.sleep(0.3)
        deploy(config, str(classifier))
        answer = client.post("/v1/classify", json={"input": TEXTS})
        deploy(config, "/no/such/folder")
        state, metrics = client.get("/readyz"), client.get("/metrics").text
        kept = client.post("/v1/classify", json={"input": TEXTS})
        deploy(config, None)
    assert answer.json()["data"][0]["label"] in ("good", "bad")
    for one, other in zip(kept.json()["data"], answer.json()["data"], strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert state.status_code == 200
    assert "/no/such/folder holds no student" in state.json()["refused"]
    assert "refbert_student_refused 1.0" in metrics
    assert client.post("/v1/classify", json={"input": TEXTS}).status_code == 422
    assert client.get("/readyz").json()["refused"] is None
    assert replicas(config) == replica
    assert set(statuses) == {(200,)}
    text = client.get("/metrics").text
    assert "refbert_student_refused 0.0" in text
    assert "refbert_student_switches_total 2.0" in text


def replicas(config):
    """The replicas that run, by id, and the state of the deployment."""
    deployment = serve.status().applications[config.name].deployments["StudentService"]
    assert deployment.status == "HEALTHY", deployment.message
    actors = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in actors if "StudentService" in actor["name"]}


@pytest.mark.long
def test_a_service_is_redeployed_without_a_failed_or_delayed_request(service, classifier, steady_load):
    config, client, _ = service
    slowest_s = []

    def ask_on():
        while not slowest_s or slowest_s[-1] >= 0:
            started_s = time.monotonic()
            vectors(client, "still there?")
            slowest_s.append(time.monotonic() - started_s)
            time.sleep(0.05)

    watcher = threading.Thread(target=ask_on)
    with steady_load(client, threads=2) as statuses:
        watcher.start()
        serve.run(application(config, str(classifier)), name=config.name, route_prefix="/", logging_config=QUIET)
        assert client.post("/v1/classify", json={"input": TEXTS}).status_code == 200
    slowest_s.append(-1.0)
    watcher.join(30)
    assert set(statuses) == {(200,)}
    assert max(slowest_s) < 5  # a replica's start takes longer
