"""A memory that is slow, dead or another teacher's costs quality, never an answer, and is read again once it is back."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from jobs.memory.store import running_store
from refbert.memory.manifest import trained_manifest
from refbert.student_config import RefBertConfig
from refbert.teacher import load_tokenizer
from vector_store.client import connect as connect_store
from vector_store.store import Store
from vector_store.versions import promote, rollback

TEXT = "The film is slow and far too long."
# A killed store refuses at once, whatever the deadline; a living one may be slow on a busy machine.
PATIENT = {"store__lookup_deadline_ms": 5000.0}
QUICK = {"serve__memory_check_s": 0.3, **PATIENT}


def asked(client, text):
    """The vector and the first reference of one text."""
    answer = client.post("/v1/embeddings", json={"input": text, "explain": True})
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    return np.array(item["embedding"]), item["reference"]


def until(client, **wanted):
    """Wait until /readyz has the wanted fields, and return its answer."""
    deadline = time.monotonic() + 30
    while True:
        answer = client.get("/readyz")
        assert answer.status_code == 200
        state = answer.json()
        if wanted.items() <= state.items():
            return state
        assert time.monotonic() < deadline, f"{state}, wanted {wanted}"
        time.sleep(0.05)


def store_pid(config):
    return json.loads((Path(config.store_directory) / "address.json").read_text())["pid"]


def without_reference(config, text):
    folder = config.run_directory / "student"
    student = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        vector = student(**load_tokenizer(str(folder))(text, return_tensors="pt")).sentence_embedding[0]
    return torch.nn.functional.normalize(vector, dim=0).numpy()


def test_a_killed_store_degrades_answers_but_fails_none(connect, serving, trained):
    with connect(serving(serve__memory_check_s=600.0, **PATIENT)) as client:
        known, live = asked(client, TEXT)
        assert live["rung"] == live["step"] == "live"
        os.kill(store_pid(trained), signal.SIGKILL)
        cached, read = asked(client, TEXT)
        assert read["rung"] == "cached"
        assert read["id"] == live["id"]
        np.testing.assert_allclose(cached, known, atol=1e-5)
        null, read = asked(client, "never asked before")
        assert read["rung"] == "null"
        assert read["id"] is read["text"] is None
        assert read["attention_mass"]["0"] > 0
        np.testing.assert_allclose(null, without_reference(trained, "never asked before"), atol=1e-5)
        state = client.get("/readyz")
        assert (state.status_code, state.json()["status"], state.json()["memory"]) == (200, "degraded", "away")
        text = client.get("/metrics").text
        assert 'refbert_memory_state{model="served",state="away"} 1.0' in text
        assert 'refbert_references_total{model="served",rung="null",step="null"} 1.0' in text
    with running_store(trained):  # for the tests that follow
        pass


def test_a_killed_store_restarts_while_every_request_is_answered(connect, serving, trained, steady_load):
    with connect(serving(**QUICK)) as client, steady_load(client) as statuses:
        until(client, memory="ok")
        os.kill(store_pid(trained), signal.SIGKILL)
        until(client, status="degraded")
        killed_s = time.monotonic()
        until(client, status="ready")
        print(f"recovered {time.monotonic() - killed_s:.1f} s after it was seen to be away")
        assert asked(client, "asked for the first time after it")[1]["rung"] == "live"
    assert len(statuses) > 20
    assert set(statuses) == {(200,)}


def test_a_hanging_store_delays_answers_by_its_deadline_at_most(connect, serving, trained):
    with connect(serving(serve__memory_check_s=0.3, store__lookup_deadline_ms=300.0)) as client:
        until(client, memory="ok")
        pid = store_pid(trained)
        os.kill(pid, signal.SIGSTOP)
        try:
            started_s = time.monotonic()
            assert asked(client, "a text while it hangs")[1]["rung"] == "null"
            assert time.monotonic() - started_s < 3
            assert client.get("/readyz").json()["status"] == "degraded"
        finally:
            os.kill(pid, signal.SIGCONT)
        until(client, status="ready")
        deadline = time.monotonic() + 10  # look-ups rest for some seconds after a failure
        while asked(client, "a text after that")[1]["rung"] != "live":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_versions_switch_under_load_and_another_teachers_is_not_read(connect, serving, trained, steady_load):
    config = serving(store__collection="live", **QUICK)
    shape = RefBertConfig.from_pretrained(trained.run_directory / "student")
    manifest = trained_manifest(shape.memory, trained.run_directory)
    other = manifest.model_copy(update={"fingerprint": "0" * 32})
    with running_store(trained) as url, connect_store(trained.store, url) as store:
        for name, written in (("second", manifest), ("strange", other)):
            Store(store, trained.store.model_copy(update={"collection": name})).ensure(written)
        promote(store, trained.store, "live", trained.store.collection)
        with connect(config) as client:
            with steady_load(client) as statuses:
                until(client, memory="ok")
                assert asked(client, TEXT)[1]["id"]
                promote(store, trained.store, "live", "second")  # an empty one, by the same teacher
                deadline = time.monotonic() + 5
                while asked(client, f"a text of {time.monotonic()} that is in no cache")[1]["id"]:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                promote(store, trained.store, "live", "strange", other_teacher=True)
                state = until(client, status="degraded", memory="refused")
                assert "teacher" in state["reason"]
                np.testing.assert_allclose(asked(client, TEXT)[0], without_reference(trained, TEXT), atol=1e-5)
                rollback(store, trained.store, "live")
                rollback(store, trained.store, "live")
                until(client, status="ready", memory="ok")
                assert asked(client, TEXT)[1]["rung"] == "live"
            assert set(statuses) == {(200,)}


def test_a_student_is_replaced_under_load_without_a_failed_request(connect, serving, classifier, steady_load):
    with connect(serving()) as client:
        service = client.app.service
        before = service.student.fingerprint
        with steady_load(client) as statuses:
            service.load(classifier)
            assert service.student.fingerprint != before
            assert client.post("/v1/classify", json={"input": TEXT}).status_code == 200
            service.load()
            assert service.student.fingerprint == before
        assert set(statuses) == {(200,)}
        assert "refbert_student_switches_total 2.0" in client.get("/metrics").text
        with pytest.raises(ValueError, match="holds no student"):
            service.load("/no/such/folder")
        assert asked(client, TEXT)[1]["id"]


def test_a_student_without_a_memory_is_ready_and_reads_the_null_reference(connect, serving, trained, tmp_path):
    from refbert import RefBertModel

    shape = RefBertConfig.from_pretrained(trained.run_directory / "student")
    shape.reference_mode, shape.memory = "none", None
    folder = tmp_path / "vanilla" / "student"
    RefBertModel(shape).save_pretrained(folder)
    load_tokenizer(str(trained.run_directory / "student")).save_pretrained(folder)
    with connect(serving(), folder) as client:
        assert client.get("/readyz").json() == {
            "status": "ready", "model": "served", "memory": "none", "reason": None, "refused": None,
            "models": {"served": {"status": "ready", "memory": "none", "reason": None}},
        }  # fmt: skip
        assert asked(client, TEXT)[1] == {
            "rung": "null", "step": "null", "id": None, "text": None, "score": 0.0, "attention_mass": {},
        }  # fmt: skip
        assert client.post("/v1/explain", json={"input": TEXT}).json()["layers"] == []


def test_each_student_of_a_service_degrades_by_its_own_memory(connect, serving, trained, classifier, tmp_path):
    lost = tmp_path / "lost"
    shutil.copytree(trained.run_directory / "student", lost)
    shape = json.loads((lost / "config.json").read_text())
    (lost / "config.json").write_text(json.dumps({**shape, "collection": "never-written"}))
    config = serving(serve__models={"labels": str(classifier), "lost": str(lost)}, **PATIENT)
    with connect(config) as client:
        known, read = asked(client, TEXT)
        assert read["rung"] == "live"
        state = client.get("/readyz").json()
        assert (state["status"], state["memory"], state["model"]) == ("degraded", "refused", "served")
        assert state["reason"].startswith("lost: ")
        assert "never-written" in state["reason"]
        assert {name: one["memory"] for name, one in state["models"].items()} == {
            "served": "ok", "labels": "ok", "lost": "refused",
        }  # fmt: skip
        answer = client.post("/v1/embeddings", json={"input": TEXT, "explain": True, "model": "lost"}).json()
        assert (answer["model"], answer["data"][0]["reference"]["rung"]) == ("lost", "null")
        np.testing.assert_allclose(answer["data"][0]["embedding"], without_reference(trained, TEXT), atol=1e-5)
        labelled = client.post("/v1/classify", json={"input": TEXT, "explain": True, "model": "labels"}).json()
        assert labelled["data"][0]["reference"]["id"] == read["id"]
        text = client.get("/metrics").text
        for line in (
            'refbert_references_total{model="lost",rung="null",step="null"} 1.0',
            'refbert_references_total{model="served",rung="live",step="live"} 1.0',
            'refbert_references_total{model="served",rung="null",step="null"} 0.0',
            'refbert_memory_state{model="lost",state="refused"} 1.0',
            'refbert_memory_state{model="served",state="refused"} 0.0',
        ):
            assert line in text
        explained = client.post("/v1/explain", json={"input": TEXT, "model": "lost"}).json()
        assert (explained["model"], explained["nearest"]) == ("lost", [])
        np.testing.assert_allclose(asked(client, TEXT)[0], known, atol=1e-5)
