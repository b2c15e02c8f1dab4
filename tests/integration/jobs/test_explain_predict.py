"""Explaining and offline scoring over one trained run: what was read is what is said, and every row is scored exactly once."""

import json

import numpy as np
import pytest
import yaml
from pyarrow import parquet

import refbert
from jobs import explain, predict
from jobs.corpus.prepared import prepare, texts_in
from jobs.run.attempts import Attempts
from refbert import RefBertConfig, RefBertModel
from refbert.errors import InputError, UnavailableError
from refbert.teacher import load_tokenizer
from tests.integration.jobs.in_process import compute_in_process, die_at

AWAY = {"url": "http://127.0.0.1:9", "lookup_deadline_ms": 500, "write_deadline_s": 1}
pytestmark = pytest.mark.usefixtures("home_of_the_run")

TEXT = "The film is slow: far too long, and the acting is bad."


@pytest.fixture(scope="module")
def rows(trained, tmp_path_factory):
    """Two files: 37 texts, of which two are none, and 5."""
    folder = tmp_path_factory.mktemp("rows")
    texts = list(texts_in(prepare(trained).table("train")))[:40]
    lines = [json.dumps({"body": text}) for text in texts]
    lines[3], lines[20] = "no JSON", json.dumps({"body": " "})
    (folder / "a.jsonl").write_text("\n".join(lines[:37]))
    (folder / "b.jsonl").write_text("\n".join([*lines[37:], *lines[:2]]))
    (folder / "notes.md").write_text("No corpus.")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl").write_text(lines[0])
    return folder


def changed(config, **sections):
    tree = config.model_dump(mode="json")
    for section, options in sections.items():
        tree[section] = {**tree[section], **options}
    return type(config).model_validate(tree)


def scoring(config, rows, output, **options):
    return changed(
        config,
        corpus={"text_field": "body"},
        predict={"path": str(rows), "output": str(output), "part_rows": 16, "batch": 4, **options},
    )


def result(output):
    """Rows and manifest of an output."""
    return parquet.read_table(output / "parts"), json.loads((output / "manifest.json").read_text())


def saved(folder, model, config):
    model.save_pretrained(folder / "student")
    load_tokenizer(str(config.run_directory / "student")).save_pretrained(folder / "student")
    return folder / "student"


@pytest.fixture(scope="module")
def classifier(trained, tmp_path_factory, labelling_student):
    """A student with a head, in a folder with options of its own."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "config.yaml").write_text(yaml.safe_dump(trained.model_dump(mode="json")))
    return labelling_student(trained.run_directory / "student", folder)


def test_an_explanation_shows_what_was_read_and_what_it_changed(trained, capsys):
    explain.run(changed(trained, explain={"text": TEXT}))
    found = json.loads((trained.run_directory / "explanation.json").read_text())
    stored = set(texts_in(prepare(trained).table("train")))
    assert [read["rung"] for read in found["references"]] == ["live", "live"]
    assert [read["step"] for read in found["references"]] == ["live", "live"]  # the old name, kept for one release
    assert all(read["text"] in stored for read in found["references"])
    layer, readout = found["layers"]
    assert layer["null"] == 0
    assert readout["null"] > 0  # what it leaves of the student's own
    assert readout["null"] + readout["references"] == pytest.approx(1, abs=1e-5)
    assert layer["own"] + layer["references"] == pytest.approx(1, abs=1e-5)
    assert sum(read["mass"]["0"] for read in found["references"]) == pytest.approx(layer["references"], abs=1e-5)
    assert all(sum(read["token_mass"]["0"]) == pytest.approx(read["mass"]["0"]) for read in found["references"])
    assert found["strongest_layer"] == "read-out"
    assert np.sum(found["heat"]["mass"]) / len(found["tokens"]) == pytest.approx(readout["references"], abs=1e-5)
    folder = trained.run_directory / "student"
    with refbert.load(folder, trained.store_directory) as student:
        with_, without = student.encode([TEXT]), refbert.load(folder).encode([TEXT])
    distance = 1 - float(with_[0] @ without[0])
    assert found["without_references"]["cosine_distance"] == pytest.approx(distance, abs=1e-6)
    assert all(read["without"]["cosine_distance"] > 0 for read in found["references"])
    assert (trained.run_directory / "explanation.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Attention by layer" in printed
    assert found["references"][0]["text"][:20] in printed


def test_a_classifier_is_explained_by_its_labels(trained, classifier):
    explain.run(
        changed(trained, explain={"text": TEXT, "student": str(classifier)}, store={"collection": "not-this-one"})
    )
    found = json.loads((trained.run_directory / "explanation.json").read_text())
    for name in ("with", "without"):
        assert sum(found["labels"][name].values()) == pytest.approx(1)
    moved = found["labels"]["with"]["good"] - found["labels"]["without"]["good"]
    assert found["without_references"]["labels"]["good"] == pytest.approx(moved, abs=1e-6)
    assert moved != 0


@pytest.mark.usefixtures("in_process")
def test_every_row_is_scored_once_and_equals_the_librarys_answer(trained, rows, tmp_path):
    predict.run(scoring(trained, rows, tmp_path))
    table, manifest = result(tmp_path)
    assert manifest["counts"] == {"read": 42, "written": 40, "rejected": 2, "live": 40, "cached": 0, "null": 0}
    assert len(manifest["parts"]) == 4  # of 37 rows three, of 5 one
    places = [(row["source"].rsplit("/")[-1], row["row"]) for row in table.select(["source", "row"]).to_pylist()]
    wanted = [("a.jsonl", row) for row in range(37) if row not in (3, 20)] + [("b.jsonl", row) for row in range(5)]
    assert places == wanted
    reasons = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["row"] for row in reasons] == [3, 20]
    assert "not JSON" in reasons[0]["reason"]
    folder = trained.run_directory / "student"
    with refbert.load(folder, trained.store_directory) as student:
        vectors = student.encode(table["text"].to_pylist())
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), vectors, atol=1e-5)


@pytest.fixture
def attempts(trained, monkeypatch):
    """The notes of the next jobs, as those of one job."""
    made = Attempts.of_run(trained.run_directory)
    monkeypatch.setattr(Attempts, "of_run", lambda directory: made)
    return made


def test_a_part_that_kills_its_process_is_rejected_by_row_and_scored_when_its_file_is_deleted(
    trained, rows, tmp_path, attempts, monkeypatch, caplog
):
    compute_in_process(monkeypatch)
    part = "00000-000000000016-000000000032.parquet"
    die_at(attempts, part)
    predict.run(scoring(trained, rows, tmp_path))
    _, manifest = result(tmp_path)
    assert (manifest["counts"]["read"], manifest["counts"]["written"], manifest["counts"]["rejected"]) == (42, 25, 17)
    reasons = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["row"] for row in reasons] == [3, *range(16, 32)]
    assert reasons[1]["reason"] == "3 processes died at the 16 rows that this one is of"
    assert "not JSON" in reasons[0]["reason"]
    assert f"rows 16 to 31 of {rows / 'a.jsonl'} (delete {tmp_path / 'parts' / part} to try them again)" in caplog.text
    (tmp_path / "parts" / part).unlink()
    predict.run(scoring(trained, rows, tmp_path))
    assert result(tmp_path)[1]["counts"]["written"] == 40


def test_parts_are_tried_again_where_the_machine_kills_every_process(trained, rows, tmp_path, attempts, monkeypatch):
    compute_in_process(monkeypatch)
    for start, stop in ((0, 16), (16, 32), (32, 37)):
        die_at(attempts, f"00000-{start:012d}-{stop:012d}.parquet")
    with pytest.raises(UnavailableError, match=r"a worker died 3 times at rows 0 to 15 of .*Lower predict\.batch"):
        predict.run(scoring(trained, rows, tmp_path))
    predict.run(scoring(trained, rows, tmp_path))
    assert result(tmp_path)[1]["counts"]["written"] == 40


def test_a_wrong_field_is_refused_before_the_output_is_claimed_and_files_passed_over_are_named(
    trained, rows, tmp_path, caplog
):
    config = changed(scoring(trained, rows, tmp_path / "output"), corpus={"text_field": "text"})
    with pytest.raises(InputError, match=r"a\.jsonl has no column 'text', only body"):
        predict.run(config)
    assert not (tmp_path / "output" / "identity.json").exists()
    assert (
        "2 of 4 files passed over: 1 hidden (.ipynb_checkpoints/a-checkpoint.jsonl); 1 in another form" in caplog.text
    )


def test_finished_parts_are_not_computed_again(trained, rows, tmp_path, monkeypatch):
    config = scoring(trained, rows, tmp_path, num_workers=2, datatype="float16")
    with monkeypatch.context() as patch:
        compute_in_process(patch)
        predict.run(config)
    before, manifest = result(tmp_path)
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    gone = [manifest["parts"][0], manifest["parts"][-1]]
    for name in gone:
        (tmp_path / "parts" / name).unlink()
    (tmp_path / "parts" / f"{gone[0]}.0badc0de.partial").write_bytes(b"half of it")
    predict.run(config)
    after, again = result(tmp_path)
    assert again == manifest
    assert after.drop_columns("embedding").equals(before.drop_columns("embedding"))
    np.testing.assert_allclose(
        np.stack(after["embedding"].to_numpy()), np.stack(before["embedding"].to_numpy()), atol=1e-3
    )
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert [name for name in parts if now[name] != parts[name]] == gone
    assert now.keys() == parts.keys()
    predict.run(config)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == now
    with pytest.raises(InputError, match="other datatype"):
        predict.run(scoring(trained, rows, tmp_path))


@pytest.mark.usefixtures("in_process")
def test_a_students_labels_are_written_with_the_score_of_each(trained, classifier, rows, tmp_path):
    config = scoring(trained, rows / "b.jsonl", tmp_path, student=str(classifier))
    predict.run(config)
    table, _ = result(tmp_path)
    with refbert.load(classifier, trained.store_directory) as student:
        wanted = student.predict(table["text"].to_pylist())
    assert table["label"].to_pylist() == [one.label for one in wanted]
    scores = np.stack([table["score_bad"], table["score_good"]], 1)
    np.testing.assert_allclose(scores.max(1), [one.score for one in wanted], atol=1e-5)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)


@pytest.mark.usefixtures("in_process")
def test_every_row_is_scored_without_references_while_the_store_is_away(trained, rows, tmp_path):
    config = changed(scoring(trained, rows, tmp_path), store=AWAY, explain={"text": TEXT})
    predict.run(config)
    table, manifest = result(tmp_path)
    assert manifest["counts"] == {"read": 42, "written": 40, "rejected": 2, "live": 0, "cached": 0, "null": 40}
    vectors = refbert.load(trained.run_directory / "student").encode(table["text"].to_pylist())
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), vectors, atol=1e-5)
    explain.run(config)
    found = json.loads((trained.run_directory / "explanation.json").read_text())
    assert found["layers"][0]["null"] > 0
    assert found["layers"][0]["references"] == 0
    assert found["without_references"]["cosine_distance"] < 1e-9
    assert found["heat"]["columns"] == ["null"]


@pytest.mark.usefixtures("in_process")
def test_a_student_without_memory_needs_no_store(trained, rows, tmp_path):
    shape = RefBertConfig.from_pretrained(trained.run_directory / "student")
    shape.reference_mode, shape.memory = "none", None
    student = str(saved(tmp_path / "vanilla", RefBertModel(shape), trained))
    config = scoring(trained, rows / "b.jsonl", tmp_path / "out", student=student)
    config = changed(config, store=AWAY, explain={"text": TEXT, "student": student})
    predict.run(config)
    assert result(tmp_path / "out")[1]["counts"]["null"] == 5
    explain.run(config)
    found = json.loads((trained.run_directory / "explanation.json").read_text())
    assert found["layers"] == []
    assert found["without_references"]["cosine_distance"] < 1e-9
    assert not (trained.run_directory / "explanation.png").exists()


def test_impossible_requests_are_refused_in_one_line(trained, rows, tmp_path):
    with pytest.raises(InputError, match="no text to explain"):
        explain.run(trained)
    with pytest.raises(InputError, match="has no head"):
        predict.run(scoring(trained, rows, tmp_path, write="labels"))
    with pytest.raises(InputError, match="holds no student"):
        predict.run(scoring(trained, rows, tmp_path, student=str(tmp_path)))
