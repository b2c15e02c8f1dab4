"""One text explained: what it read, where attention went or what references weighed, and how its answer changes without them.

What `jobs/explain.py` and `refbert explain` print, and `/v1/explain` answers for the service's page to draw; the evaluation's
report has it of a student whose layers read references. Writes nothing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from refbert.answers import Mixing, near_weights
from refbert.correction import Correction
from refbert.explanation import AttentionMass, OutputChange, answer, attention_mass, leaving_out, output_change
from refbert.memory.reader import Reader, references_read
from refbert.passages import Text
from refbert.teacher import Tokens
from vector_store.schema import Neighbours

READ_OUT = "read-out"
"""What stands for the student's read-out where layers are named."""


@torch.inference_mode()
def explained(reader: Reader, text: Text) -> dict[str, Any]:
    """Read one normalised text with all of its references, without each, and without any; returns what JSON can hold.

    `layers` say how the attention of each reading layer, and of the read-out, was divided; they are empty where nothing reads,
    or where references correct the answer, or are mixed into it: then each has a `weight`. `correction` says how near the
    nearest is.
    """
    if reader.correction:
        return _explained_correction(reader, reader.correction, text)
    if reader.mixing:
        return _explained_mixture(reader, reader.mixing, text)
    tokens = reader.tokenize([text])
    found = reader.look_up([text], tokens)
    inputs = reader.inputs(tokens, found)
    width = inputs.reference_mask.shape[1]
    ranks = torch.full((width,), -1) if found is None else torch.from_numpy(found.ranks[0, :width])
    count = len(found.ids[0]) if found else 0
    masks = (leaving_out(ranks, count) & (ranks >= 0)).to(inputs.reference_mask.device)
    repeated = {name: value.expand(len(masks), *value.shape[1:]) for name, value in inputs.student_inputs().items()}
    output = reader.model(**{**repeated, "reference_mask": masks}, output_attentions=True)
    layers = [layer for layer in range(len(output.attention_scores)) if reader.model.config.reads_reference(layer)]
    masses: dict[int | str, AttentionMass] = {
        layer: attention_mass(output.attention_scores[layer][0].cpu(), width) for layer in layers
    }
    if output.readout_scores is not None:
        masses[READ_OUT] = attention_mass(output.readout_scores[0].cpu(), width)
    strongest = min(masses, key=lambda layer: float(masses[layer].own.mean()), default=None)
    names, own = (_token_names(reader, ids[0]) for ids in (inputs.reference_ids, tokens.input_ids))
    references = []
    for rank, read in enumerate(references_read(found, 0)):
        here = ranks == rank
        references.append(
            {
                **read.model_dump(),
                "tokens": [name for name, is_here in zip(names, here.tolist(), strict=True) if is_here],
                "mass": {layer: float(mass.per_reference_token[here].sum()) for layer, mass in masses.items()},
                "token_mass": {layer: mass.per_reference_token[here].tolist() for layer, mass in masses.items()},
                "without": _change(reader, output, 1 + rank) if count else None,
            }
        )
    return {
        "text": text,
        "tokens": own,
        "references": references,
        "layers": [_divided(layer, mass) for layer, mass in masses.items()],
        "strongest_layer": strongest,
        "heat": None if strongest is None else _heat(masses[strongest], own, names, ranks),
        "without_references": _change(reader, output, len(masks) - 1),
        "labels": _labels(reader, output),
    }


def _explained_correction(reader: Reader, correction: Correction, text: Text) -> dict[str, Any]:
    tokens = reader.tokenize([text])
    found = reader.look_up([text], tokens)
    corrected = reader.answer(tokens, found)[1]
    assert corrected is not None
    vector = corrected.vector[0]

    def change(other: Neighbours | None) -> dict[str, Any]:
        moved = output_change(vector, reader.forward(tokens, other).sentence_embedding[0])
        return {"cosine_distance": moved.cosine_distance, "relative": moved.relative, "labels": None}

    return {
        **_explained_weights(reader, text, tokens, found, corrected.weights[0].tolist(), change),
        "labels": None,
        "correction": {
            "version": correction.version,
            "nearness": float(corrected.nearness[0]),
            "variance": float(corrected.variance[0]),
        },
    }


def _explained_mixture(reader: Reader, mixing: Mixing, text: Text) -> dict[str, Any]:
    tokens = reader.tokenize([text])
    found = reader.look_up([text], tokens)
    mixture = reader.forward(tokens, found)

    def beside(other: Neighbours | None) -> Any:
        """Both outputs in one, as `_change` and `_labels` compare them."""
        output = reader.forward(tokens, other)
        names = ("sentence_embedding", "logits")
        return output.__class__(**{name: torch.cat([mixture[name], output[name]]) for name in names})

    weights: list[float] = []
    if found is not None and found.residuals is not None:
        there = torch.from_numpy(found.residuals)[:, :, 0].isfinite()
        weights = (mixing.share * near_weights(torch.from_numpy(found.scores), there, mixing))[0].tolist()
    return {
        **_explained_weights(reader, text, tokens, found, weights, lambda other: _change(reader, beside(other), 1)),
        "labels": _labels(reader, beside(None)),
    }


def _explained_weights(
    reader: Reader,
    text: Text,
    tokens: Tokens,
    found: Neighbours | None,
    weights: Sequence[float],
    change: Callable[[Neighbours | None], dict[str, Any]],
) -> dict[str, Any]:
    """Say what was read by weights, without attention. `change` says how the answer to other references differs."""
    references = []
    for rank, read in enumerate(references_read(found, 0)):
        is_there = read.id is not None
        references.append(
            {
                **read.model_dump(),
                "tokens": [],
                "mass": {},
                "token_mass": {},
                "weight": weights[rank] if is_there and rank < len(weights) else None,
                "without": change(_without(found, rank)) if is_there else None,
            }
        )
    return {
        "text": text,
        "tokens": _token_names(reader, tokens.input_ids[0]),
        "references": references,
        "layers": [],
        "strongest_layer": None,
        "heat": None,
        "without_references": change(None),
    }


def _without(found: Neighbours | None, rank: int) -> Neighbours | None:
    """What was found for one text, without its reference of this rank; None where there is nothing to leave out."""
    if found is None or found.residuals is None:
        return None
    residuals = found.residuals.copy()
    residuals[0, rank] = np.nan
    return dataclasses.replace(found, residuals=residuals, own=None)


def _token_names(reader: Reader, ids: torch.Tensor) -> list[str]:
    return list(reader.tokenizer.convert_ids_to_tokens(ids.tolist()))


def _divided(layer: int | str, mass: AttentionMass) -> dict[str, Any]:
    references = float(mass.per_reference_token.sum())
    return {
        "layer": layer,
        "references": references,
        "null": float(mass.null.mean()),
        "own": float(mass.own.mean()),
    }


def _heat(mass: AttentionMass, own: list[str], names: list[str], ranks: torch.Tensor) -> dict[str, Any]:
    """The mass of each own token on each reference token, or on the null slot where that is what was read."""
    seen = ranks >= 0
    if not seen.any():
        return {"rows": own, "columns": ["null"], "ranks": [0], "mass": mass.null[:, None].tolist()}
    columns = [name for name, is_seen in zip(names, seen.tolist(), strict=True) if is_seen]
    return {"rows": own, "columns": columns, "ranks": ranks[seen].tolist(), "mass": mass.references[:, seen].tolist()}


def _change(reader: Reader, output: Any, row: int) -> dict[str, Any]:
    """How the output of one row differs from that of the first, which read everything."""
    vectors, logits = output.sentence_embedding, output.get("logits")
    both = () if logits is None else (logits[0], logits[row])
    change: OutputChange = output_change(vectors[0], vectors[row], *both)
    moved = None
    if change.probabilities is not None:
        moved = dict(zip(_label_names(reader), change.probabilities.tolist(), strict=True))
    return {"cosine_distance": change.cosine_distance, "relative": change.relative, "labels": moved}


def _labels(reader: Reader, output: Any) -> dict[str, dict[str, float]] | None:
    """A classifier's labels with and without all references: probabilities, or a regression's number."""
    if (logits := output.get("logits")) is None:
        return None
    names = _label_names(reader)
    return {
        name: dict(zip(names, answer(logits[row]).tolist(), strict=True))
        for name, row in (("with", 0), ("without", -1))
    }


def _label_names(reader: Reader) -> list[str]:
    config = reader.model.config
    return [config.id2label[label] for label in range(config.num_labels)]
