"""Requests and responses of the HTTP API, in process, with a real student and a real store."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import numpy as np
import openai
import pytest

import refbert
from jobs.corpus.prepared import prepare
from refbert.teacher import load_tokenizer

TEXTS = ["The film is slow and far too long.", "A lovely phone.", "Congress will debate the bill on Monday, it says."]


def embed(client, texts, **options):
    answer = client.post("/v1/embeddings", json={"input": texts, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(answer):
    return np.array([item["embedding"] for item in answer["data"]])


def test_a_texts_result_does_not_depend_on_its_batch(client):
    texts = [*TEXTS, "short", " ".join(TEXTS * 3)]
    together = vectors(embed(client, texts))
    alone = np.concatenate([vectors(embed(client, text)) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    with ThreadPoolExecutor(8) as pool:
        for row, answer in zip([*alone] * 4, pool.map(lambda text: embed(client, text), texts * 4), strict=True):
            np.testing.assert_allclose(vectors(answer)[0], row, atol=1e-5)


def test_refbert_load_returns_the_vectors_of_the_service(client, trained):
    with refbert.load(trained.run_directory / "student", trained.store_directory) as student:
        wanted = student.encode(TEXTS)
    np.testing.assert_allclose(vectors(embed(client, TEXTS)), wanted, atol=1e-5)


def test_token_ids_give_the_vector_of_their_text(client, trained):
    tokenizer = load_tokenizer(str(trained.run_directory / "student"))
    ids = [{"token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in TEXTS]
    wanted = vectors(embed(client, TEXTS))
    np.testing.assert_allclose(vectors(embed(client, ids)), wanted, atol=1e-5)
    np.testing.assert_allclose(vectors(embed(client, ids[0])), wanted[:1], atol=1e-5)
    mixed = vectors(embed(client, [TEXTS[2], ids[1], TEXTS[:2]]))
    np.testing.assert_allclose(mixed[:2], wanted[[2, 1]], atol=1e-5)
    np.testing.assert_allclose(mixed[2], vectors(embed(client, [TEXTS[:2]]))[0], atol=1e-5)


def test_too_many_token_ids_are_truncated_like_a_long_text(client, trained):
    tokenizer = load_tokenizer(str(trained.run_directory / "student"))
    text = " ".join(TEXTS * 5)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut_ids = embed(client, {"token_ids": ids})
    np.testing.assert_allclose(vectors(cut_ids), vectors(embed(client, text)), atol=1e-2)  # another text is looked up
    assert cut_ids["usage"]["prompt_tokens"] == 16


def test_base64_has_the_same_numbers_as_float(client):
    numbers = vectors(embed(client, TEXTS))
    coded = embed(client, TEXTS, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in coded["data"]]
    np.testing.assert_array_equal(np.array(decoded), numbers.astype(np.float32))


def test_explain_returns_references_with_their_attention(client, trained):
    stored = prepare(trained).table("train")["text"].to_pylist()[:3]
    for text in stored:
        answer = embed(client, [text, "something else"], explain=True)["data"][0]
        best, (other,) = answer["reference"], answer["further_references"]
        assert best["rung"] == other["rung"]
        assert best["rung"] in ("live", "cached")
        assert best["step"] == best["rung"]  # the old name, kept for one release
        assert len({text, best["text"], other["text"]}) == 3
        for layer in ("0", "read-out"):
            assert 0 < best["attention_mass"][layer] + other["attention_mass"][layer] < 1
    unexplained = embed(client, stored[0])["data"][0]
    assert unexplained["reference"] is unexplained["further_references"] is None
    np.testing.assert_allclose(vectors(embed(client, stored)), vectors(embed(client, stored, explain=True)), atol=1e-5)


def test_attention_of_an_embedding_equals_that_of_the_explanation(client):
    explained = client.post("/v1/explain", json={"input": TEXTS[0]}).json()
    answer = embed(client, [TEXTS[0], " ".join(TEXTS)], explain=True)["data"][0]
    for read, wanted in zip((answer["reference"], *answer["further_references"]), explained["references"], strict=True):
        assert read["id"] == wanted["id"]
        assert wanted["step"] == wanted["rung"] == read["rung"]
        assert read["attention_mass"] == pytest.approx(wanted["mass"], abs=1e-5)


def test_an_explanation_ranks_stored_texts_with_references_and_without(client):
    explained = client.post("/v1/explain", json={"input": TEXTS[0]}).json()
    cosines = [read["cosine"] for read in explained["nearest"]]
    assert len(cosines) == 5
    assert cosines == sorted(cosines, reverse=True)
    assert explained["without_references"]["cosine_distance"] > 0
    assert any(abs(read["cosine"] - read["cosine_without"]) > 1e-4 for read in explained["nearest"])


def test_similarities_are_cosines_of_the_vectors(client):
    own, *others = vectors(embed(client, [TEXTS[0], *TEXTS]))
    answer = client.post("/v1/similarity", json={"source": TEXTS[0], "input": TEXTS}).json()
    np.testing.assert_allclose([item["similarity"] for item in answer["data"]], others @ own, atol=1e-5)


def test_a_student_with_a_head_classifies_and_one_without_refuses(client, connect, serving, classifier, trained):
    refused = client.post("/v1/classify", json={"input": TEXTS})
    assert refused.status_code == 422
    assert "has no head" in refused.json()["error"]["message"]
    with connect(serving(), classifier) as labelling:
        answer = labelling.post("/v1/classify", json={"input": TEXTS, "explain": True}).json()
        assert labelling.get("/v1/models").json()["data"][0]["labels"] == ["bad", "good"]
        explained = labelling.post("/v1/explain", json={"input": TEXTS[0]}).json()
    with refbert.load(classifier, trained.store_directory) as student:
        wanted = student.predict(TEXTS)
    for item, prediction in zip(answer["data"], wanted, strict=True):
        assert item["label"] == prediction.label
        assert item["score"] == pytest.approx(prediction.score, abs=1e-5)
        assert sum(item["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert item["reference"]["rung"] in ("live", "cached")
    assert explained["labels"]["with"] == pytest.approx(answer["data"][0]["scores"], abs=1e-5)


def test_openais_client_and_hugging_faces_work_unchanged(listen, serving, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text("sk-one\nsk-two\n")
    with listen(serving(serve__api_keys_file=str(keys))) as address:
        with openai.OpenAI(api_key="sk-two", base_url=f"{address}/v1", max_retries=0) as client:
            answer = client.embeddings.create(model="any", input=TEXTS)
            single = client.embeddings.create(model="any", input=TEXTS[0], encoding_format="float", user="me")
            assert [model.id for model in client.models.list()] == ["served"]
            with pytest.raises(openai.UnprocessableEntityError, match="is empty"):
                client.embeddings.create(model="any", input="")
        with (
            openai.OpenAI(api_key="sk-other", base_url=f"{address}/v1", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError, match="not accepted"),
        ):
            stranger.embeddings.create(model="any", input="x")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # that forbids this host as well
        inference = huggingface_hub.InferenceClient(f"{address}/embed", token="sk-two")
        features = inference.feature_extraction(TEXTS, truncate=True)
    np.testing.assert_allclose(features, [item.embedding for item in answer.data], atol=1e-5)
    np.testing.assert_allclose(answer.data[0].embedding, single.data[0].embedding, atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_a_request_id_is_returned_and_made_where_missing_or_malformed(client):
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", client.get("/healthz").headers["x-request-id"])
    forged = client.get("/healthz", headers={"X-Request-Id": 'a" b'}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", forged)


def test_metrics_count_requests_texts_and_rungs(client):
    embed(client, TEXTS)
    text = client.get("/metrics").text
    assert re.search(r'refbert_requests_total\{route="/v1/embeddings",status="200"\} [1-9]', text)
    assert re.search(r'refbert_references_total\{model="served",rung="live",step="live"\} [1-9]', text)
    assert 'refbert_memory_state{model="served",state="ok"} 1.0' in text
    assert re.search(r'refbert_student_seconds_bucket\{le="0.005",model="served"\} ', text)
    assert re.search(r'refbert_student_info\{fingerprint="[0-9a-f]{12}",model="served"\} 1.0', text)


def test_the_request_log_has_one_json_line_per_request_without_its_text(connect, serving, capfd):
    with connect(serving(serve__request_log=True)) as client:
        client.post("/v1/embeddings", json={"input": ["a secret text"]}, headers={"X-Request-Id": "log-1"})
        client.post("/v1/embeddings", json={"input": ["a secret text"], "secret": 1})
    logged = capfd.readouterr().err
    assert "secret" not in logged
    line = json.loads(next(line for line in logged.splitlines() if '"log-1"' in line))
    assert line["status"] == 200
    assert (line["model"], line["texts"]) == ("served", 1)
    assert set(line["stages_ms"]) == {"queue", "lookup", "student"}


def test_a_bug_is_a_500_with_the_request_id_but_no_traceback_and_no_text(connect, serving, monkeypatch, caplog):
    text = "a secret text"
    with connect(serving()) as client:

        def broken(batch):
            raise RuntimeError(text)

        monkeypatch.setattr(client.app.service.student, "forward", broken)
        answer = client.post("/v1/embeddings", json={"input": text}, headers={"X-Request-Id": "bug-1"})
    assert answer.status_code == 500
    assert answer.json()["error"]["request_id"] == "bug-1"
    assert "Traceback" not in answer.text
    assert "secret" not in answer.text + caplog.text
    assert "bug-1" in caplog.text
    assert "in broken" in caplog.text


def test_a_text_that_fails_does_not_fail_other_requests_of_its_batch(connect, serving, monkeypatch):
    with connect(serving(serve__batch_wait_ms=100.0)) as client:
        student = client.app.service.student
        prepare_all = student.prepare

        def prepare_most(inputs, explain):
            if "poison" in inputs:
                raise RuntimeError("poison")
            return prepare_all(inputs, explain)

        monkeypatch.setattr(student, "prepare", prepare_most)
        with ThreadPoolExecutor(3) as pool:
            ask = lambda text: client.post("/v1/embeddings", json={"input": text}).status_code  # noqa: E731
            assert list(pool.map(ask, ["one", "poison", "two"])) == [200, 500, 200]


def test_a_requests_span_has_a_child_for_each_stage(connect, serving, monkeypatch):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from jobs.service import tracing

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    try:
        with connect(serving(serve__tracing=True)) as client:
            client.post("/v1/embeddings", json={"input": TEXTS}, headers={"traceparent": parent})
    finally:
        tracing._tracers.clear()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans["refbert /v1/embeddings"]
    assert f"{request.context.trace_id:032x}" == parent.split("-")[1]
    assert request.attributes["refbert.texts"] == 3
    for stage in ("queue", "lookup", "student"):
        assert spans[f"refbert {stage}"].parent.span_id == request.context.span_id
