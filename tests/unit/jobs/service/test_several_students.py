"""Several students in one service: a request's `model` says which one answers."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import openai
import pytest
import torch

import refbert
from jobs.service.grpc_calls import GrpcCalls
from jobs.service.inference import InferenceService, check_students
from jobs.service.memory_watch import MemoryStatus
from jobs.service.proto import refbert_pb2 as messages
from jobs.service.proto import refbert_pb2_grpc as stubs
from refbert.errors import InputError

TEXTS = ["The film is slow and far too long.", "A lovely phone.", "hello world"]


@pytest.fixture(scope="module")
def folders(make_student, labelling_student, tmp_path_factory):
    """Two further students: one of another width that reads fewer tokens, and one that labels."""
    folder = tmp_path_factory.mktemp("several")
    narrow = make_student(folder / "narrow", seed=1, dim=12, text_tokens=8)
    labelling = labelling_student(make_student(folder / "encoder", seed=2), folder / "task")
    return {"narrow": str(narrow), "labels": str(labelling)}


@pytest.fixture
def wanted(folders, served_home):
    """The vectors of every student by its name, without a service."""
    own = {"served": served_home / "runs" / "served" / "student"}
    found = {}
    for name, folder in {**own, **folders}.items():
        with refbert.load(folder) as student:
            found[name] = student.encode(TEXTS)
    return found


def ask(client, path, status=200, **body):
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def vectors(answer):
    return np.array([item["embedding"] for item in answer["data"]])


def test_the_student_that_a_request_names_answers_it_on_every_route(serve_in_process, folders, wanted):
    with serve_in_process(models=folders) as client:
        for asked, name in (("narrow", "narrow"), ("labels", "labels"), ("served", "served"), ("other", "served")):
            own = {"model": asked}
            answer = ask(client, "embeddings", input=TEXTS, **own)
            assert answer["model"] == name
            np.testing.assert_allclose(vectors(answer), wanted[name], atol=1e-5)
            cosines = wanted[name][1:] @ wanted[name][0]
            answer = ask(client, "similarity", source=TEXTS[0], input=TEXTS[1:], **own)
            assert answer["model"] == name
            np.testing.assert_allclose([item["similarity"] for item in answer["data"]], cosines, atol=1e-5)
            answer = ask(client, "rerank", query=TEXTS[0], documents=TEXTS[1:], **own)
            assert answer["model"] == name
            scores = {item["index"]: item["relevance_score"] for item in answer["results"]}
            np.testing.assert_allclose([scores[0], scores[1]], cosines, atol=1e-5)
            assert ask(client, "explain", input=TEXTS[0], **own)["model"] == name
        for unnamed in ({}, {"model": None}):
            np.testing.assert_allclose(
                vectors(ask(client, "embeddings", input=TEXTS, **unnamed)), wanted["served"], atol=1e-5
            )
        tei = client.post("/embed", json={"inputs": TEXTS}).json()
        np.testing.assert_allclose(tei, wanted["served"], atol=1e-5)
        assert client.get("/info").json()["model_id"] == "served"


def test_each_student_has_its_own_labels_width_and_tokens(serve_in_process, folders):
    long = {"input": " ".join(TEXTS * 5)}
    with serve_in_process(models=folders) as client:
        with refbert.load(folders["labels"]) as student:
            predicted = student.predict(TEXTS)
        labelled = ask(client, "classify", input=TEXTS, model="labels")
        assert labelled["model"] == "labels"
        for item, prediction in zip(labelled["data"], predicted, strict=True):
            assert (item["label"], item["score"]) == (prediction.label, pytest.approx(prediction.score, abs=1e-5))
        refused = ask(client, "classify", 422, input=TEXTS, model="narrow")["error"]["message"]
        assert refused.endswith("has no head and cannot label texts: use /v1/embeddings, or ask for the model labels")
        assert vectors(ask(client, "embeddings", input="a", dimensions=12, model="narrow")).shape == (1, 12)
        assert "cannot be cut to 12" in ask(client, "embeddings", 422, input="a", dimensions=12)["error"]["message"]
        for name, tokens in (("narrow", 8), ("served", 16)):
            assert ask(client, "embeddings", model=name, **long)["usage"]["total_tokens"] == tokens
            ask(client, "embeddings", model=name, truncate_prompt_tokens=tokens, **long)
            said = ask(client, "embeddings", 422, model=name, truncate_prompt_tokens=tokens - 1, **long)["error"]
            assert f"texts are cut at {tokens} tokens" in said["message"]


def test_models_are_listed_described_and_others_refused_where_told_so(serve_in_process, folders):
    with serve_in_process(models=folders, refuse_other_models=True) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(one["id"], one["dimensions"], one["max_tokens"], one["labels"]) for one in listed] == [
            ("served", 24, 16, None), ("narrow", 12, 8, None), ("labels", 24, 16, ["bad", "good"]),
        ]  # fmt: skip
        for one in listed:
            assert client.get(f"/v1/models/{one['id']}").json() == one
        for answer in (
            client.get("/v1/models/other"),
            client.post("/v1/embeddings", json={"input": "a", "model": "other"}),
            client.post("/v1/explain", json={"input": "a", "model": "other"}),
        ):
            assert answer.status_code == 404
            message = "there is no model of this name; this service has the models served, narrow, labels"
            assert answer.json()["error"]["message"] == message
        page = client.get("/openapi.json").json()
        assert "/v1/classify" in page["paths"]
        for name in ("EmbeddingRequest", "ExplainRequest"):
            asked = page["components"]["schemas"][name]["properties"]["model"]["anyOf"][0]
            assert asked["enum"] == ["served", "narrow", "labels"]
        own = page["components"]["schemas"]["EmbeddingRequest"]["properties"]["dimensions"]["anyOf"][0]
        assert (own["minimum"], own["maximum"]) == (12, 24)
        http = {"http_client": client, "base_url": f"{client.base_url}/v1", "api_key": "none", "max_retries": 0}
        with openai.OpenAI(**http) as remote:
            assert [model.id for model in remote.models.list()] == ["served", "narrow", "labels"]
            assert len(remote.embeddings.create(model="narrow", input="a").data[0].embedding) == 12


def test_metrics_and_the_request_log_say_which_student_answered(serve_in_process, folders, capfd):
    with serve_in_process(models=folders, request_log=True) as client:
        ask(client, "embeddings", input=TEXTS, model="narrow")
        ask(client, "embeddings", input="a")
        text = client.get("/metrics").text
        fingerprints = {name: student.fingerprint for name, student in client.app.service.students.items()}
    for line in (
        'refbert_texts_total{model="narrow"} 3.0',
        'refbert_texts_total{model="served"} 1.0',
        'refbert_texts_total{model="labels"} 0.0',
        'refbert_references_total{model="narrow",rung="null",step="null"} 3.0',
        'refbert_references_total{model="labels",rung="live",step="live"} 0.0',
        'refbert_student_seconds_count{model="narrow"} 1.0',
        'refbert_memory_state{model="narrow",state="none"} 1.0',
        *(f'refbert_student_info{{fingerprint="{one}",model="{name}"}} 1.0' for name, one in fingerprints.items()),
    ):
        assert line in text.splitlines()
    logged = capfd.readouterr().err
    assert '"model": "narrow"' in logged
    assert '"model": "served"' in logged


def test_readiness_is_that_of_the_memory_that_is_worst_off(serve_in_process, folders):
    with serve_in_process(models=folders) as client:
        students = client.app.service.students
        state = client.get("/readyz").json()
        assert (state["status"], state["model"], state["memory"], state["reason"]) == ("ready", "served", "none", None)
        students["served"].memory.status = MemoryStatus("ok")
        students["narrow"].memory.status = MemoryStatus("refused", "it is another teacher's")
        students["labels"].memory.status = MemoryStatus("away", "nothing answers")
        state = client.get("/readyz").json()
        assert (state["status"], state["memory"]) == ("degraded", "refused")
        assert state["reason"] == "narrow: it is another teacher's"
        assert state["models"] == {
            "served": {"status": "ready", "memory": "ok", "reason": None},
            "narrow": {"status": "degraded", "memory": "refused", "reason": "it is another teacher's"},
            "labels": {"status": "degraded", "memory": "away", "reason": "nothing answers"},
        }
        students["served"].memory.status = students["narrow"].memory.status
        assert client.get("/readyz").json()["reason"] == "it is another teacher's"  # the run's own needs no name


def test_the_runs_own_student_is_replaced_and_the_others_stay(serve_in_process, folders, make_student, tmp_path):
    with serve_in_process(models=folders) as client:
        service = client.app.service
        before, others = service.student, [service.students[name] for name in folders]
        own, narrow = (ask(client, "embeddings", input="a", model=name)["data"] for name in ("served", "narrow"))
        service.load(make_student(tmp_path / "student", seed=5))
        assert service.student is not before
        assert list(service.students) == ["served", "narrow", "labels"]
        assert [service.students[name] for name in folders] == others
        assert ask(client, "embeddings", input="a", model="narrow")["data"] == narrow
        replaced = ask(client, "embeddings", input="a")
        assert (replaced["model"], replaced["data"] == own) == ("served", False)
        text = client.get("/metrics").text
        assert f'refbert_student_info{{fingerprint="{service.student.fingerprint}",model="served"}} 1.0' in text
        assert before.fingerprint not in text
        assert f'fingerprint="{others[0].fingerprint}",model="narrow"' in text


def test_a_damaged_one_is_refused_by_its_name_and_nothing_is_loaded(served_run, folders, make_student, tmp_path):
    damaged = make_student(tmp_path / "student", seed=4)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    config = served_run(models={"narrow": folders["narrow"], "reviews": str(damaged)})
    service = InferenceService(config, torch.device("cpu"))
    for load in (service.load, lambda: check_students(config)):
        with pytest.raises(
            InputError, match=rf"^serve\.models\.reviews: the student in {damaged} cannot be loaded"
        ) as refused:
            load()
        assert "\n" not in str(refused.value)
    assert service.students == {}
    check_students(served_run(models=folders))


def test_one_folder_may_have_two_names(serve_in_process, folders):
    with serve_in_process(models={"one": folders["narrow"], "two": folders["narrow"]}) as client:
        one, two = (ask(client, "embeddings", input=TEXTS, model=name) for name in ("one", "two"))
        assert one["data"] == two["data"]
        assert (one["model"], two["model"]) == ("one", "two")


def test_batches_are_of_one_student_and_students_take_turns(serve_in_process, folders, monkeypatch):
    with (
        serve_in_process(models=folders, max_batch=4, max_texts=40, max_queued_texts=60) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        service, free, batches, order = client.app.service, threading.Event(), [], []

        def watch(name):
            student = service.students[name]
            prepare, forward = student.prepare, student.forward

            def prepare_noted(inputs, explain):
                batches.append((name, list(inputs)))
                return prepare(inputs, explain)

            monkeypatch.setattr(student, "prepare", prepare_noted)
            monkeypatch.setattr(student, "forward", lambda batch: (free.wait(30), forward(batch))[1])

        for name in ("served", "narrow", "labels"):
            watch(name)

        def send(name, count):
            found = vectors(
                ask(client, "embeddings", input=[f"{name} {number}" for number in range(count)], model=name)
            )
            order.append(name)
            return found.shape

        def waiting(number):
            deadline = time.monotonic() + 30
            while service.queue._num_waiting != number:
                assert time.monotonic() < deadline
                time.sleep(0.001)

        many = pool.submit(send, "served", 40)
        waiting(32)  # two batches are under way
        single = pool.submit(send, "narrow", 1)
        waiting(33)
        few = pool.submit(send, "labels", 6)
        waiting(39)
        refused = ask(client, "embeddings", 429, input=["x"] * 22, model="labels")["error"]["message"]
        assert refused.startswith("39 texts wait, 22 more would exceed 60")  # of all students together
        free.set()
        assert (many.result(60), single.result(60), few.result(60)) == ((40, 24), (1, 12), (6, 24))
        assert order[-1] == "served"
        for name, inputs in batches:
            assert {text.partition(" ")[0] for text in inputs} == {name}
        # The student of the request that waits longest is next, whatever another one still has.
        assert [name for name, _ in batches][:7] == ["served"] * 3 + ["narrow", "labels", "served", "labels"]
        assert "refbert_queued_texts 0.0" in client.get("/metrics").text


def test_grpc_requests_name_a_student(served_run, folders, wanted):
    async def answers():
        service = InferenceService(served_run(models=folders, refuse_other_models=True), torch.device("cpu"))
        service.load()
        service.start()
        calls, server = GrpcCalls(service), grpc.aio.server()
        named = {
            name: staticmethod(getattr(calls, name.lower())) for name in ("Embed", "Classify", "Similarity", "Status")
        }
        stubs.add_RefBertServicer_to_server(type("Servicer", (), named)(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        texts = [messages.Text(text=text) for text in TEXTS]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = stubs.RefBertStub(channel)
            for name in ("served", "narrow", ""):
                answer = await stub.Embed(messages.EmbedRequest(texts=texts, model=name))
                assert answer.model == (name or "served")
                found = np.stack([np.frombuffer(one.vector, "<f4") for one in answer.embeddings])
                np.testing.assert_allclose(found, wanted[answer.model], atol=1e-5)
            near = await stub.Similarity(messages.SimilarityRequest(source=texts[0], texts=texts, model="narrow"))
            np.testing.assert_allclose(near.similarities, wanted["narrow"] @ wanted["narrow"][0], atol=1e-5)
            labelled = await stub.Classify(messages.ClassifyRequest(texts=texts, model="labels"))
            assert (labelled.model, len(labelled.classifications)) == ("labels", 3)
            status = await stub.Status(messages.StatusRequest(model="labels"))
            assert (status.model, list(status.labels), status.status) == ("labels", ["bad", "good"], "ready")
            assert list((await stub.Status(messages.StatusRequest())).models) == ["served", "narrow", "labels"]
            for refused in (stub.Embed(messages.EmbedRequest(texts=texts, model="x")),
                            stub.Status(messages.StatusRequest(model="x"))):  # fmt: skip
                with pytest.raises(grpc.aio.AioRpcError, match="this service has the models served, narrow, labels"):
                    await refused
        await server.stop(None)
        await service.stop()

    asyncio.run(answers())
