"""What a small demo is given, and what it must leave and print, wherever it runs."""

import json
from pathlib import Path
from typing import Any

import pytest

SMALL = [
    "corpus.max_texts=800", "train.steps=8", "train.num_workers=1", "train.log_every=4",
    "evaluate.texts=60", "evaluate.labelled_train=60",
    "evaluate.speed_repeats=3", "serve.port=0", "demo.corpus.max_texts=400", "demo.shares=[1]",
    "demo.trained_steps=0",
]  # fmt: skip

KEYS = {
    "teacher": {"name", "params", "layers", "dim"},
    "student": {"params", "layers", "dim", "compression"},
    "memory": {"points", "bytes", "criterion", "tokens", "dim", "datatype", "url_kind"},
    "distill": {"steps", "examples_per_s", "data_wait_fraction", "world_size", "zero_stage"},
    "fidelity": {"null"},
    "speed": {"teacher", "student", "student_corrected", "student_with_references"},
    "adapted": {"collection", "version", "answers", "nearness"},
    "run": {"commit", "versions", "hardware", "seconds"},
}
FIDELITY = {"state_mse", "sentence_cosine", "mutual_information_nats", "retrieval_top1"}
SPEED = {"batch", "latency_ms_p50", "latency_ms_p99", "examples_per_s"}


def assert_complete(home: Path, printed: str) -> dict[str, Any]:
    """The demo's report in this home has every part, with the numbers of an undisturbed run; returns it."""
    run = home / "runs" / "quickstart"
    report = json.loads((run / "report.json").read_text())
    for section, keys in KEYS.items():
        assert keys <= set(report[section]), section
    assert set(report["fidelity"]["null"]) == FIDELITY  # the student that reads nothing
    for contender in report["speed"].values():
        assert set(contender) == SPEED
        assert contender["examples_per_s"] > 0
    # The same numbers as an undisturbed run's: every passage of these corpora is a distinct text.
    stored = {json.loads(file.read_text())["counts"]["train"] for file in home.glob("corpora/*/manifest.json")}
    growth = json.loads((run / "growth.json").read_text())
    (step,) = growth["steps"]  # several, and the control: tests/integration/jobs/test_new_domain.py
    assert step["references"] == report["adapted"]["points"]
    assert stored == {report["memory"]["points"], step["references"]}
    assert step["heldout"]["alone"] <= step["heldout"]["references"]
    assert report["teacher"]["params"] == 22_713_216
    assert report["student"]["compression"] == pytest.approx(22_713_216 / report["student"]["params"])
    # The tables come before the service is started: a machine that is too busy for that has told what it measured.
    parts = [
        "Size and speed",
        "Corrected answers on held-out text",
        "A domain that the student has never seen",
        "5/5 serve",
    ]
    assert sorted(parts, key=printed.index) == parts
    assert "read:" in printed[printed.index("5/5 serve") :]
    assert str(run / "report.md") in printed
    for noise in ("Traceback", "infinite retries", "*** SIG"):  # Ray's, as its processes end
        assert noise not in printed
    return report
