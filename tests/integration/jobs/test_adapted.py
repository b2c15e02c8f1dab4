"""An adapted student measured and scored by the jobs: as it answers, with controls, and by how near its references are."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyarrow import parquet

import refbert
from jobs import adapt as adapt_job
from jobs import export as export_job
from jobs import predict as predict_job
from jobs.corpus.prepared import prepare
from jobs.evaluation.corrected import measure_corrected, open_corrected
from jobs.evaluation.measurements import EvaluationJob, Event, evaluate_student, heldout_rows
from jobs.evaluation.report import markdown, write_report
from jobs.memory.student_memory import open_reader, student_run
from refbert.errors import InputError
from refbert.exported import ExportedStudent, References
from refbert.folder import load_model
from refbert.memory.batch import references_of
from refbert.memory.retrieval import open_retriever
from refbert.memory.version import current_version, publish_version, roll_back
from refbert.passages import text_of
from refbert.teacher import load_teacher
from tests.integration.jobs.in_process import compute_in_process, without_ray
from tests.integration.jobs.untaught import save_untaught_student
from vector_store.client import connect
from vector_store.errors import CollectionMismatch
from vector_store.server.process import embedded_server
from vector_store.store import Store
from vector_store.versions import promote

ASKED = ["The film is slow: far too long.", "A wonderful story", "[SEP]"]


@pytest.fixture(scope="module")
def adapted(tiny_run, tmp_path_factory):
    """A run whose student, which has learned nothing, was adapted to the run's corpus; beside its running store."""
    home = tmp_path_factory.mktemp("adapted-home")
    with pytest.MonkeyPatch.context() as patch, embedded_server(home / "store") as url:
        patch.setenv("REFBERT_HOME", str(home))
        compute_in_process(patch)
        without_ray(patch, url)
        config = tiny_run(
            name="adapted", references={"criterion": "none"}, train__targets="teacher",
            adapt={"landmarks": 50, "references": {"count": 4}},
        )  # fmt: skip
        teacher = load_teacher(config.teacher)
        save_untaught_student(config.run_directory / "student", teacher)
        adapt_job.run(config)
        yield config, url, teacher


@pytest.fixture
def here(adapted, monkeypatch):
    """The adapted run, found where it was made."""
    monkeypatch.setenv("REFBERT_HOME", str(adapted[0].run_directory.parent.parent))
    without_ray(monkeypatch, adapted[1])
    return adapted


@pytest.fixture(scope="module")
def evaluated(adapted):
    """What the evaluating worker says of it: its events, and the report of a complete run."""
    config, url, _ = adapted
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(config.run_directory.parent.parent))
        *events, report = evaluate_student(
            EvaluationJob(config, None, prepare(config), config.run_directory / "student", url)
        )
    training = {"steps": 1, "seconds": 1.0, "examples_per_s": 1.0, "data_wait_fraction": 0.0, "world_size": 1}
    report["distill"] = training | {"zero_stage": 0}
    report["run"] |= {"commit": "abc", "versions": {}, "seconds": 1.0}
    return events, report


def test_an_adapted_student_is_measured_as_it_answers_with_controls_and_by_nearness(here, evaluated, tmp_path):
    config, url, teacher = here
    events, report = evaluated
    assert {"corrected", "labelled test, corrected"} <= {event.stage for event in events if isinstance(event, Event)}
    folder = config.run_directory / "student"
    job = EvaluationJob(config, None, prepare(config), folder, url)
    measured = report["adapted"]
    answers = {name: one["sentence_cosine"] for name, one in measured["answers"].items()}
    assert answers["alone"] == pytest.approx(report["fidelity"]["null"]["sentence_cosine"], abs=1e-3)
    assert answers["alone"] < answers["global"]
    assert answers["random"] < answers["references"]
    rows = heldout_rows(job, teacher, None)
    texts = [text_of(row) for row in rows]
    wanted = np.stack([states.mean(0, dtype=np.float32) for _, states in teacher.encode_texts(texts)])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for name, memory in (("global", None), ("references", config.store_directory)):
        with refbert.load(
            folder, memory
        ) as student:  # what a user gets; documents are told apart in neither corpus row
            cosine = float((student.encode(texts) * wanted).sum(1).mean())
        assert answers[name] == pytest.approx(cosine, abs=5e-3)
    bands = measured["nearness"]
    assert sum(band["texts"] for band in bands) == measured["texts"] == len(texts)
    for name in ("alone", "global", "references"):
        mean = sum(band["texts"] * band[name] for band in bands) / len(texts)
        assert mean == pytest.approx(answers[name], abs=1e-5)
    assert {"global", "references", "null"} <= set(report["labelled"])
    assert {"student_corrected", "student_with_references"} <= set(report["speed"])
    assert measured["version"] == json.loads((config.run_directory / "adapted.json").read_text())["version"]
    size = measured["size"]
    assert size["words_bytes"] > 10**6 * 0.5
    assert size["params"] > report["student"]["params"]

    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 1.0}) + "\n")
    (tmp_path / "student").symlink_to(folder)
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"| with references | {answers['references']:.4f} |" in text
    assert f"| control: other texts' residuals | {answers['random']:.4f} |" in text
    assert "](nearness.png)" in text
    assert (tmp_path / "nearness.png").read_bytes().startswith(b"\x89PNG")
    assert "nearness.png" not in markdown(report, "card", pictures=False)
    assert f"with references, {answers['global']:.4f} without, {answers['random']:.4f} with random ones" in text
    assert report["run"]["timing"]["cores"] == os.cpu_count()
    assert report["run"]["timing"]["others_cores"] >= 0
    _, how_to_load = re.findall(r"```python\n(.*?)```", text, re.S)
    loaded: dict = {}
    exec(how_to_load.replace("http://host:6334", str(config.store_directory)), loaded)
    with refbert.load(folder, config.store_directory) as student:
        np.testing.assert_allclose(loaded["vectors"], student.encode(["a text"]), atol=1e-6)


def test_held_out_texts_that_the_memory_holds_are_left_out_and_another_teacher_is_refused(here, caplog):
    config, url, teacher = here
    folder = config.run_directory / "student"
    model = load_model(folder)
    with connect(config.store, url) as client:
        student = open_corrected(config, folder, model, teacher, client)
        held = heldout_rows(EvaluationJob(config, None, prepare(config), folder, url), teacher, None)[:10]
        stored = [point.text for page in student.store.pages() for point in page][:5]
        known = [{"text": text, "text_pair": None, "document": None} for text in stored]
        with pytest.raises(InputError, match=r"every held-out text is stored in memory 'adapted'.*corpus.path="):
            list(measure_corrected(student, teacher, known, config.evaluate))
        *_, found = measure_corrected(student, teacher, [*known, *held], config.evaluate)
        assert found["texts"] == 10
        assert "5 of 15 held-out texts are in memory 'adapted': left out" in caplog.text
        other = load_teacher(config.teacher)
        other.fingerprint = "f" * 32
        with pytest.raises(InputError, match=r"which teacher .* wrote, and .* is another one"):
            open_corrected(config, folder, model, other, client)


def test_an_adapted_student_is_exported_as_it_answers(here, evaluated):
    config, _, teacher = here
    folder = config.run_directory / "student"
    (config.run_directory / "manifest.json").write_text(json.dumps({"training": {}}))
    (config.run_directory / "report.json").write_text(json.dumps(evaluated[1]))
    export_job.run(config)
    exported = ExportedStudent(folder / "onnx")
    with refbert.load(folder, config.store_directory) as student, refbert.load(folder) as alone:
        tokens = student.tokenize(ASKED)
        given = tokens.input_ids.numpy(), tokens.mask.numpy()
        wanted = alone.forward(tokens, None).sentence_embedding.numpy()
        np.testing.assert_allclose(exported.answer(*given).vector, wanted, atol=1e-5)
        store = config.store.model_copy(update={"collection": "adapted"})
        version = current_version(student.source._client, store, student.correction.student)
        source = open_retriever(student.source._client, store, student.texts, "dense", version.parts())
        found = source.neighbours(student.texts.queries(ASKED, tokens.input_ids, tokens.mask))
        read = References(*(column.numpy() for column in references_of(found, student.words)))
        wanted = student.forward(tokens, student.look_up(ASKED, tokens)).sentence_embedding.numpy()
        np.testing.assert_allclose(exported.answer(*given, references=read).vector, wanted, atol=1e-5)
        reader = student.correction.reader
    card = (folder / "README.md").read_text()
    assert f"by its references too (`{reader}`)" in card
    assert f"`{teacher.fingerprint}`" in card
    assert "This student reads no references" not in card
    assert "from refbert.exported import ExportedStudent" in card


def predicting(config, folder, **changes):
    """The run, scoring the texts of THIN and the stored ones in `folder`."""
    options = {"path": str(folder / "texts.jsonl"), "output": str(folder / "out"), "part_rows": 4, "batch": 3}
    corpus = config.corpus.model_copy(update={"text_field": "body"})
    predict = config.predict.model_copy(update=options | changes)
    return config.model_copy(update={"corpus": corpus, "predict": predict})


@pytest.fixture
def scored_texts(here, tmp_path):
    """Stored texts, and two that are far from all of them, in a file."""
    config, url, _ = here
    with connect(config.store, url) as client:
        memory = Store(client, config.store.model_copy(update={"collection": "adapted"}))
        stored = [point.text for page in memory.pages() for point in page][:9]
    texts = [*stored[:4], "0x7f 0x3c 0x91", *stored[4:], "[SEP]"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    return texts


def test_an_adapted_student_scores_files_as_it_answers_and_lists_the_texts_its_memory_is_thin_for(
    here, scored_texts, tmp_path, monkeypatch
):
    compute_in_process(monkeypatch)
    config, url, _ = here
    scoring = predicting(config, tmp_path, thinnest=2)
    predict_job.run(scoring)
    table = parquet.read_table(tmp_path / "out" / "parts")
    assert table["text"].to_pylist() == scored_texts
    with refbert.load(config.run_directory / "student", config.store_directory) as student:
        wanted = student.encode(scored_texts)
        nearness = np.empty(len(scored_texts))
        for forward in student.forwards(scored_texts):
            nearness[forward.rows] = forward.corrected.nearness
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), wanted, atol=1e-5)
    np.testing.assert_allclose(table["nearness"].to_numpy(), nearness, atol=1e-5)
    assert set(table["reference"].to_pylist()) == {"live"}
    thin = [json.loads(line) for line in (tmp_path / "out" / "thinnest.jsonl").read_text().splitlines()]
    assert [row["text"] for row in thin] == [scored_texts[row] for row in np.argsort(nearness)[:2]]
    assert thin[0]["nearness"] == pytest.approx(nearness.min(), abs=1e-5)
    assert set(thin[0]) == {"source", "row", "text", "nearness"}

    correction = student.correction
    with connect(config.store, url) as client:
        memory = Store(client, config.store.model_copy(update={"collection": "adapted"}))
        publish_version(memory, replace(correction, version="0badcafe"))  # the memory was adapted again since
        with pytest.raises(InputError, match=r"holds a result with other version; give another predict.output"):
            predict_job.run(scoring)
        run, folder = student_run(config, str(config.run_directory / "student"))
        before = open_reader(run, folder, url, torch.device("cpu"), version=correction.version)
        assert before.correction.version == correction.version, "a worker that starts late reads what the others read"
        with pytest.raises(CollectionMismatch, match=r"has no version 00000000 of student .* any more"):
            open_reader(run, folder, url, torch.device("cpu"), version="00000000")
        assert roll_back(memory, correction.student) == correction.version


def test_all_workers_of_a_scoring_read_the_version_that_an_alias_named_at_its_start(
    here, scored_texts, tmp_path, monkeypatch
):
    config, url, _ = here
    live = config.store.model_copy(update={"collection": "live"})
    with connect(config.store, url) as client:
        promote(client, live, "live", "adapted")
    collections = []

    def by_alias(*given):
        run, folder = student_run(*given)
        return run.model_copy(update={"store": live}), folder

    def score(scoring, files):
        collections.append(scoring.config.store.collection)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_job, "student_run", by_alias)
    monkeypatch.setattr(predict_job, "score", score)
    with pytest.raises(KeyboardInterrupt):
        predict_job.run(predicting(config, tmp_path))
    assert collections == ["adapted"]


def test_an_adapted_student_scores_files_by_its_maps_where_its_store_is_away(here, scored_texts, tmp_path, monkeypatch):
    compute_in_process(monkeypatch)
    config, _, _ = here
    away = {"url": "http://127.0.0.1:9", "lookup_deadline_ms": 500, "write_deadline_s": 0.2}
    predict_job.run(predicting(config.model_copy(update={"store": config.store.model_copy(update=away)}), tmp_path))
    table = parquet.read_table(tmp_path / "out" / "parts")
    with refbert.load(config.run_directory / "student") as alone:
        np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), alone.encode(scored_texts), atol=1e-5)
    assert set(table["reference"].to_pylist()) == {"null"}
    assert (tmp_path / "out" / "thinnest.jsonl").read_text() == ""
