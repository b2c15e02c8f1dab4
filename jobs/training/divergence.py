"""Steps whose loss or gradient is not finite: left out without changing a weight, explained when there are too many.

`metrics` counts them. Such a step would make weights NaN, and the training would go on with NaN to its last step. Every rank
sees the same: a loss that is not finite on one of them becomes a gradient that is not finite on all.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from jobs.sections import TrainConfig
from jobs.training.process_group import gathered_texts
from refbert.distillation import Targets
from refbert.errors import InputError

log = logging.getLogger(__name__)


def weighed(loss: Tensor, weight: float) -> Tensor:
    """Return the loss times a weight; for a loss that is not finite NaN, whose gradient is NaN in every parameter."""
    return loss * torch.where(loss.detach().isfinite(), weight, float("nan"))


def finite_step(engine: Any) -> bool:
    """Let DeepSpeed update the weights at a step's end, unless a gradient is not finite. Returns whether it was.

    ZeRO looks for itself, and leaves such a step out without a word. The learning rate goes on either way.
    """
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return True
    if engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        is_finite = bool(torch.nn.utils.get_total_norm(gradients).isfinite())
        # AdamW passes over parameters without a gradient; DeepSpeed clips before, and needs them.
        forget = None if is_finite else engine.optimizer.register_step_pre_hook(lambda adamw, *_: adamw.zero_grad())
        engine.step()
        if forget:
            forget.remove()
        return is_finite
    engine.step()
    if engine.optimizer.overflow:
        engine.lr_scheduler.step()
    return not engine.optimizer.overflow


def skip_step(step: int, count: int, train: TrainConfig, faults: Callable[[], Sequence[str]]) -> None:
    """Allow a step to be left out, the `count`-th; every rank takes part. Raises InputError on all where it is one too many.

    `faults` finds those of this rank, as `faults_of` says them.
    """
    if count <= train.max_skipped_steps:
        log.warning(
            "step %d left out, %d of at most %d: loss or gradient not finite", step, count, train.max_skipped_steps
        )
        return
    gathered = map(json.loads, gathered_texts(json.dumps(list(faults()))))
    every = list(dict.fromkeys(fault for some in gathered for fault in some))
    raise InputError(f"step {step}: {explanation(every, train)}")


def faults_of(losses: dict[str, Tensor], batches: Iterable[tuple[Sequence[str], Tensor, Targets]]) -> list[str]:
    """Say what of one rank's step is not finite.

    `losses` are the step's by name; of each micro-batch `batches` has the sources of its rows, the states of its references
    (rows, ref_tokens, reference_dim), and its targets.
    """
    faults = []
    for sources, references, targets in batches:
        for what, tensors in (("targets", _tensors(targets)), ("references", [references])):
            rows = torch.zeros(len(sources), dtype=torch.bool)
            for tensor in tensors:
                rows |= ~tensor.flatten(1).isfinite().all(1).cpu()
            if rows.any():
                faults.append(f"{what} of {sources[int(rows.int().argmax())]}")
    return faults + [f"loss.{name}" for name, value in losses.items() if name != "loss" and not value.isfinite()]


def explanation(faults: Sequence[str], train: TrainConfig) -> str:
    """Say what is not finite, the likely cause, and what to do: bad data if there is any, else steps that are too long."""
    losses = [fault for fault in faults if fault.startswith("loss.")]
    found = f"the loss is not finite ({', '.join(losses)})" if losses else "the gradient is not finite"
    if targets := [fault for fault in faults if fault.startswith("targets")]:
        cause = f"the teacher's states are not, for {targets[0].removeprefix('targets of ')}"
        remedy = "leave that text out, or set teacher.precision=fp32"
        if train.targets == "memory":
            remedy += ", and fill the memory anew"
    elif references := [fault for fault in faults if fault.startswith("references")]:
        cause = f"stored states are not, which {references[0].removeprefix('references of ')} reads"
        remedy = "check the memory with `python -m vector_store verify`"
    else:
        cause = f"steps that are too long for train.learning_rate={train.learning_rate:g}"
        remedy = "lower it"
        if not train.clip:
            cause, remedy = f"{cause} without clipping", f"{remedy}, and set train.clip=1"
        if train.precision == "bf16":
            remedy += ", or set train.precision=autocast"
        remedy += ", under another name=..."
    allowed = train.max_skipped_steps
    skipped = f"after {allowed} that were left out" if allowed else "no step may be left out (train.max_skipped_steps)"
    return f"{found}, and {skipped}; likely cause: {cause}; {remedy}. The checkpoints so far are finite, and kept"


def _tensors(part: Any) -> list[Tensor]:
    """The tensors of targets that have to be finite: a label may be NaN, a masked attention score -inf."""
    if isinstance(part, Tensor):
        return [part] if part.is_floating_point() else []
    if is_dataclass(part):
        left_out = ("labels", "attention_scores")
        return [x for field in fields(part) if field.name not in left_out for x in _tensors(getattr(part, field.name))]
    if isinstance(part, tuple):
        return [tensor for each in part for tensor in _tensors(each)]
    return []
