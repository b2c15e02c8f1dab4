"""An ablation's arithmetic: averages, paired differences, goals; on scores made up here."""

import json

import pytest

from jobs.config import RunConfig
from jobs.sections import AblateConfig
from jobs.tasks.report import (
    compare_with_nearest,
    goals,
    markdown,
    mean_score,
    mixing_rows,
    score_rows,
    swap_rows,
    write_ablation,
)


def result(value: float, *ways: str) -> dict:
    scores = {"dev": {"all": {"accuracy": value}, "no_near_duplicate": {"accuracy": value - 0.01}}}
    return {"scores": dict.fromkeys(ways, scores), "losses": [], "seconds": 1.0}


def task(nearest: list[float], vanilla: list[float], teacher: float) -> dict:
    return {
        "metrics": ["accuracy"],
        "official": True,
        "note": "",
        "train": 10,
        "copies": 30,
        "dev": {"dev": 5},
        "near_duplicates": {"train": 1, "dev": {"dev": 2}},
        "teacher": {"scores": {"dev": {"accuracy": teacher}}, "seconds": 3.0},
        "arms": {
            "nearest": {
                seed: result(value, "nearest", "random", "null", "nearest_unguarded")
                for seed, value in enumerate(nearest)
            },
            "vanilla": {seed: result(value, "vanilla") for seed, value in enumerate(vanilla)},
        },
    }


@pytest.fixture
def report() -> dict:
    config = RunConfig(name="made-up", corpus={"path": "x"}, ablate=AblateConfig(arms=("nearest", "vanilla")))
    return {
        "config": config.model_dump(mode="json"),
        "hardware": "a machine",
        "commit": "abc",
        "versions": {},
        "tasks": {"A": task([0.8, 0.9], [0.7, 0.7], 0.95), "B": task([0.5, 0.6], [0.6, 0.6], 0.65)},
    }


def test_means_are_over_seeds_and_averages_over_tasks(report):
    assert mean_score(report["tasks"]["A"], "nearest") == pytest.approx(85)
    teacher, nearest, vanilla = score_rows(report)
    assert teacher[-2:] == ("80.00", "100 %")
    assert nearest == ("nearest", "85.0 ± 7.1", "55.0 ± 7.1", "70.00", "87.5 %")
    assert vanilla[-2:] == ("65.00", "81.2 %")


def test_differences_are_paired_by_seed(report):
    found = compare_with_nearest(report, "vanilla")
    assert found["by_task"] == pytest.approx({"A": 15.0, "B": -5.0})
    assert (found["mean"], found["relative"], found["better_on"]) == (pytest.approx(5.0), pytest.approx(100 / 13), 1)
    assert 0 < found["p"] < 1


def test_goals_carry_the_values_that_were_reached(report):
    by_name = {goal["name"]: goal for goal in goals(report)}
    assert by_name["nearest / teacher, average"]["value"] == pytest.approx(0.875)
    assert not by_name["nearest / teacher, average"]["met"]
    assert by_name["nearest - vanilla, average, points"]["met"]
    assert by_name["tasks on which nearest is above vanilla"] == {
        "name": "tasks on which nearest is above vanilla", "value": 1, "goal": 1, "direction": ">=", "met": True,
    }  # fmt: skip


def test_shares_of_a_score_of_zero_are_dashes_and_goals_that_are_not_met(report, tmp_path):
    report["tasks"] = {"CoLA": task([0.0, 0.1], [0.0, 0.0], 0.0)}
    write_ablation(report, tmp_path, None)
    assert [row[-1] for row in score_rows(report)] == ["100 %", "-", "-"]
    assert "| nearest - vanilla | +5.00 | +5.00 | - | 1 of 1 | 0.500 |" in markdown(report)
    kept = json.loads((tmp_path / "ablation.json").read_text(), parse_constant=pytest.fail)["goals"][0]
    assert (kept["name"], kept["value"], kept["met"]) == ("nearest / teacher, average", None, False)


def test_the_swap_table_evaluates_one_student_in_every_way(report):
    assert [row[0] for row in swap_rows(report)] == ["nearest", "random", "null", "nearest_unguarded"]


def test_the_report_is_written_whole_with_a_dated_copy(report, tmp_path):
    write_ablation(report, tmp_path, str(tmp_path / "results"))
    assert json.loads((tmp_path / "ablation.json").read_text())["goals"]
    assert "10 training and 30 copies of them, 5 development rows" in markdown(report)
    assert "| nearest - vanilla | +15.00 | -5.00 | +5.00 | +7.7 % | 1 of 2 |" in markdown(report)
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".json", ".md", ".png"}
    assert (tmp_path / "ablation.png").stat().st_size > 1000


def test_the_dated_copy_keeps_a_name_with_a_dot_and_links_its_own_picture(report, tmp_path):
    report["config"]["name"] = "rate-0.5"
    write_ablation(report, tmp_path, str(tmp_path / "results"))
    (page,) = (tmp_path / "results").glob("ablation_rate-0.5_????-??-??.md")
    assert f"]({page.stem}.png)" in page.read_text()
    assert (page.parent / f"{page.stem}.png").exists()
    assert (page.parent / f"{page.stem}.json").exists()


def test_mixing_is_paired_with_the_same_students_and_measured_by_the_gap_to_the_teacher(report):
    report["config"]["ablate"]["mixing"] = True
    for task_, mixed in zip(report["tasks"].values(), ([0.80, 0.84], [0.60, 0.62]), strict=True):
        for of_seed, value in zip(task_["arms"]["vanilla"].values(), mixed, strict=True):
            of_seed["scores"] |= result(value, "mixed")["scores"] | result(0.5, "mixed_random")["scores"]
    report["goals"] = goals(report)
    a, b, every = mixing_rows(report)
    assert a[:6] == ("A", "70.0 ± 0.0", "82.0 ± 2.8", "50.0 ± 0.0", "95.0", "48 %")
    assert b[:6] == ("B", "60.0 ± 0.0", "61.0 ± 1.4", "50.0 ± 0.0", "65.0", "20 %")
    assert every[:6] == ("all", "65.0", "71.5", "50.0", "80.0", "43 %")
    assert 0 < float(a[6]) < 1
    assert "## Answers of near texts mixed in" in markdown(report)
    assert "## Answers of near texts mixed in" not in markdown(
        {**report, "config": {**report["config"], "ablate": {**report["config"]["ablate"], "mixing": False}}}
    )
