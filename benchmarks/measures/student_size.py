"""Parameters: BERT-base over the student, counted as the paper's figures are and as a student is deployed."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from measures.goals import Goal, Part, Rows
from refbert import RefBertConfig, RefBertModel

SHAPES: dict[str, dict[str, Any]] = {
    "TinyBERT-4": {"reference_mode": "none"},
    "student, first layer (the paper's form)": {"reference_layers": "first"},
    "student, all layers": {},
    "student, first layer, factorised": {"reference_layers": "first", "embedding_size": 128},
    "student, all layers, factorised": {"embedding_size": 128},
}

NOTE = (
    "Published: with the pooler that BERT-base's 109.48 M and TinyBERT's 14.35 M count and our students have not, without "
    "the projection into the teacher's space, which TinyBERT drops after training. Deployed: what a student's file holds. "
    "Goals are on the published count, the paper's. Factorised: a table of 128 and a projection."
)


def measure(quick: bool, folder: Path) -> Part:
    """Count every shape."""
    with torch.device("meta"):
        bert = count(BertModel(BertConfig()))
        rows: Rows = [{"model": "BERT-base", "published": bert, "deployed": bert, "bert_over_published": 1.0}]
        for name, options in SHAPES.items():
            model = RefBertModel(RefBertConfig(**options))
            hidden = model.config.hidden_size
            published = count(model) - count(model.projection) + hidden * hidden + hidden
            row = {"model": name, "published": published, "deployed": count(model)}
            rows.append({**row, "bert_over_published": bert / published, "bert_over_deployed": bert / count(model)})
    ratios = {row["model"]: row["bert_over_published"] for row in rows}
    goals = [
        Goal("bert_base_params_over_student_paper_form", ratios["student, first layer (the paper's form)"], 7.38, ">="),
        Goal("bert_base_params_over_student_factorised", ratios["student, first layer, factorised"], 10.0, ">="),
    ]
    return Part(rows, goals, NOTE, {"shapes": SHAPES})


def count(model: torch.nn.Module) -> int:
    """All parameters."""
    return sum(p.numel() for p in model.parameters())
