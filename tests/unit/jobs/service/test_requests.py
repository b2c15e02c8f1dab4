"""What clients send, to a service in this process: what it means, and the one line for what it does not take."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
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
        nulls = dict.fromkeys(("encoding_format", "explain", "dimensions", "model", "user"))
        np.testing.assert_array_equal(vectors(client, input="a text", **nulls), own)
        near = {"source": "a text", "input": "a text", "explain": None, "model": None}
        assert client.post("/v1/similarity", json=near).json()["data"][0]["similarity"] == pytest.approx(1, abs=1e-5)


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
