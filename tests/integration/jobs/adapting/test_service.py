"""A service answers as its student was adapted, follows new versions, and explains what references changed."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import refbert
from jobs.evaluation.explanation_report import print_explanation, write_explanation
from jobs.memory.student_memory import student_run
from jobs.sections import ServeConfig
from jobs.service import memory_watch
from jobs.service.api import http_api
from jobs.service.errors import NonFiniteAnswer, kind_of, name_of
from jobs.service.inference import InferenceService
from jobs.service.metrics import Metrics
from jobs.service.middleware import RequestMiddleware
from jobs.service.schema import Explanation
from jobs.service.student import ServedStudent
from refbert.memory.explanation import explained
from tests.integration.jobs.adapting.memory import ASKED, TEXTS, Memory
from tests.integration.jobs.untaught import save_untaught_student
from vector_store.retriever import Retriever


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def served(memory, metrics):
    """Serve the memory's student as a replica does, without Ray; each call answers texts."""
    memory.add(TEXTS[:70])
    memory.adapt()
    config = memory.config.model_copy(update={"serve": ServeConfig(memory_check_s=0.5)})
    config, folder = student_run(config, str(memory.folder))
    student = ServedStudent(config, folder, torch.device("cpu"), metrics)
    yield student
    student.memory.close()


def answers(student, texts, explain=False):
    found = [None] * len(texts)
    for batch in student.prepare(texts, [explain] * len(texts)):
        for row, result in zip(batch.rows, student.forward(batch), strict=True):
            found[row] = result
    return found


def vectors(student, texts):
    return np.stack([result.vector for result in answers(student, texts)])


def test_a_service_follows_an_adaptation_under_load_without_a_failed_answer(served, memory, store_url):
    before = vectors(served, ASKED)
    stop, failures, count = threading.Event(), [], []

    def ask():
        while not stop.is_set():
            try:
                assert np.isfinite(vectors(served, ASKED[:8])).all()
                count.append(1)
            except BaseException as error:
                failures.append(error)
                raise

    asking = threading.Thread(target=ask)
    asking.start()
    memory.add(TEXTS[70:])
    version = memory.adapt().correction.version
    deadline = time.monotonic() + 20
    while served.memory.reader.correction.version != version and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    asking.join()
    assert not failures
    assert len(count) > 3
    assert served.memory.status.state == "ok"
    after = vectors(served, ASKED)
    with refbert.load(memory.folder, store_url) as reader:
        np.testing.assert_allclose(after, reader.encode(ASKED), atol=1e-4)
    assert float((before * after).sum(1).mean()) < 0.9999


def test_a_services_own_copy_of_its_memory_is_taken_anew_when_the_memory_changes(memory, monkeypatch):
    monkeypatch.setattr(memory_watch, "RECOPY_S", 0.0)
    memory.add(TEXTS[:40])
    memory.adapt()
    config = memory.config.model_copy(update={"serve": ServeConfig(memory_check_s=60, replica_rows=len(TEXTS) - 1)})
    student = ServedStudent(*student_run(config, str(memory.folder)), torch.device("cpu"), Metrics())
    try:
        assert len(student.memory.reader.source) == 40
        asked = answers(student, [TEXTS[0], ASKED[0]], explain=True)
        assert [{read.rung for read in result.references} for result in asked] == [{"own"}, {"live"}]
        memory.add(TEXTS[40:60])  # not read by the version that there is
        student.memory.check()
        assert (len(student.memory.reader.source), student.memory.reader.source.num_unread) == (60, 20)
        assert np.isfinite(vectors(student, ASKED)).all()
        memory.store.delete(("document", TEXTS[0]))
        version = memory.adapt().correction.version
        student.memory.check()
        assert (len(student.memory.reader.source), student.memory.reader.source.num_unread) == (59, 0)
        assert student.memory.reader.correction.version == version
        memory.add(TEXTS)  # more than it may copy
        memory.adapt()
        student.memory.check()
        assert isinstance(student.memory.reader.source, Retriever)
    finally:
        student.memory.close()


def test_a_stored_text_is_answered_with_its_teachers_own_vector(served, metrics, teacher):
    (result,) = answers(served, [TEXTS[0]], explain=True)
    own = teacher.encode_texts([TEXTS[0]])[0][1].mean(0, dtype=np.float32)
    assert float(result.vector @ own) / np.linalg.norm(own) > 0.9999
    assert result.nearness == 1.0
    assert {read.rung for read in result.references} == {"own"}
    (other,) = answers(served, ["nothing like it was ever stored"], explain=True)
    assert other.nearness < 1
    assert {read.rung for read in other.references} == {"live"}
    assert 'refbert_references_total{model="tiny",rung="own",step="own"} 1.0' in metrics.text()
    assert 'refbert_nearness_count{model="tiny"} 2.0' in metrics.text()


def test_a_service_explains_what_each_reference_changed(served):
    explanation = served.explain(ASKED[0])
    read = explanation["references"]
    assert len(read) == 4
    assert all(one["text"] and one["weight"] is not None for one in read)
    strongest = max(read, key=lambda one: abs(one["weight"]))
    assert strongest["without"]["cosine_distance"] > 0
    assert explanation["without_references"]["cosine_distance"] > 0
    assert 0 < explanation["correction"]["nearness"] <= 1
    timing = {"lookup": 0, "student": 0, "queue": 0}
    answer = Explanation.model_validate(explanation | {"model": "m", "timing_ms": timing})
    assert answer.references[0].weight == read[0]["weight"]


def test_an_explanation_is_printed_with_weights_and_nearness(served, capsys, tmp_path):
    explanation = explained(served.memory.reader, ASKED[0])
    print_explanation(explanation)
    printed = capsys.readouterr().out
    assert "weight" in printed
    assert f"the nearest is at {explanation['correction']['nearness']:.3f}" in printed
    assert explanation["references"][0]["text"] in printed
    summary = write_explanation(explanation, tmp_path, "explanation")
    assert summary["cosine_distance"] == explanation["without_references"]["cosine_distance"]


def test_without_its_memory_a_service_answers_by_the_folders_copy(served, memory, monkeypatch):
    memory.store.delete_collection()
    deadline = time.monotonic() + 20
    while served.memory.status.state == "ok" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.memory.status.state == "refused"
    assert "corrects no answers of student" in served.memory.status.reason or "exist" in served.memory.status.reason
    with refbert.load(memory.folder) as alone:
        np.testing.assert_allclose(vectors(served, ASKED), alone.encode(ASKED), atol=1e-4)


def test_each_student_of_a_service_reads_its_own_memory_and_is_shortened_by_it(memory, store_url, teacher, tmp_path):
    memory.add(TEXTS)
    memory.adapt()
    save_untaught_student(tmp_path / "other" / "student", teacher)
    name = f"{memory.config.store.collection}-other"
    store, options = (part.model_copy(update={"collection": name}) for part in (memory.config.store, memory.options))
    config = memory.config.model_copy(update={"store": store, "adapt": options})
    other = Memory(config, memory.client, tmp_path / "other" / "student", teacher)
    other.add(TEXTS[:50])
    other.adapt()
    serving = ServeConfig(models={"other": str(other.folder)}, memory_check_s=0.5)
    service = InferenceService(memory.config.model_copy(update={"serve": serving}), torch.device("cpu"))
    service.load(str(memory.folder))

    async def ask(texts, **options):
        deadline = asyncio.get_running_loop().time() + 30
        return [
            np.stack([text.vector for text in (await service.infer(texts, deadline, model=name, **options)).texts])
            for name in (None, "other")
        ]

    async def answer():
        service.start()
        try:
            return await ask(ASKED), await ask(ASKED, dimensions=12)
        finally:
            await service.stop()

    (own, others), (own_short, others_short) = asyncio.run(answer())
    for folder, whole, short in ((memory.folder, own, own_short), (other.folder, others, others_short)):
        with refbert.load(folder, store_url) as reader:
            np.testing.assert_allclose(whole, reader.encode(ASKED), atol=1e-4)
            np.testing.assert_allclose(short, reader.encode(ASKED, 12), atol=1e-4)
    assert float((own * others).sum(1).mean()) < 0.9999
    assert {name: state.memory for name, state in service.readiness().models.items()} == {"tiny": "ok", "other": "ok"}


def test_an_answer_that_is_not_finite_is_an_error_by_name_and_no_vector(served, monkeypatch):
    part = served.memory.reader.correction.part
    monkeypatch.setattr(part, "bias", torch.full_like(part.bias, torch.nan))
    with pytest.raises(NonFiniteAnswer, match=r"answered with numbers that are not finite; .* deploy another"):
        answers(served, ["a text that is not stored"])
    assert kind_of(NonFiniteAnswer("x")).status == 500
    assert name_of(NonFiniteAnswer("x")) == "NonFiniteAnswer"


def test_shorter_vectors_are_the_memorys_components_over_http_as_refbert_load_gives_them(memory, store_url):
    memory.add(TEXTS)
    memory.adapt()
    service = InferenceService(memory.config, torch.device("cpu"))
    service.load(str(memory.folder))
    api = http_api(service)

    @contextlib.asynccontextmanager
    async def answering(_):
        service.start()
        yield
        await service.stop()

    api.router.lifespan_context = answering
    with TestClient(RequestMiddleware(service, api)) as client, refbert.load(memory.folder, store_url) as reader:

        def served(**options):
            body = {"input": ASKED, **options}
            return np.array([one["embedding"] for one in client.post("/v1/embeddings", json=body).json()["data"]])

        dim = service.student.dim
        whole = served()
        np.testing.assert_array_equal(served(dimensions=dim), whole)
        for dimensions in (1, 12, dim - 1):
            found = served(dimensions=dimensions)
            assert found.shape == (len(ASKED), dimensions)
            np.testing.assert_allclose(found, reader.encode(ASKED, dimensions), atol=1e-4)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
            tei = client.post("/embed", json={"inputs": ASKED, "dimensions": dimensions}).json()
            np.testing.assert_allclose(tei, found, atol=1e-4)
        kept = np.abs(served(dimensions=12) @ served(dimensions=12).T - whole @ whole.T).mean()
        prefix = whole[:, :12] / np.linalg.norm(whole[:, :12], axis=1, keepdims=True)
        assert kept < 0.5 * np.abs(prefix @ prefix.T - whole @ whole.T).mean()
        page = client.get("/openapi.json").json()["components"]["schemas"]["EmbeddingRequest"]["properties"]
        assert (page["dimensions"]["anyOf"][0]["minimum"], page["dimensions"]["anyOf"][0]["maximum"]) == (1, dim)
        refused = client.post("/v1/embeddings", json={"input": "a text", "dimensions": dim + 1})
        assert refused.status_code == 422
        assert f"cannot be cut to {dim + 1}: give 1 to {dim}" in refused.text
