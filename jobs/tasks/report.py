"""Turn an ablation's scores into tables, paired tests, goals and a plot.

Scores in tables and plot are percent: means over a task's metrics (GLUE's own for its tasks) and its development splits. Spread
is the standard deviation over seeds. Trains nothing and loads no model.
"""

import json
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from jobs.evaluation.documents import Rows, render
from refbert.atomic import write_whole
from refbert.scores import glue_average, main_score

TEACHER = "teacher"
MIXED, MIXED_RANDOM = "mixed", "mixed_random"
"""How vanilla students are asked, too: with their teacher's answers of near texts mixed in, and of random ones, the control."""

ALL, GUARDED = "all", "no_near_duplicate"
COLOURS = {
    TEACHER: "#444444", "nearest": "#2f6f9f", "random": "#d9a441", "null": "#b0b0b0", "vanilla": "#8a5a9e",
    "vanilla_without_distillation": "#c9b3d4",
}  # fmt: skip

TEMPLATE = Path(__file__).parent / "templates/ablation.md.j2"


def write_ablation(report: dict[str, Any], directory: Path, results: str | None) -> None:
    """Write ablation.md, ablation.png and ablation.json into `directory`; dated copies into `results` where given."""
    report["goals"] = goals(report)
    stems = [directory / "ablation"]
    if results:
        stems.append(Path(results) / f"ablation_{report['config']['name']}_{date.today()}")
    for stem in stems:
        stem.parent.mkdir(parents=True, exist_ok=True)
        picture = stem.with_name(f"{stem.name}.png")
        plot(report, picture)
        write_whole(stem.with_name(f"{stem.name}.md"), markdown(report, picture.name))
        write_whole(stem.with_name(f"{stem.name}.json"), json.dumps(report, indent=2))


def seed_scores(task: dict[str, Any], arm: str, way: str | None = None, rows: str = ALL) -> dict[int, float]:
    """Return the task's one figure of an arm by seed, asked in its own way or another."""
    return {
        seed: 100 * main_score({split: of_split[rows] for split, of_split in result["scores"][way or arm].items()})
        for seed, result in task["arms"].get(arm, {}).items()
    }


def teacher_score(task: dict[str, Any]) -> float:
    """Return the one figure of the task's teacher."""
    return 100 * main_score(task["teacher"]["scores"])


def mean_score(task: dict[str, Any], arm: str) -> float:
    """Return the mean over seeds."""
    return float(np.mean(list(seed_scores(task, arm).values())))


def score_rows(report: dict[str, Any]) -> Rows:
    """Return a row for each arm: mean and spread on each task, the average, and its share of the teacher's."""
    tasks = report["tasks"]
    average = glue_average({name: teacher_score(task) for name, task in tasks.items()})
    rows: Rows = [(TEACHER, *(f"{teacher_score(task):.1f}" for task in tasks.values()), f"{average:.2f}", "100 %")]
    for arm in arms_of(report):
        own = glue_average({name: mean_score(task, arm) for name, task in tasks.items()})
        cells = [_with_spread(list(seed_scores(task, arm).values())) for task in tasks.values()]
        rows.append((arm, *cells, f"{own:.2f}", _cell(100 * _ratio(own, average), ".1f", " %")))
    return rows


def swap_rows(report: dict[str, Any]) -> Rows:
    """Return how the students trained with the nearest reference do with another, or with near-duplicates let in."""
    tasks = report["tasks"].values()
    ways = {way: None for task in tasks for result in task["arms"]["nearest"].values() for way in result["scores"]}
    rows: Rows = []
    for way in ways:
        of_task = [list(seed_scores(task, "nearest", way).values()) for task in tasks]
        average = float(np.mean([np.mean(values) for values in of_task]))
        rows.append((way, *map(_with_spread, of_task), f"{average:.2f}"))
    return rows


def comparison_rows(report: dict[str, Any]) -> Rows:
    """Compare `nearest` with every other arm: differences of the same task and seed, and a paired t-test over all of them."""
    rows: Rows = []
    for arm in arms_of(report):
        if arm == "nearest":
            continue
        found = compare_with_nearest(report, arm)
        differences = [f"{value:+.2f}" for value in found["by_task"].values()]
        rows.append(
            (
                f"nearest - {arm}",
                *differences,
                f"{found['mean']:+.2f}",
                _cell(found["relative"], "+.1f", " %"),
                f"{found['better_on']} of {len(differences)}",
                _cell(found["p"], ".3f"),
            )
        )
    return rows


def compare_with_nearest(report: dict[str, Any], arm: str) -> dict[str, Any]:
    """Return differences `nearest` minus `arm`: by task, their mean, in percent of the arm's average, tasks won, and p."""
    by_task, pairs = {}, []
    for name, task in report["tasks"].items():
        ours, theirs = seed_scores(task, "nearest"), seed_scores(task, arm)
        differences = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
        by_task[name] = float(np.mean(differences))
        pairs += differences
    mean = float(np.mean(list(by_task.values())))
    average = glue_average({name: mean_score(task, arm) for name, task in report["tasks"].items()})
    return {
        "by_task": by_task,
        "mean": mean,
        "relative": 100 * _ratio(mean, average),
        "better_on": sum(value > 0 for value in by_task.values()),
        "p": float(stats.ttest_1samp(pairs, 0).pvalue) if len(pairs) > 1 and np.ptp(pairs) else math.nan,
    }


def mixing_rows(report: dict[str, Any]) -> Rows:
    """Return how the vanilla students do with their teacher's answers of near texts, and of random ones, mixed in.

    With how much of the gap to the teacher that closes, and a paired t-test over seeds; last, the average, over all pairs.
    """
    rows: Rows = []
    every: list[dict[str, float]] = []
    for name, task in report["tasks"].items():
        of_way = {way: seed_scores(task, "vanilla", way) for way in ("vanilla", MIXED, MIXED_RANDOM)}
        pairs = [
            {way: scores[seed] for way, scores in of_way.items()} | {TEACHER: teacher_score(task)}
            for seed in sorted(of_way["vanilla"])
        ]
        every += pairs
        rows.append((name, *(_with_spread(list(scores.values())) for scores in of_way.values()), *_gap(pairs)))
    means = (f"{np.mean([pair[way] for pair in every]):.1f}" for way in ("vanilla", MIXED, MIXED_RANDOM))
    return [*rows, ("all", *means, *_gap(every))]


def _gap(pairs: Sequence[dict[str, float]]) -> tuple[str, str, str]:
    """The teacher's score, the share of the gap that mixing closes, and the p of its differences."""
    gained = [pair[MIXED] - pair["vanilla"] for pair in pairs]
    teacher, vanilla = (float(np.mean([pair[way] for pair in pairs])) for way in (TEACHER, "vanilla"))
    p = float(stats.ttest_1samp(gained, 0).pvalue) if len(gained) > 1 and np.ptp(gained) else math.nan
    closed = _ratio(float(np.mean(gained)), teacher - vanilla)
    return f"{teacher:.1f}", _cell(100 * closed, ".0f", " %"), _cell(p, ".3f")


def leak_rows(report: dict[str, Any]) -> Rows:
    """Return near-duplicates found, and the nearest arm's score with and without the rows that have one in training."""
    return [
        (
            name,
            str(task["near_duplicates"]["train"]),
            str(sum(task["near_duplicates"]["dev"].values())),
            *(
                _with_spread(list(seed_scores(task, "nearest", way, rows).values()))
                for way, rows in (("nearest", ALL), ("nearest", GUARDED), ("nearest_unguarded", ALL))
            ),
        )
        for name, task in report["tasks"].items()
    ]


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ablation's goals with the values reached, for the arms that it has.

    A share of a score of 0 (a teacher or an arm that learned nothing) has no value: the goal is not met.
    """
    arms, tasks = arms_of(report), report["tasks"]
    if "nearest" not in arms:
        return []
    average = glue_average({name: teacher_score(task) for name, task in tasks.items()})
    own = glue_average({name: mean_score(task, "nearest") for name, task in tasks.items()})
    kept = report["config"]["ablate"]["kept_goal"]
    wanted = [("nearest / teacher, average", _ratio(own, average), kept)]
    if "vanilla" in arms:
        against = compare_with_nearest(report, "vanilla")
        wanted += [
            ("nearest - vanilla, average, points", against["mean"], 0.01),
            ("tasks on which nearest is above vanilla", against["better_on"], max(1, len(tasks) - 1)),
        ]
    if "vanilla_without_distillation" in arms:
        relative = compare_with_nearest(report, "vanilla_without_distillation")["relative"]
        wanted.append(("nearest over vanilla without task distillation, percent", relative, 8.1))
    return [
        {
            "name": name,
            "value": None if math.isnan(value) else round(value, 4),
            "goal": goal,
            "direction": ">=",
            "met": value >= goal,
        }
        for name, value, goal in wanted
    ]


def arms_of(report: dict[str, Any]) -> list[str]:
    """Return the arms that every task has."""
    return [
        arm
        for arm in report["config"]["ablate"]["arms"]
        if all(arm in task["arms"] for task in report["tasks"].values())
    ]


def markdown(report: dict[str, Any], picture: str = "ablation.png") -> str:
    """Return the report as Markdown; `picture` is the plot's file name."""
    tables = {"scores": score_rows(report)}
    if report["config"]["ablate"].get("mixing") and "vanilla" in arms_of(report):
        tables["mixing"] = mixing_rows(report)
    if "nearest" in arms_of(report):
        tables |= {"differences": comparison_rows(report), "swaps": swap_rows(report), "leaks": leak_rows(report)}
    return render(TEMPLATE, tables=tables, picture=picture, **report)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the scores by task and arm, with their spread."""
    names, arms = list(report["tasks"]), arms_of(report)
    figure = Figure(figsize=(1.2 + 1.8 * len(names), 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / (len(arms) + 1)
    for place, arm in enumerate([TEACHER, *arms]):
        values = [
            [teacher_score(task)] if arm == TEACHER else list(seed_scores(task, arm).values())
            for task in report["tasks"].values()
        ]
        axis.bar(
            np.arange(len(names)) + (place - len(arms) / 2) * width,
            [np.mean(of_task) for of_task in values],
            width,
            yerr=[np.std(of_task, ddof=1) if len(of_task) > 1 else 0 for of_task in values],
            label=arm.replace("_", " "),
            color=COLOURS[arm],
            error_kw={"linewidth": 0.8},
        )
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("development score, percent")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    figure.savefig(path, dpi=150)


def _with_spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _cell(value: float, form: str, unit: str = "") -> str:
    """A formatted number; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:{form}}{unit}"
