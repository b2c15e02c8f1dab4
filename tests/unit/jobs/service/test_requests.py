"""What clients send, to a service in this process: what it means, and the one line for what it does not take."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from refbert.teacher import load_tokenizer


def vectors(client, **body):
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def refusal(client, path="/v1/embeddings", **sent):
    answer = client.post(path, **sent)
    assert answer.status_code == 422, answer.text
    return answer.json()["error"]["message"]


def test_token_ids_of_another_vocabulary_are_refused_and_the_students_own_are_marked(serve_in_process, served_home):
    tokenizer = load_tokenizer(str(served_home / "runs" / "served" / "student"))
    texts = ["hello world", "A lovely phone."]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with serve_in_process() as client:
        # "hello world" by OpenAI's tokenizer, as LangChain sends it; all ids of the student's would be known as well.
        for bare in ([[9906, 1917]], [9906, 1917], [9906.0], ids, ["a text", ids[0]]):
            assert "check_embedding_ctx_length=False" in refusal(
                client, json={"input": bare, "encoding_format": "base64"}
            )
        for path, source in (("classify", {}), ("similarity", {"source": "a text"})):
            assert "check_embedding_ctx_length=False" in refusal(client, f"/v1/{path}", json={"input": ids, **source})
        wanted = vectors(client, input=texts)
        marked = [{"token_ids": one} for one in ids]
        np.testing.assert_allclose(vectors(client, input=marked), wanted, atol=1e-5)
        np.testing.assert_allclose(vectors(client, input=marked[0]), wanted[:1], atol=1e-5)
        for unmarked in ({"ids": [5]}, {"token_ids": []}, {"token_ids": [5], "of": "openai"}, {"token_ids": [True]}):
            assert "wanted a text" in refusal(client, json={"input": [unmarked]})


def test_null_is_the_default_wherever_a_field_has_one(serve_in_process):
    with serve_in_process() as client:
        own = vectors(client, input="a text")
        foreign = ("input_type", "truncate_prompt_tokens")
        nulls = dict.fromkeys(("encoding_format", "explain", "dimensions", "model", "user", *foreign))
        np.testing.assert_array_equal(vectors(client, input="a text", **nulls), own)
        near = {"source": "a text", "input": "a text", "explain": None, "model": None}
        assert client.post("/v1/similarity", json=near).json()["data"][0]["similarity"] == pytest.approx(1, abs=1e-5)
        nulls = dict.fromkeys(("top_n", "return_documents", "model", "user", "truncate_prompt_tokens"))
        ranked = client.post("/v1/rerank", json={"query": "a text", "documents": ["x", "a text"], **nulls}).json()[
            "results"
        ]
        assert [one["index"] for one in ranked] == [1, 0]
        nulls = dict.fromkeys(("normalize", "truncate", "truncation_direction", "prompt_name", "dimensions"))
        np.testing.assert_array_equal(client.post("/embed", json={"inputs": "a text", **nulls}).json(), own)


def test_a_request_of_2048_texts_is_answered_and_one_more_is_refused(serve_in_process):
    texts = [f"text {number}" for number in range(2048)]
    with serve_in_process() as client:
        found = vectors(client, input=texts, encoding_format="float")
        assert found.shape == (2048, 24)
        np.testing.assert_allclose(found[2047], vectors(client, input=texts[2047])[0], atol=1e-5)
        assert "got 2049 texts, wanted 1 to 2048" in refusal(client, json={"input": [*texts, "one more"]})
        page = client.get("/openapi.json").json()["components"]["schemas"]
        assert page["EmbedRequest"]["properties"]["inputs"]["anyOf"][1]["maxItems"] == 2048
        assert page["RerankRequest"]["properties"]["documents"]["maxItems"] == 2047


def test_a_single_text_does_not_wait_for_the_many_of_a_request_before_it(serve_in_process, monkeypatch):
    with serve_in_process(max_batch=4, max_texts=40) as client, ThreadPoolExecutor(2) as pool:
        student, free, order = client.app.service.student, threading.Event(), []
        forward_now = student.forward
        monkeypatch.setattr(student, "forward", lambda batch: (free.wait(30), forward_now(batch))[1])

        def ask(name, texts):
            vectors(client, input=texts)
            order.append(name)

        many = pool.submit(ask, "many", [f"text {number}" for number in range(40)])
        while client.app.service.queue._num_waiting > 32:  # two batches are under way
            time.sleep(0.001)
        single = pool.submit(ask, "single", "a text")
        while client.app.service.queue._num_waiting < 33:
            time.sleep(0.001)
        free.set()
        single.result(30)
        many.result(30)
        assert order == ["single", "many"]
        assert "refbert_queued_texts 0.0" in client.get("/metrics").text


def test_another_models_name_is_answered_by_the_student_or_refused_where_told_so(serve_in_process):
    theirs = {"model": "text-embedding-3-small"}
    asked = [
        ("/v1/embeddings", {"input": "a text"}),
        ("/v1/similarity", {"source": "a text", "input": "a text"}),
        ("/v1/rerank", {"query": "a text", "documents": ["a text"]}),
    ]
    with serve_in_process() as client:
        for path, body in asked:
            answer = client.post(path, json={**body, **theirs})
            assert (answer.status_code, answer.json()["model"]) == (200, "served"), answer.text
        (listed,) = client.get("/v1/models").json()["data"]
        assert client.get("/v1/models/served").json() == listed
        absent = client.get("/v1/models/text-embedding-3-small")
        assert absent.status_code == 404
        assert "this service has the model served" in absent.json()["error"]["message"]
    with serve_in_process(refuse_other_models=True) as client:
        for path, body in [*asked, ("/v1/classify", {"input": "a text"})]:
            answer = client.post(path, json={**body, **theirs})
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
        for path, body in asked:
            for own in ({"model": "served"}, {"model": None}, {}):
                assert client.post(path, json={**body, **own}).status_code == 200
        assert 'refbert_errors_total{kind="UnknownModel"} 4.0' in client.get("/metrics").text


def test_fields_of_other_services_are_taken_or_refused_by_name(serve_in_process):
    with serve_in_process() as client:
        own = vectors(client, input="a text")
        taken = {"input_type": "search_query", "truncate_prompt_tokens": -1, "user": "me", "encoding_format": "float"}
        np.testing.assert_array_equal(vectors(client, input="a text", **taken), own)
        np.testing.assert_array_equal(vectors(client, input="a text", truncate_prompt_tokens=512), own)
        for field, value, says in (
            ("truncate_prompt_tokens", 8, "texts are cut at 16 tokens"),
            ("truncate_prompt_tokens", -2, "truncate_prompt_tokens: "),
            ("input_type", 5, "input_type: "),
            ("late_chunking", True, "late_chunking: is not known"),
            ("dimensions", 8, "cannot be cut to 8: that takes the principal components of a memory"),
            ("dimensions", 25, "cannot be cut to 25: give 1 to 24"),
        ):
            assert says in refusal(client, json={"input": "a text", field: value})
        ranking = {"query": "a text", "documents": ["a text"]}
        for path, body in (("/v1/rerank", ranking), ("/v1/classify", {"input": "a text"}), ("/embed", {"inputs": "x"})):
            assert "encoding_format: is not known" in refusal(client, path, json={**body, "encoding_format": "float"})
        assert "texts are cut at 16 tokens" in refusal(
            client, "/v1/rerank", json={**ranking, "truncate_prompt_tokens": 8}
        )


def test_documents_are_ranked_by_the_cosine_of_their_vectors_with_the_querys(serve_in_process):
    texts = ["A lovely phone.", "The film is slow.", "A film.", "A lovely phone."]
    documents = [texts[0], {"text": texts[1], "title": "a review"}, texts[2], {"text": texts[3]}]
    with serve_in_process(max_texts=5) as client:
        query, *others = vectors(client, input=["a phone", *texts])
        wanted = np.array(others) @ query
        answer = client.post("/v1/rerank", json={"query": "a phone", "documents": documents, "model": "any"})
        ranked = answer.json()["results"]
        order = [one["index"] for one in ranked]
        assert order == sorted(range(4), key=lambda index: -wanted[index])
        assert order.index(3) == order.index(0) + 1  # equal ones in their order
        np.testing.assert_allclose([one["relevance_score"] for one in ranked], wanted[order], atol=1e-5)
        assert all(one.keys() == {"index", "relevance_score"} for one in ranked)
        assert answer.json()["id"] == answer.headers["x-request-id"]
        usage = answer.json()["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] > 5
        best = {"query": "a phone", "documents": documents, "top_n": 2, "return_documents": True}
        given = [{"text": texts[0]}, documents[1], {"text": texts[2]}, documents[3]]
        found = client.post("/v1/rerank", json=best).json()["results"]
        assert [(one["index"], one["document"]) for one in found] == [(index, given[index]) for index in order[:2]]
        assert len(client.post("/v1/rerank", json={**best, "top_n": 9}).json()["results"]) == 4
        for wrong, says in (
            ({"documents": []}, "0 documents"),
            ({"documents": [["a", "b"]]}, "documents: wanted a list of texts"),
            ({"documents": [{"title": "no text"}]}, "documents: wanted a list of texts"),
            ({"documents": "a text"}, "documents: wanted a list of texts"),
            ({"documents": ["a", " "]}, "text 2 is empty"),
            ({"documents": ["a"] * 5}, "got 6 texts, wanted 1 to 5"),
            ({"query": ["a"]}, "query: wanted a text"),
            ({"top_n": 0}, "top_n: "),
            ({"top_n": 1.5}, "top_n: wanted a whole number"),
            ({"rank_fields": ["title"]}, "rank_fields: is not known"),
        ):
            assert says in refusal(client, "/v1/rerank", json={**best, **wrong})
        text = client.get("/metrics").text
        assert 'refbert_requests_total{route="/v1/rerank",status="200"} 3.0' in text


def test_clients_of_text_embeddings_inference_find_its_routes(serve_in_process, monkeypatch):
    texts = ["hello world", "A lovely phone."]
    with serve_in_process(max_batch=32) as client:
        wanted = vectors(client, input=texts)
        answer = client.post("/embed", json={"inputs": texts, "normalize": True, "truncate": True})
        np.testing.assert_allclose(answer.json(), wanted, atol=1e-5)
        single = client.post("/embed", json={"inputs": texts[0], "normalize": False})  # Haystack's default
        np.testing.assert_allclose(single.json(), wanted[:1], atol=1e-5)
        for wrong, says in (
            ({"truncate": False}, "truncate: "),
            ({"truncation_direction": "Left"}, "truncation_direction: "),
            ({"prompt_name": "query"}, "prompt_name: "),
            ({"dimensions": 8}, "cannot be cut to 8"),
            ({"inputs": [[9906, 1917]]}, "bare token ids are refused"),
        ):
            assert says in refusal(client, "/embed", json={"inputs": "a text", **wrong})
        info = client.get("/info").json()
        assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == ("served", "float32", 16)
        assert (info["max_batch_requests"], info["max_client_batch_size"]) == (32, 2048)
        assert info["model_sha"] == client.app.service.student.fingerprint
        assert info["model_type"] == {"embedding": {"pooling": "mean"}}
        assert client.get("/health").json()["status"] == "ready"
        monkeypatch.setattr(client.app.service, "students", {})
        assert client.get("/health").status_code == client.get("/info").status_code == 503


def test_openais_client_asks_for_a_model_by_name_and_reads_a_refusal(serve_in_process):
    with serve_in_process(refuse_other_models=True) as client:
        http = {"http_client": client, "base_url": f"{client.base_url}/v1", "api_key": "none", "max_retries": 0}
        with openai.OpenAI(**http) as remote:
            assert remote.models.retrieve("served").id == "served"
            assert remote.embeddings.create(model="served", input=["a text"] * 2048).data[2047].index == 2047
            with pytest.raises(openai.NotFoundError, match="this service has the model served"):
                remote.embeddings.create(model="text-embedding-3-small", input="a text")


def test_a_body_that_is_not_sent_as_json_is_told_so(serve_in_process):
    with serve_in_process() as client:
        body = b'{"input": "a text"}'
        for headers, message in (
            ({}, "the body was sent without a content type"),
            ({"content-type": "text/plain"}, "the body was sent as text/plain"),
            ({"content-type": "application/x-www-form-urlencoded"}, "the body was sent as application/x-www-form"),
        ):
            found = refusal(client, content=body, headers=headers)
            assert found.startswith(message)
            assert "content-type: application/json" in found
        assert "content-type: application/json" in refusal(client, content=b"")
        assert client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"}).is_success


def test_explanations_beyond_their_bound_are_refused_at_once_and_then_taken_again(serve_in_process, monkeypatch):
    with serve_in_process(max_explanations=3) as client, ThreadPoolExecutor(12) as pool:
        student, free = client.app.service.student, threading.Event()
        explain_now = student.explain
        monkeypatch.setattr(student, "explain", lambda text: (free.wait(30), explain_now(text))[1])

        def explain(number):
            answer = client.post("/v1/explain", json={"input": f"text {number}"})
            if answer.status_code == 429:
                refused.append(int(answer.headers["retry-after"]))
            if len(refused) == 9:  # all beyond the bound, while the first still waits
                free.set()
            return answer.status_code

        refused = []
        statuses = list(pool.map(explain, range(12)))
        assert sorted(statuses) == [200] * 3 + [429] * 9
        assert min(refused) >= 1
        assert client.post("/v1/explain", json={"input": "a text"}).status_code == 200
        assert 'refbert_errors_total{kind="Overloaded"} 9.0' in client.get("/metrics").text
        free.clear()
        late = client.post("/v1/explain", json={"input": "x"}, headers={"x-timeout-ms": "50"})
        assert late.status_code == 504
        free.set()
        assert client.app.service.queue._calls == 0
        vectors(client, input="a text")
