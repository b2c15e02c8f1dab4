"""The HTTP service on real Ray Serve: batch equals single, references are shown, and a lost store costs no answer."""

import json
import os
import signal
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoModel

import refbert
from jobs import distill
from jobs.demo import ask
from jobs.memory import references_at, running_store
from jobs.prepared import prepare
from jobs.serve import served

TEXTS = ["The film is slow and far too long.", "A lovely phone.", "Congress will debate the bill on Monday, it says."]


@pytest.fixture(scope="module")
def service(ray_cluster, tmp_path_factory, tiny_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(tmp_path_factory.mktemp("home")))
        config = tiny_run(name="served", train__steps=3, references={"count": 2})
        with running_store(config) as url:
            distill.run(config)
            with served(config, url) as address:
                yield config, address


def embed(address: str, texts: str | list[str], **options) -> dict:
    return ask(f"{address}/v1/embeddings", {"input": texts, **options})


def vectors(answer: dict) -> np.ndarray:
    return np.array([item["embedding"] for item in answer["data"]])


def test_batch_results_equal_single_results(service):
    _, address = service
    together = vectors(embed(address, TEXTS))
    alone = np.concatenate([vectors(embed(address, text)) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_the_three_line_api_says_what_the_service_says(service):
    config, address = service
    with references_at(config.run_directory / "student") as references:
        student = refbert.load(config.run_directory / "student", references)
        np.testing.assert_allclose(student.encode(TEXTS), vectors(embed(address, TEXTS)), atol=1e-5)
        assert references(TEXTS)[2].any(1).all()  # each has read one


def test_requests_of_the_same_moment_do_not_mix(service):
    _, address = service
    alone = {text: vectors(embed(address, text)) for text in TEXTS}
    with ThreadPoolExecutor(8) as pool:
        for text, answer in zip(TEXTS * 8, pool.map(lambda text: embed(address, text), TEXTS * 8), strict=True):
            np.testing.assert_allclose(vectors(answer), alone[text], atol=1e-5)


def test_a_pair_is_embedded_as_one_whoever_it_arrives_with(service):
    _, address = service
    pair = TEXTS[:2]
    together = vectors(embed(address, [pair, *pair]))
    alone = np.concatenate([vectors(embed(address, [text])) for text in (pair, *pair)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    swapped, joined = vectors(embed(address, [pair[::-1], " ".join(pair)]))
    assert np.abs(together[0] - swapped).max() > 1e-4
    assert np.abs(together[0] - joined).max() > 1e-4


def test_an_answer_shows_the_references_it_read_and_never_the_text_itself(service):
    config, address = service
    stored = prepare(config).table("train")["text"].to_pylist()[:5]
    for text in stored:
        answer = embed(address, text, explain=True)["data"][0]
        best, (other,) = answer["reference"], answer["further_references"]
        assert best["step"] == other["step"] == "live"
        assert len({text, best["text"], other["text"]}) == 3
        assert best["score"] >= other["score"] > 0
    unexplained = embed(address, stored[0])["data"][0]
    assert unexplained["reference"] is unexplained["further_references"] is None


def test_usage_counts_tokens(service):
    _, address = service
    assert embed(address, "a b c")["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize(
    "request_",
    [
        {"input": []},
        {"input": ""},
        {"input": ["x"] * 1000},
        {"input": 5},
        {},
        {"input": "x", "nope": 1},
        {"input": [["a", "b", "c"]]},
        {"input": [["a", " "]]},
    ],
)
def test_a_bad_request_is_422_and_no_traceback(service, request_):
    _, address = service
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(f"{address}/v1/embeddings", request_)
    assert error.value.code == 422
    assert "Traceback" not in error.value.read().decode()


def test_a_killed_store_costs_quality_but_no_answer(service):
    """Last in this module: the store does not come back."""
    config, address = service
    known = embed(address, TEXTS[0], explain=True)["data"][0]
    pid = json.loads((config.store_directory / "address.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    cached = embed(address, TEXTS[0], explain=True)["data"][0]
    assert [read["step"] for read in (cached["reference"], *cached["further_references"])] == ["cached"] * 2
    np.testing.assert_allclose(cached["embedding"], known["embedding"], atol=1e-5)
    null = embed(address, "never asked before", explain=True)["data"][0]
    assert null["reference"] == {"step": "null", "id": None, "text": None, "score": 0.0}
    student = AutoModel.from_pretrained(config.run_directory / "student").eval()
    with torch.inference_mode():
        from refbert.teacher import load_tokenizer

        inputs = load_tokenizer(str(config.run_directory / "student"))("never asked before", return_tensors="pt")
        wanted = student(input_ids=inputs["input_ids"]).sentence_embedding[0]
    np.testing.assert_allclose(null["embedding"], torch.nn.functional.normalize(wanted, dim=0), atol=1e-5)
