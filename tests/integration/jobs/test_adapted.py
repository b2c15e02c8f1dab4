"""An adapted student measured and scored by the jobs: as it answers, with controls, and by how near its references are."""

import json

import numpy as np
import pytest
import torch

import refbert
from jobs import adapt as adapt_job
from jobs.corpus.prepared import prepare
from jobs.evaluation.corrected import measure_corrected, open_corrected
from jobs.evaluation.measurements import EvaluationJob, Event, evaluate_student, heldout_rows
from jobs.evaluation.report import markdown, write_report
from jobs.memory.store import running_store
from refbert.corpus import text_of
from refbert.errors import InputError
from refbert.folder import load_model, save_student
from refbert.student import RefBertModel
from refbert.student_config import RefBertConfig
from refbert.teacher import load_teacher
from tests.integration.jobs.in_process import compute_in_process
from vector_store.client import connect


@pytest.fixture(scope="module")
def adapted(prepared_corpora, tiny_run, tmp_path_factory):
    """A run whose student, which has learned nothing, was adapted to the run's corpus; beside its running store."""
    home = tmp_path_factory.mktemp("adapted-home")
    (home / "corpora").symlink_to(prepared_corpora)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFBERT_HOME", str(home))
        compute_in_process(patch)
        config = tiny_run(
            name="adapted", references={"criterion": "none"}, train__targets="teacher",
            adapt={"landmarks": 50, "references": {"count": 4}},
        )  # fmt: skip
        teacher = load_teacher(config.teacher)
        torch.manual_seed(0)
        shape = RefBertConfig(
            vocab_size=len(teacher.tokenizer), dim=teacher.dim, reference_mode="none",
            hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        )  # fmt: skip
        save_student(config.run_directory / "student", RefBertModel(shape), teacher.tokenizer, text_tokens=16)
        with running_store(config) as url:
            adapt_job.run(config)
            yield config, url, teacher


@pytest.fixture
def here(adapted, monkeypatch):
    """The adapted run, found where it was made."""
    monkeypatch.setenv("REFBERT_HOME", str(adapted[0].run_directory.parent.parent))
    return adapted


def test_an_adapted_student_is_measured_as_it_answers_with_controls_and_by_nearness(here, tmp_path):
    config, url, teacher = here
    folder = config.run_directory / "student"
    job = EvaluationJob(config, None, prepare(config), folder, url)
    *events, report = evaluate_student(job)
    assert {"corrected", "labelled test, corrected"} <= {event.stage for event in events if isinstance(event, Event)}
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

    report["distill"] = {
        "steps": 1, "seconds": 1.0, "examples_per_s": 1.0, "data_wait_fraction": 0.0, "world_size": 1, "zero_stage": 0,
    }  # fmt: skip
    report["run"] |= {"commit": "abc", "versions": {}, "seconds": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 1.0}) + "\n")
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"| with references | {answers['references']:.4f} |" in text
    assert f"| control: other texts' residuals | {answers['random']:.4f} |" in text
    assert "](nearness.png)" in text
    assert (tmp_path / "nearness.png").read_bytes().startswith(b"\x89PNG")
    assert "nearness.png" not in markdown(report, "card", pictures=False)


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
