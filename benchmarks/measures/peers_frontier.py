"""Quality over speed: which encoders are on the frontier, the goals, and the picture. Measures nothing."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from measures.goals import Goal
from measures.peers_quality import STS_B, Found
from measures.peers_speed import Cost, speed_up
from measures.reading_speed import ALONE, GLOBAL, READS, REPLICA

OURS = (ALONE, GLOBAL, READS, REPLICA)
"""Forms of the student."""

CHEAP = 2.0
"""Encoders at least this much faster than the teacher cost under half of it."""

FIGURES = (
    ("snippets", "cosine"),
    ("banking77", "cosine"),
    ("clinc150", "cosine"),
    (STS_B, "spearman"),
    ("banking77", "intent"),
    ("clinc150", "intent"),
)
"""Domains and qualities that are drawn."""

INTENTS = ("banking77", "clinc150")
COLOURS = {True: "#2f6f9f", False: "#777777"}


class Placed(NamedTuple):
    """An encoder in the picture: how many times faster than the teacher, and how good."""

    name: str
    speed: float
    quality: float


def placed(found: Found, costs: Mapping[str, Cost], domain: str, figure: str) -> list[Placed]:
    """Return the encoders that have this quality on this domain, and a time."""
    points = []
    for (of_domain, name), some in found.items():
        values = [getattr(one, figure) for one in some]
        if of_domain == domain and name in costs and None not in values:
            points.append(Placed(name, speed_up(costs, name), statistics.fmean(values)))
    return points


def frontier(points: Sequence[Placed]) -> list[Placed]:
    """Return the encoders that no other one beats in speed or quality without being worse in the other, the slowest first."""

    def beats(one: Placed, other: Placed) -> bool:
        return one.speed >= other.speed and one.quality >= other.quality and one[1:] != other[1:]

    return sorted(
        (point for point in points if not any(beats(other, point) for other in points)), key=lambda point: point.speed
    )


def goals(found: Found, costs: Mapping[str, Cost]) -> Iterator[Goal]:
    """Yield the goals of what was measured, where our student was."""
    for domain, figure in FIGURES:
        points = placed(found, costs, domain, figure)
        if not any(point.name in OURS for point in points):
            continue
        on_it = [point for point in frontier(points) if point.name in OURS]
        yield Goal(f"peers_points_on_the_frontier_{domain}_{figure}", len(on_it), 2, ">=")
        if domain in INTENTS:
            cheap = [point for point in points if point.speed >= CHEAP]
            ours = [point.quality for point in cheap if point.name in OURS]
            others = [point.quality for point in cheap if point.name not in OURS]
            if ours and others:
                name = f"peers_above_any_peer_under_half_the_cost_{domain}_{figure}"
                yield Goal(name, max(ours) - max(others), 0.0, ">=")


def draw(found: Found, costs: Mapping[str, Cost], picture: Path) -> None:
    """Draw each quality over speed, with the frontier."""
    drawn = [(*one, points) for one in FIGURES if (points := placed(found, costs, *one))]
    names = list(dict.fromkeys(point.name for _, _, points in drawn for point in points))
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(5.2 * columns, 4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (domain, quality, points) in zip(axes, drawn, strict=False):
        edge = frontier(points)
        axis.step(
            [point.speed for point in edge], [point.quality for point in edge], where="pre", color="#bbbbbb", zorder=1
        )
        for point in points:
            is_ours = point.name in OURS
            axis.scatter(point.speed, point.quality, color=COLOURS[is_ours], marker="o" if is_ours else "x", zorder=2)
            axis.annotate(
                str(1 + names.index(point.name)), (point.speed, point.quality), xytext=(3, 3), textcoords="offset points",
                fontsize=7, color=COLOURS[is_ours],
            )  # fmt: skip
        axis.set(xscale="log", xlabel="times faster than the teacher", title=f"{domain}: {quality}")
        axis.margins(x=0.15, y=0.1)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    named = [
        Line2D(
            [], [], linestyle="", marker="o" if name in OURS else "x", color=COLOURS[name in OURS],
            label=f"{number} {'student, ' * (name in OURS)}{name.removeprefix('student ')}",
        )
        for number, name in enumerate(names, 1)
    ]  # fmt: skip
    figure.legend(handles=named, loc="outside lower center", ncols=min(4, 1 + columns), fontsize=8, frameon=False)
    figure.savefig(picture, dpi=120)
    print(f"drawn: {picture}")
