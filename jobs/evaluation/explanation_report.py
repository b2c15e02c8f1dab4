"""Show an explanation: tables on the terminal, JSON and, where references are read by attention, a picture in a directory.

Measures nothing and loads no model.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jobs.evaluation.documents import Rows, Table, show
from refbert.atomic import write_whole
from refbert.memory.explanation import READ_OUT

QUOTED = 300
"""Characters of a text that a report quotes."""

NAMED = 128
"""Tokens of an axis that are named; more would be unreadable."""

STRONGEST = 12
"""Reference tokens that the terminal shows."""

COLOURS = ("#2f6f9f", "#d9a441", "#8a5a9e", "#5d9f6b")
"""Of references, by rank."""


def write_explanation(explanation: dict[str, Any], directory: Path, name: str) -> dict[str, Any]:
    """Write NAME.json and, where anything was read, NAME.png; return what the report says of it."""
    picture = directory / f"{name}.png"
    picture.unlink(missing_ok=True)
    if explanation["heat"]:
        plot_explanation(explanation, picture)
    read = [{**one, "step": one["rung"]} for one in explanation["references"]]  # the old name, kept for one release
    write_whole(directory / f"{name}.json", json.dumps({**explanation, "references": read}))
    best = explanation["references"][0]
    strongest = explanation["strongest_layer"]
    divided = {layer["layer"]: layer for layer in explanation["layers"]}.get(
        strongest, {"references": 0.0, "null": 0.0}
    )
    # A layer's null slot is what it reads in the place of a reference; a read-out's is the student's own state.
    mass = divided["references"] + (0.0 if strongest == READ_OUT else divided["null"])
    return {
        "text": quoted(explanation["text"]),
        "reference": quoted(best["text"]) if best["text"] else best["id"],
        "rung": best["rung"],
        "score": best["score"],
        "layer": strongest,
        "mass": mass,
        "cosine_distance": explanation["without_references"]["cosine_distance"],
        "picture": picture.name,
    }


def quoted(text: Any) -> str:
    """One line of a text or a pair."""
    line = text if isinstance(text, str) else " | ".join(text)
    return line if len(line) <= QUOTED else f"{line[: QUOTED - 3]}..."


def print_explanation(explanation: dict[str, Any]) -> None:
    """Print the tables of an explanation."""
    notes = [] if explanation["layers"] else ["no layer of this student reads references"]
    if correction := explanation.get("correction"):
        notes = [
            f"references correct the answer (version {correction['version']}): the nearest is at "
            f"{correction['nearness']:.3f}, kriging's variance is {correction['variance']:.3f} (1: they say nothing)"
        ]
    show(f"text: {quoted(explanation['text'])}", *tables(explanation), *notes)


def tables(explanation: dict[str, Any]) -> list[Table]:
    """Return every table of an explanation."""
    read = [one for one in explanation["references"] if one["id"]]
    strongest = explanation["strongest_layer"]
    weighed = "correction" in explanation
    references: Rows = [
        (
            str(rank),
            quoted(one["text"] or one["id"]),
            f"{one['score']:.2f}",
            *([f"{one['weight']:.3f}"] if weighed else []),
            one["rung"],
            *_moved(one["without"]),
        )
        for rank, one in enumerate(read)
    ]
    nothing = "all of them" if weighed else "all of them: the null reference"
    null = ("", nothing, "", *([""] if weighed else []), "null", *_moved(explanation["without_references"]))
    layers = [
        (str(layer["layer"]), *(f"{layer[name]:.4f}" for name in ("references", "null", "own")))
        for layer in explanation["layers"]
    ]
    tokens = [
        (str(rank), token, mass)
        for rank, one in enumerate(read)
        for token, mass in zip(one["tokens"], one["token_mass"].get(strongest, ()), strict=False)
    ]
    moved = ("rank", "text", "score", *(["weight"] if weighed else []), "rung", "cosine distance", "relative")
    found = [
        Table("References read, and how far the sentence vector moves without", moved, [*references, null]),
        Table("Attention by layer", ("layer", "references", "null slot", "own tokens"), layers),
    ]
    if tokens:
        most = sorted(tokens, key=lambda token: -token[2])[:STRONGEST]
        rows: Rows = [(rank, token, f"{mass:.4f}") for rank, token, mass in most]
        found.append(Table(f"Reference tokens most looked at, {_named(strongest)}", ("rank", "token", "mass"), rows))
    if labels := explanation["labels"]:
        rows = [(name, f"{labels['with'][name]:.4f}", f"{labels['without'][name]:.4f}") for name in labels["with"]]
        found.append(Table("Answer", ("label", "with references", "without"), rows))
    return found


def plot_explanation(explanation: dict[str, Any], picture: Path) -> None:
    """Draw own tokens x reference tokens of the strongest layer, and above it a bar for each reference token."""
    heat = explanation["heat"]
    rows, columns, mass = heat["rows"], heat["columns"], heat["mass"]
    size = (min(24.0, 3 + 0.24 * len(columns)), min(24.0, 2.6 + 0.2 * len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    bars, grid = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, max(1.0, 0.2 * len(rows))))
    means = [sum(column) / len(rows) for column in zip(*mass, strict=True)]
    bars.bar(range(len(columns)), means, color=[COLOURS[rank % len(COLOURS)] for rank in heat["ranks"]])
    bars.set_ylabel("mean", fontsize=8)
    bars.set_title(f"attention mass, {_named(explanation['strongest_layer'])}", fontsize=9)
    bars.spines[["top", "right"]].set_visible(False)
    figure.colorbar(grid.imshow(mass, aspect="auto", cmap="Blues", vmin=0), ax=grid, pad=0.01)
    for axis, names, turned in ((grid.xaxis, columns, 90), (grid.yaxis, rows, 0)):
        if len(names) <= NAMED:
            axis.set_ticks(range(len(names)), labels=names, fontsize=7, rotation=turned, parse_math=False)
    grid.set_xlabel("reference tokens" if explanation["references"][0]["id"] else "the null reference", fontsize=8)
    grid.set_ylabel("own tokens", fontsize=8)
    figure.savefig(picture, dpi=110)


def _moved(change: dict[str, Any] | None) -> tuple[str, str]:
    return ("", "") if change is None else (f"{change['cosine_distance']:.3g}", f"{change['relative']:.3g}")


def _named(layer: int | str) -> str:
    return f"layer {layer}" if isinstance(layer, int) else layer
