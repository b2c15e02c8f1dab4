"""What the benchmarks share: their command line, goals, contenders that take turns, and the files they leave.

A goal's value is computed from the run that reports it, at the size its name says; a missed one stays in the list.
Measures nothing by itself.
"""

import argparse
import datetime
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from jobs.evaluation.documents import render
from jobs.evaluation.provenance import hardware, provenance

TEMPLATE = Path(__file__).parent / "templates/results.md.j2"

Key = TypeVar("Key", bound=Hashable)

Rows = list[dict[str, Any]]
"""One dictionary per line of a table; lines of one table share their keys, in order."""


@dataclass(frozen=True)
class Goal:
    """One promise and what this run measured of it."""

    name: str
    value: float
    goal: float
    direction: Literal[">=", "<="]

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the goal."""
        return self.value >= self.goal if self.direction == ">=" else self.value <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """The goal as it stands in a results file."""
        names = ("name", "value", "goal", "direction", "met")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Part:
    """One part of a benchmark: its table, the goals that were measured at their size, how to read it, and its options."""

    rows: Rows
    goals: list[Goal]
    note: str
    config: dict[str, Any]


def arguments(
    description: str, parts: Sequence[str] = (), more: Mapping[str, str] | None = None, numbers: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse `--quick`, `--out` and, where there are parts, `--only`, which is all of them by default.

    `more` maps further options to their help; of these, `numbers` are whole numbers.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same code on smaller sizes: a few minutes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder of the results")
    if parts:
        parser.add_argument(
            "--only", nargs="+", choices=parts, default=list(parts), metavar="PART", help=", ".join(parts)
        )
    for option, help_text in (more or {}).items():
        parser.add_argument(option, help=help_text, type=int if option in numbers else str)
    return parser.parse_args()


def in_turns(contenders: Mapping[Key, Callable[[int], Any]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each call; each round calls every contender once with the round's number, in an order that turns about.

    On a machine that others use too, speed drifts by the minute: only neighbours in time are comparable.
    """
    taken: dict[Key, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        names = list(contenders)
        for name in names if turn % 2 == 0 else reversed(names):
            started_s = time.perf_counter()
            contenders[name](turn)
            taken[name].append(time.perf_counter() - started_s)
    return taken


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def measure_parts(title: str, given: argparse.Namespace, parts: Mapping[str, Callable[[bool, Path], Part]]) -> None:
    """Measure the parts that are asked for, each in a folder of its own that is not there yet, and write the results.

    A part takes `quick` and its folder. What was measured before a failure is written too.
    """
    started_s = time.monotonic()
    measured: dict[str, Part] = {}
    try:
        for name in given.only:
            with tempfile.TemporaryDirectory() as folder:
                part = parts[name](given.quick, Path(folder) / name)
            # What a part's config says of its folder means nothing elsewhere.
            config = json.loads(json.dumps(part.config).replace(folder, "FOLDER"))
            measured[name] = replace(part, config=config)
            print(f"{name}: done after {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    finally:
        if measured:
            write_results(title, given, started_s, measured, list(parts))


def write_results(
    title: str, given: argparse.Namespace, started_s: float, parts: Mapping[str, Part], all_parts: Sequence[str]
) -> Path:
    """Print tables and goals, and write them as json and Markdown, named by script, hardware and UTC day.

    A quick run, or one without `all_parts`, says so in its files' names and never replaces a full one's. Returns their path
    without an ending.
    """
    run = {"hardware": hardware(), **provenance(started_s)}
    goals = [goal for part in parts.values() for goal in part.goals]
    form = [_machine(), *(["quick"] if given.quick else []), *(parts if set(parts) < set(all_parts) else [])]
    stem = f"{title.partition(':')[0]}_{'-'.join(form)}_{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    result = {
        **run,
        "config": {"quick": given.quick, **{name: part.config for name, part in parts.items()}},
        "rows": {name: part.rows for name, part in parts.items()},
        "goals": [goal.as_dict() for goal in goals],
    }
    met = [{**goal.as_dict(), "met": "yes" if goal.met else "**no**"} for goal in goals]
    text = render(TEMPLATE, title=title, parts=parts, goals=met, cells=_cells, **run)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{stem}.md").write_text(text)
    (given.out / f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {given.out / stem}.json and .md")
    return given.out / stem


def _cells(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Return a table's columns and its cells as they are shown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [column.replace("_", " ") for column in columns], [
        [_shown(row.get(name)) for name in columns] for row in rows
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _machine() -> str:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    named = [re.sub(r"[^a-z0-9]+", "", gpu.lower()) for gpu in gpus[:1]]
    return "-".join([f"{os.cpu_count()}cpu", *(f"{len(gpus)}x{name}" for name in named)])
