"""The model card of a student: what its report, its memory's manifest and its export say, and how to load it.

Computes nothing and holds no figure of its own. The license is the user's to choose.
"""

from pathlib import Path
from typing import Any

from jobs.evaluation.documents import TEMPLATES, render
from jobs.evaluation.report import markdown
from refbert.atomic import write_whole
from refbert.export import MODEL, MODEL_INT8, Export


def model_card(
    report: dict[str, Any], name: str, memory: dict[str, Any] | None, export: Export, license_name: str | None
) -> str:
    """Return the card as Markdown with the Hub's front matter; `memory` is the manifest of what the student reads."""
    public = {key: value for key, value in report.items() if key != "explanation"}  # it quotes the corpus
    return render(
        TEMPLATES / "model_card.md.j2",
        license=license_name,
        teacher=report["teacher"]["name"],
        measured=markdown(public, name, pictures=False),
        memory=memory,
        export=export,
        MODEL=MODEL,
        MODEL_INT8=MODEL_INT8,
    )


def write_card(card: str, student: Path) -> None:
    """Write README.md into the student's folder, whole."""
    write_whole(student / "README.md", card)
