"""Turn measurements into report.json, report.md, plots and tables on the terminal. Measures nothing and loads no model.

The demo's growth curve is drawn here, too.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jobs.evaluation.documents import TEMPLATES, Rows, Table, render, show
from refbert.atomic import write_whole

FIDELITY = {
    "state_mse": "token state MSE, lower is closer",
    "sentence_cosine": "sentence cosine",
    "mutual_information_nats": "mutual information, nats",
    "retrieval_top1": "retrieval top-1",
}
REFERENCES = ("nearest", "null", "random")
"""What a student is asked with in turn; one that was taught to read nothing, with the null reference only."""

CORRECTED = {
    "alone": "the student alone",
    "global": "corrected, no look-up",
    "references": "with references",
    "random": "control: other texts' residuals",
    "cache": "control: the nearest reference's vector",
}
"""How an adapted student answers, and controls of it."""

GROWTH = ("alone", "global", "references")
"""Of those, what the demo's growth curve shows."""

COLOURS = {"nearest": "#2f6f9f", "null": "#b0b0b0", "random": "#d9a441", "teacher": "#444444"}
COLOURS |= {"alone": COLOURS["null"], "global": "#5d9f6b", "references": COLOURS["nearest"], "cache": "#8a5a9e"}
SPEED = {
    "teacher": "teacher",
    "student": "student",
    "student_with_lookup": "student with look-up",
    "student_corrected": "student, corrected",
    "student_with_references": "student, corrected, with references",
}

NOTED_GAIN = 0.001
"""Difference in mean cosine below which reading is not said to help."""

MUCH_SMALLER = 2.0
"""How many times smaller than its teacher a student should be."""

BUSY = 0.25
"""Share of the cores that other processes may use while encoders are timed."""


def write_report(report: dict[str, Any], directory: Path) -> None:
    """Write the report's files into a run directory; report.json last, complete or not at all."""
    report = {**report, "reading": reading(report), "warnings": warnings(report)}
    plot_loss(directory / "metrics.jsonl", directory / "loss.png")
    plot_fidelity(report["fidelity"], directory / "fidelity.png")
    plot_size_and_latency(report, directory / "size_latency.png")
    (directory / "nearness.png").unlink(missing_ok=True)
    if "adapted" in report:
        plot_nearness(report["adapted"], directory / "nearness.png")
    text = markdown(report, f"Run `{directory.name}`", folder=directory / "student")
    (directory / "report.md").write_text(text)
    write_whole(directory / "report.json", json.dumps(report, indent=2))


def size_rows(report: dict[str, Any]) -> Rows:
    """Return name, parameters, and latency of each contender."""
    parameters = {name: report["teacher" if name == "teacher" else "student"]["params"] for name in SPEED}
    if "adapted" in report:
        parameters |= dict.fromkeys(
            ("student_corrected", "student_with_references"), report["adapted"]["size"]["params"]
        )
    slow = report["speed"]["teacher"]["examples_per_s"]
    return [
        (
            label,
            f"{parameters[name] / 1e6:.2f} M",
            f"{(speed := report['speed'][name])['latency_ms_p50']:.1f} ms",
            f"{speed['latency_ms_p99']:.1f} ms",
            f"{speed['examples_per_s']:.0f}/s",
            f"{speed['examples_per_s'] / slow:.2f}x",
        )
        for name, label in SPEED.items()
        if name in report["speed"]
    ]


def fidelity_rows(report: dict[str, Any]) -> Rows:
    """Return the student's fidelity by the reference it read."""
    return [
        (name, *(f"{report['fidelity'][name][metric]:.4f}" for metric in FIDELITY))
        for name in REFERENCES
        if name in report["fidelity"]
    ]


def labelled_rows(report: dict[str, Any]) -> Rows:
    """Return the accuracy of a linear classifier on each encoder's frozen vectors; nothing where there are no labels."""
    names = {"teacher": "teacher", "nearest": "student with references", "null": "student without (null)"}
    names |= {"global": "student, corrected", "references": "student, corrected, with references"}
    names |= {"random": "student with random references", "majority": "always the most frequent label"}
    return [
        (label, f"{report['labelled'][name]['accuracy']:.4f}")
        for name, label in names.items()
        if name in report.get("labelled", ())
    ]


def corrected_rows(adapted: dict[str, Any]) -> Rows:
    """Return how close an adapted student's answers are, and those of the controls."""
    metrics = [metric for metric in FIDELITY if metric != "state_mse"]
    return [
        (label, *(f"{adapted['answers'][name][metric]:.4f}" for metric in metrics)) for name, label in CORRECTED.items()
    ]


def nearness_rows(adapted: dict[str, Any]) -> Rows:
    """Return the answers' cosines by how near the nearest reference is."""
    return [
        (
            _band(band),
            str(band["texts"]),
            *(f"{band[name]:.4f}" for name in ("alone", "global", "references")),
            f"{band['variance']:.3f}",
        )
        for band in adapted["nearness"]
    ]


def _band(band: dict[str, Any]) -> str:
    return f"below {band['to']:g}" if band["from"] < 0 else f"{band['from']:g} to {band['to']:g}"


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """Return every table of the report."""
    encoders = ("encoder", "parameters", f"p50 of {report['speed']['student']['batch']}", "p99", "texts", "vs teacher")
    references = ("reference", *FIDELITY)
    found = {
        "size": Table("Size and speed", encoders, size_rows(report)),
        "fidelity": Table("Fidelity on held-out text, by reference read", references, fidelity_rows(report)),
    }
    if adapted := report.get("adapted"):
        answers = ("answer", *(metric for metric in FIDELITY if metric != "state_mse"))
        found["corrected"] = Table("Corrected answers on held-out text", answers, corrected_rows(adapted))
        columns = ("nearest reference", "texts", "alone", "corrected", "with references", "variance")
        found["nearness"] = Table("Sentence cosine by nearness", columns, nearness_rows(adapted))
    if "labelled" in report:
        title = "Linear classifier on frozen vectors"
        found["labelled"] = Table(title, ("features", "accuracy"), labelled_rows(report))
    return found


def print_tables(report: dict[str, Any]) -> None:
    """Print the report's tables on the terminal, whether reading helps, and what to beware of."""
    show(*tables(report).values(), *filter(None, [verdict(report)]), *(f"warning: {line}" for line in warnings(report)))


def reading(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mean cosine to the teacher `with` references, `without`, and with random ones as a `control`, and whether that
    `helps`; None where nothing is read."""
    if adapted := report.get("adapted"):
        names, ways = ("references", "global", "random"), adapted["answers"] if adapted["references_per_text"] else {}
    else:
        names, ways = ("nearest", "null", "random"), report["fidelity"]
    if names[0] not in ways:
        return None
    best, without, control = (float(ways[name]["sentence_cosine"]) for name in names)
    return {
        "helps": best - max(without, control) >= NOTED_GAIN,
        "with": best,
        "without": without,
        "control": control,
    }


def verdict(report: dict[str, Any]) -> str | None:
    """Say whether reading helps, and by how much; None where nothing is read."""
    if (found := reading(report)) is None:
        return None
    return (
        f"Reading {'helps' if found['helps'] else 'does not help'}: the mean cosine to the teacher is {found['with']:.4f} with "
        f"references, {found['without']:.4f} without, {found['control']:.4f} with random ones."
    )


def warnings(report: dict[str, Any]) -> list[str]:
    """Say what in a report is not to be relied on, or not worth having."""
    found = []
    timing = report["run"].get("timing")  # an earlier release did not look
    if timing and timing["others_cores"] > BUSY * timing["cores"]:
        found.append(
            f"the machine was busy while encoders were timed: other processes used {timing['others_cores']:.1f} of "
            f"{timing['cores']} cores; evaluate again when it is quiet"
        )
    smaller = report["student"]["bytes_compression"]
    if adapted := report.get("adapted"):
        needed = sum(adapted["size"][f"{part}_bytes"] for part in ("weights", "words", "correction"))
        smaller = 4 * report["teacher"]["params"] / needed
    if smaller < MUCH_SMALLER:
        found.append(
            f"the student is only {smaller:.2f}x smaller than its teacher, wanted {MUCH_SMALLER:g}x; lower "
            "student.hidden_size, student.num_hidden_layers, student.embedding_size or adapt.landmarks"
        )
    return found


def markdown(report: dict[str, Any], title: str, pictures: bool = True, folder: Path | None = None) -> str:
    """Return the report as Markdown, with or without links to its pictures. It says how to load the student in `folder`."""
    said = {"verdict": verdict(report), "warnings": warnings(report), "folder": folder, "tables": tables(report)}
    return render(TEMPLATES / "report.md.j2", **{**report, **said}, title=title, pictures=pictures)


def plot_loss(metrics: Path, picture: Path) -> None:
    """Draw every part of the loss over steps."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    names = [name for name in lines[0] if name.startswith("train/") and not name.endswith(("_rate", "_per_s"))]
    for name in names:
        label = name.removeprefix("train/")
        values = [line[name] for line in lines]
        axes.plot([line["step"] for line in lines], values, label=label, linewidth=2 if label == "loss" else 1)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(frameon=False, ncols=2)
    _save(figure, picture)


def plot_fidelity(fidelity: dict[str, Any], picture: Path) -> None:
    """Draw each fidelity figure as bars by the reference that was read."""
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    axes = figure.subplots(1, len(FIDELITY))
    names = [name for name in REFERENCES if name in fidelity]
    for axis, (metric, title) in zip(axes, FIDELITY.items(), strict=True):
        values = [fidelity[name][metric] for name in names]
        bars = axis.bar(names, values, color=[COLOURS[name] for name in names])
        axis.bar_label(bars, fmt="%.3g")
        axis.set_title(title, fontsize=9)
        axis.margins(y=0.15)
    _save(figure, picture)


def plot_nearness(adapted: dict[str, Any], picture: Path) -> None:
    """Draw the answers' cosines, all together and by how near the nearest reference is."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    together, apart = figure.subplots(1, 2)
    values = [adapted["answers"][name]["sentence_cosine"] for name in CORRECTED]
    bars = together.bar(list(CORRECTED), values, color=[COLOURS[name] for name in CORRECTED])
    together.bar_label(bars, fmt="%.3f")
    together.set_title("sentence cosine", fontsize=9)
    together.margins(y=0.15)
    bands = adapted["nearness"]
    for name in ("alone", "global", "references"):
        apart.plot(
            [_band(band) for band in bands], [band[name] for band in bands], "o-", color=COLOURS[name], label=name
        )
    apart.set_title("by nearness of the nearest reference", fontsize=9)
    apart.legend(frameon=False)
    _save(figure, picture)


def plot_size_and_latency(report: dict[str, Any], picture: Path) -> None:
    """Draw parameters, and the median latency of a batch."""
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    size, latency = figure.subplots(1, 2)
    sizes = [report["teacher"]["params"] / 1e6, report["student"]["params"] / 1e6]
    size.bar_label(size.barh(["teacher", "student"], sizes, color=[COLOURS["teacher"], COLOURS["nearest"]]), fmt="%.1f")
    size.set_title("million parameters", fontsize=9)
    colours = {
        "teacher": COLOURS["teacher"], "student": COLOURS["null"], "student_with_lookup": COLOURS["nearest"],
        "student_corrected": COLOURS["global"], "student_with_references": COLOURS["references"],
    }  # fmt: skip
    names = [name for name in SPEED if name in report["speed"]]
    values = [report["speed"][name]["latency_ms_p50"] for name in names]
    bars = latency.barh([SPEED[name] for name in names], values, color=[colours[name] for name in names])
    latency.bar_label(bars, fmt="%.0f")
    latency.set_title(f"ms per batch of {report['speed']['student']['batch']}, median", fontsize=9)
    for axis in (size, latency):
        axis.invert_yaxis()
        axis.margins(x=0.15)
    _save(figure, picture)


def growth_rows(growth: dict[str, Any]) -> Rows:
    """Return a row per size of the memory, and one of the student that was trained on the domain instead."""
    cosines = {f"{step['references']} texts stored": step["heldout"] for step in growth["steps"]}
    if trained := growth.get("trained"):
        cosines[_control(trained)] = trained
    return [(memory, *(f"{of_memory[name]:.3f}" for name in GROWTH)) for memory, of_memory in cosines.items()]


def _control(trained: dict[str, Any]) -> str:
    return f"control: trained on them, {trained['steps']} steps"


def growth_table(growth: dict[str, Any]) -> Table:
    """Return what a memory of a domain gives a student, as it grows: cosines to the teacher on its held-out texts."""
    title = f"A domain that the student has never seen: cosine to the teacher on {growth['texts']} held-out texts"
    return Table(title, ("memory", *(CORRECTED[name] for name in GROWTH)), growth_rows(growth))


def plot_growth(growth: dict[str, Any], picture: Path) -> None:
    """Draw the cosines over the number of stored texts."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = [step["references"] for step in growth["steps"]]
    for name in GROWTH:
        values = [step["heldout"][name] for step in growth["steps"]]
        axes.plot(sizes, values, "o-", color=COLOURS[name], label=CORRECTED[name])
    if trained := growth.get("trained"):
        axes.axhline(trained["alone"], color=COLOURS["random"], linestyle="--", label=_control(trained))
    axes.set(xlabel="texts of the domain stored", ylabel="cosine to the teacher", xscale="log")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    _save(figure, picture)


def _save(figure: Figure, picture: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120)
