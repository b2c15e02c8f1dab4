"""A training's checkpoint: one file that any number of workers and any ZeRO stage can go on from.

It holds float32 weights and AdamW's two moments by parameter name, put together from all shards, and in its header what the
loop must know. Not DeepSpeed's own shards: those fit only the workers and the stage that wrote them. Needs no Ray.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from refbert.errors import InputError

FILE = "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch's AdamW calls its running means of gradients and of their squares."""


def consolidated(engine: Any, moment: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and its whole float32 values, or those of one of its moments, on the CPU.

    Every rank takes part and gets all: under ZeRO one parameter at a time is gathered.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 0:
            whole = parameter if moment is None else engine.optimizer.state[parameter][moment]
        elif moment is None:
            whole = safe_get_full_fp32_param(parameter)
        else:
            whole = safe_get_full_optimizer_state(parameter, moment)
        yield name, whole.detach().float().cpu()


def write_checkpoint(folder: Path, engine: Any, state: dict[str, Any]) -> None:
    """Write the training's file into `folder` from rank 0; every rank takes part. `state` is JSON."""
    tensors = {}
    for part in (None, *MOMENTS):
        for name, whole in consolidated(engine, part):
            if engine.global_rank == 0:
                tensors[_key(part, name)] = whole.contiguous()
    if engine.global_rank == 0:
        save_file(tensors, folder / FILE, metadata={"state": json.dumps(state)})


class Checkpoint:
    """A written checkpoint. Weights go into the bare module, moments into the engine that is then built around it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        if not self.file.exists():
            raise InputError(
                f"{folder} is no checkpoint of this version: it has no {FILE}; give another name=... to train anew, or finish "
                "the run with the version that began it"
            )

    def state(self) -> dict[str, Any]:
        """Return what `write_checkpoint` was given."""
        with safe_open(self.file, "pt") as file:
            return json.loads(file.metadata()["state"])

    def load_weights(self, module: nn.Module) -> None:
        """Set every parameter of a module that no engine shards yet."""
        with safe_open(self.file, "pt") as file:
            module.load_state_dict({name: file.get_tensor(_key(None, name)) for name, _ in module.named_parameters()})

    def load_optimizer(self, engine: Any) -> None:
        """Set AdamW's moments, and its float32 master weights, in an engine that `make_moments` has prepared.

        Sharded weights that the forward uses are right since `load_weights`; bf16 ones are the masters' rounding.
        """
        with safe_open(self.file, "pt") as file:
            for name, parameter in engine.module.named_parameters():
                for part in (None, *MOMENTS):
                    _set_part(engine, parameter, part, file.get_tensor(_key(part, name)).to(engine.device))


def make_moments(engine: Any, step: int) -> None:
    """Make the state that AdamW makes at its first step, zero, in an engine that starts after `step` steps.

    A checkpoint is loaded into it. Without one it makes no difference to the training, but DeepSpeed 0.19, which links
    parameters to this state within the first step, forgets every group of parameters but the first there.
    """
    for shard in _stepped_tensors(engine):
        engine.basic_optimizer.state[shard] = {
            "step": torch.tensor(float(step), device=shard.device),
            **{moment: torch.zeros_like(shard) for moment in MOMENTS},
        }
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_part(engine: Any, parameter: nn.Parameter, moment: str | None, whole: Tensor) -> None:
    """Put this rank's share of a whole parameter, or of its moment, where the optimizer steps on it."""
    from deepspeed import utils

    stage = engine.zero_optimization_stage()
    if stage == 0:
        if moment is not None:
            engine.optimizer.state[parameter][moment].copy_(whole)
    elif stage == 3:
        # safe_set_full_* cannot cut what the ranks do not divide: the last share is padded.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = F.pad(whole.flatten(), (0, size * engine.dp_world_size - whole.numel()))
        share = padded.narrow(0, size * engine.global_rank, size)
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, share)
        else:
            utils.safe_set_local_optimizer_state(parameter, share, moment)
    elif moment is None:
        utils.safe_set_full_fp32_param(parameter, whole)
    else:
        utils.safe_set_full_optimizer_state(parameter, whole, moment)


def _stepped_tensors(engine: Any) -> list[Tensor]:
    """What torch's optimizer steps on: the parameters, or this rank's flat float32 share of each group of them."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return list(engine.module.parameters())
    optimizer = engine.optimizer
    return list(optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups)


def _key(moment: str | None, name: str) -> str:
    return f"{moment or 'weights'}/{name}"
