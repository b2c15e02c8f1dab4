"""What clients send, to a service in this process: what it means, and the one line for what it does not take."""

import numpy as np

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
