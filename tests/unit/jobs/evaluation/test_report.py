"""The report's files: complete, readable, and with the figures that were measured."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from jobs.evaluation.model_card import front_matter, model_card
from jobs.evaluation.report import markdown, print_tables, reading, warnings, write_report
from refbert.export import Export


def write(report, folder):
    """Write a report beside the losses of two steps."""
    steps = [
        {"step": step, "train/loss": 3.0 / step, "train/hidden": 1.0, "train/learning_rate": 0.1} for step in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    write_report(report, folder)


def test_report_files_are_written_with_their_figures(tmp_path, report):
    write(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert {name: written[name] for name in report} == report
    text = (tmp_path / "report.md").read_text()
    for picture in ("loss.png", "fidelity.png", "size_latency.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert f"]({picture})" in text
    assert "2.00x fewer, 11.0 MB, 8.00x smaller" in text
    assert "100 held-out texts of `tickets.jsonl`" in text
    assert "0.4321" in text
    assert "3.00x" in text


@pytest.mark.parametrize(
    ("control", "helps", "said"),
    [
        (
            0.45,
            True,
            "Reading helps: the mean cosine to the teacher is 0.5000 with references, 0.4321 without, 0.4500 with",
        ),
        (
            0.4999,
            False,
            "Reading does not help: the mean cosine to the teacher is 0.5000 with references, 0.4321 without",
        ),
    ],
)
def test_the_report_says_whether_reading_helps(tmp_path, report, capsys, control, helps, said):
    report["fidelity"]["random"] = {**report["fidelity"]["random"], "sentence_cosine": control}
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["reading"] == {
        "helps": helps, "with": 0.5, "without": 0.4321, "control": control,
    }  # fmt: skip
    assert said in (tmp_path / "report.md").read_text()
    print_tables(report)
    assert said in " ".join(capsys.readouterr().out.split())


def test_an_adapted_students_report_compares_its_corrected_answers(report):
    answers = {
        name: {"sentence_cosine": value} for name, value in (("references", 0.9), ("global", 0.8), ("random", 0.7))
    }
    report["adapted"] = {"answers": answers, "references_per_text": 16}
    assert reading(report) == {"helps": True, "with": 0.9, "without": 0.8, "control": 0.7}
    report["adapted"]["references_per_text"] = 0
    assert reading(report) is None


def test_nothing_is_said_of_reading_where_a_student_reads_nothing(report):
    del report["fidelity"]["nearest"], report["fidelity"]["random"]
    assert "Reading" not in markdown(report, "x")


def test_the_report_warns_of_figures_that_a_busy_machine_spoilt(tmp_path, report, capsys):
    report["run"]["timing"] = {"others_cores": 0.4, "cores": 2}
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == []
    assert "Warning" not in (tmp_path / "report.md").read_text()
    report["run"]["timing"] = {"others_cores": 1.26, "cores": 2}
    write(report, tmp_path)
    said = "the machine was busy while encoders were timed: other processes used 1.3 of 2 cores; evaluate again"
    (warning,) = json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert warning.startswith(said)
    assert f"\n> **Warning**: {said}" in (tmp_path / "report.md").read_text()
    print_tables(report)
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_report_warns_of_a_student_that_is_hardly_smaller_than_its_teacher(report):
    report["student"]["bytes_compression"] = 1.9
    (warning,) = warnings(report)
    assert warning.startswith(
        "the student is only 1.90x smaller than its teacher, wanted 2x; lower student.hidden_size"
    )
    report["student"]["bytes_compression"] = 8.0
    report["adapted"] = {"size": {"weights_bytes": 40e6, "words_bytes": 2e6, "correction_bytes": 6e6}}
    (warning,) = warnings(report)  # of 88 MB: what corrects it counts
    assert "only 1.83x smaller" in warning


def test_the_report_says_how_to_load_the_student_and_a_card_does_not_name_this_machine(tmp_path, report):
    write(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f'SentenceTransformer("{tmp_path}/student", trust_remote_code=True)' in text
    assert f'with refbert.load("{tmp_path}/student", memory) as student:' in text
    assert "memory = " in text
    del report["fidelity"]["nearest"], report["fidelity"]["random"]
    write(report, tmp_path)
    assert f'with refbert.load("{tmp_path}/student") as student:' in (tmp_path / "report.md").read_text()
    assert "## Load" not in markdown(report, "card", pictures=False)


def test_labelled_table_is_there_only_where_there_are_labels(report, capsys):
    assert "Linear classifier" not in markdown(report, "x")
    names = ("teacher", "nearest", "null", "random", "majority")
    report["labelled"] = {name: {"accuracy": 0.7 + index / 100} for index, name in enumerate(names)}
    assert "| student with references | 0.7100 |" in markdown(report, "x")
    print_tables(report)
    assert "0.7100" in capsys.readouterr().out


def test_the_explained_text_is_in_the_report_but_not_in_a_card_that_others_read(report):
    report["explanation"] = {
        "text": "a private text", "reference": "its like", "rung": "live", "score": 2.5, "layer": 3, "mass": 0.25,
        "cosine_distance": 0.0123, "picture": "example.png",
    }  # fmt: skip
    text = markdown(report, "x")
    for fact in ("> a private text", "> its like", "live, score 2.50", "Layer 3", "25.0 %", "0.0123", "](example.png)"):
        assert fact in text
    export = Export(inputs=(), outputs=(), opset=20, tolerance=1e-4, difference=0.0, bytes=1)
    assert "private" not in model_card(report, "mine", None, export, None)


def test_model_card_has_the_reports_figures_and_no_license_of_its_own(report):
    export = Export(
        inputs=("input_ids",), outputs=("logits",), opset=20, tolerance=1e-4, difference=3e-6, bytes=5_000_000,
        int8_difference=0.02, int8_cosine=0.9987, int8_bytes=1_000_000,
    )  # fmt: skip
    card = model_card(report, "mine", {"fingerprint": "abcdef"}, export, None)
    front = yaml.safe_load(card.split("---")[1])
    assert "license" not in front
    assert "base_model" not in front  # a folder, not a model of the Hub
    for fact in (
        "0.4321",
        "2.00x fewer",
        "`abcdef`",
        "3.0e-06",
        "0.9987",
        "http://host:6334",
        "student.predict",
        "# mine",
    ):
        assert fact in card
    assert "](" not in card  # no picture that does not travel with it
    assert "license: mit\n" in model_card(report, "mine", None, export, "mit")
    assert "http://host:6334" not in model_card(report, "mine", None, export, "mit")


def test_the_hub_finds_teacher_languages_and_figures_in_the_front_matter(report):
    export = Export(
        inputs=("input_ids",), outputs=("sentence_embedding",), opset=20, tolerance=1e-4, difference=0.0, bytes=1
    )
    report["teacher"]["name"] = "pypi:all-MiniLM-L6-v2"
    report["labelled"] = {name: {"accuracy": 0.75} for name in ("teacher", "nearest", "null", "random", "majority")}
    report["explanation"] = {}
    card = ModelCard(model_card(report, "mine", None, export, "apache-2.0", ("en", "de")))
    found = card.data
    assert found.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert (found.language, found.license) == (["en", "de"], "apache-2.0")
    assert (found.pipeline_tag, found.library_name) == ("sentence-similarity", "sentence-transformers")
    figures = [(result.metric_name, result.metric_type, result.metric_value) for result in found.eval_results]
    assert figures == [
        ("Mean cosine of sentence vectors to the teacher's, without a memory", "cosine_similarity", 0.4321),
        ("Texts whose nearest other text is the teacher's, without a memory", "top_1_agreement", 0.4),
        ("Mean cosine of sentence vectors to the teacher's, with references", "cosine_similarity", 0.5),
        ("Texts whose nearest other text is the teacher's, with references", "top_1_agreement", 0.4),
        ("Linear classifier on frozen vectors, with references", "accuracy", 0.75),
        ("Linear classifier on frozen vectors, without a memory", "accuracy", 0.75),
    ]
    answer = {"sentence_cosine": 0.9, "mutual_information_nats": 1.0, "retrieval_top1": 0.8}
    report["adapted"] = {"answers": {"alone": answer, "global": {**answer, "sentence_cosine": 0.92}}}
    adapted = front_matter(report, "mine", False, None)
    assert [result.metric_value for result in adapted.eval_results] == [
        0.92,
        0.8,
    ]  # what the folder answers, not what it was
    assert (
        front_matter({**report, "teacher": {"name": "runs/x"}}, "mine", True, None).pipeline_tag
        == "text-classification"
    )
