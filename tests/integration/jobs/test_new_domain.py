"""The demo's new domain: what a memory gives an untaught student as it grows, beside the student that is trained instead."""

import json

import pytest
import torch

from jobs import demo, distill
from jobs.config import load_config
from jobs.evaluation.report import growth_rows
from jobs.sections import DemoConfig
from refbert.errors import InputError
from refbert.folder import load_model
from refbert.teacher import load_teacher
from tests.integration.jobs.in_process import without_ray
from tests.integration.jobs.untaught import save_untaught_student
from vector_store.server.process import embedded_server

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def untaught(tiny_run, home, monkeypatch):
    """A run with a student that has learned nothing, beside a running store."""
    with embedded_server(home / "store") as url:
        without_ray(monkeypatch, url)
        config = tiny_run(
            name="untaught", references={"criterion": "none"}, student__reference_mode="none", train__targets="teacher",
            adapt={"landmarks": 50, "references": {"count": 4}}, train__learning_rate=1e-2,
        )  # fmt: skip
        save_untaught_student(config.run_directory / "student", load_teacher(config.teacher))
        yield config


def test_a_memory_gives_more_the_more_it_holds_and_a_second_demo_reads_what_the_first_found(untaught):
    growth = demo.grown(untaught, DemoConfig(shares=(0.25, 1.0), trained_steps=6))
    few, all_of_them = growth["steps"]
    assert few["references"] < all_of_them["references"] == 335
    assert few["heldout"]["texts"] == all_of_them["heldout"]["texts"] == growth["texts"] == 65  # the same ones
    assert few["heldout"]["alone"] == all_of_them["heldout"]["alone"] < 0.2
    assert few["heldout"]["references"] < all_of_them["heldout"]["references"]
    assert growth["trained"]["alone"] > few["heldout"]["alone"] + 0.1
    assert growth["trained"]["references"] > growth["trained"]["alone"]
    assert [row[0] for row in growth_rows(growth)] == [
        f"{few['references']} texts stored", "335 texts stored", "control: trained on them, 6 steps",
    ]  # fmt: skip
    assert (untaught.run_directory / "growth.png").stat().st_size > 1000
    again = demo.grown(untaught, DemoConfig(shares=(0.25, 1.0), trained_steps=6))
    assert again == json.loads(json.dumps(growth))


def test_a_training_starts_from_another_students_weights(untaught):
    start = untaught.run_directory / "student"
    train = untaught.train.model_copy(update={"start": str(start), "steps": 1, "learning_rate": 1e-12})
    distill.run(untaught.model_copy(update={"name": "on", "train": train}))
    before, after = (
        load_model(untaught.run_directory.parent / name / "student").state_dict() for name in ("untaught", "on")
    )
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-9)


def test_a_start_that_is_no_student_is_named_before_anything_is_filled(untaught, tmp_path):
    train = untaught.train.model_copy(update={"start": str(tmp_path)})
    with pytest.raises(InputError, match="holds no student"):
        distill.run(untaught.model_copy(update={"name": "nothing", "train": train}))
    assert not (untaught.home / "corpora").exists()


def test_a_start_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["train.start=runs/a/student"]).train.start == str(tmp_path / "runs/a/student")
