"""A training's checkpoint: a folder from which any number of workers with any ZeRO stage can resume.

training.safetensors holds float32 weights and AdamW's two moments by parameter name, put together from all shards, and in its
header the loop's own state. DeepSpeed's own shards would fit only the workers and the stage that wrote them. The checksum is in
manifest.json, written last. A thread writes while the training continues. Needs no Ray.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from refbert.atomic import checksum, whole_folder
from refbert.errors import InputError
from refbert.finite import fault_in

log = logging.getLogger(__name__)

FILE = "training.safetensors"
MANIFEST = "manifest.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch's AdamW calls its running means of gradients and of their squares."""


def consolidated(engine: Any, moment: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and a copy of its whole float32 values, or of one of its moments, on the CPU.

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
        yield name, whole.detach().to("cpu", torch.float32, copy=True)


def training_tensors(engine: Any) -> dict[str, Tensor]:
    """Copy what a checkpoint holds; every rank takes part, rank 0 gets it."""
    tensors = {}
    for part in (None, *MOMENTS):
        for name, whole in consolidated(engine, part):
            if engine.global_rank == 0:
                tensors[_key(part, name)] = whole.contiguous()
    return tensors


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint's folder, completely or not at all, its checksum last. `state` is JSON.

    Raises InputError for tensors that are not finite, before anything is touched: nothing good can be resumed from them.
    """
    if fault := fault_in(tensors.items()):
        raise InputError(
            f"the training diverged: {fault}; {folder} is not written and the checkpoint before it is kept: train again under "
            "another name=... with a lower train.learning_rate"
        )
    with whole_folder(folder, durable=True) as scratch:  # replaces one that was found damaged
        save_file(tensors, scratch / FILE, metadata={"state": json.dumps(state)})
        manifest = {"bytes": (scratch / FILE).stat().st_size, "sha256": checksum(scratch / FILE)}
        (scratch / MANIFEST).write_text(json.dumps(manifest))


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint's files; None where they are as they were written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found, wanted = (folder / FILE).stat().st_size, manifest["bytes"]
        if found != wanted:
            return f"{FILE} has {found} bytes, {wanted} were written"
        if checksum(folder / FILE) != manifest["sha256"]:
            return f"{FILE} has another checksum than when it was written"
        with safe_open(folder / FILE, "pt") as file:  # an earlier release wrote those too
            return fault_in((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({' '.join(str(error).split())})"
    return None


class Checkpoints:
    """A run's checkpoints: written beside the training, checked before one is used, the newest few kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def steps(self) -> list[int]:
        """Which steps have a folder, the newest first, whatever is in it."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d+)", name))), reverse=True)

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def newest_intact(self) -> Path | None:
        """Find the newest checkpoint whose checksum holds, with a warning for each that is passed over; None without any.

        Raises InputError where there are some and none is intact: whether to start over is the user's decision.
        """
        older_format = sorted(self.folder.glob("checkpoint_*"))
        if older_format:
            raise InputError(
                f"{older_format[-1]} is no checkpoint of this version; give another name=... to train anew, or finish the run "
                "with the version that began it"
            )
        steps = self.steps()
        for step in steps:
            wrong = damage(self.at(step))
            if wrong is None:
                return self.at(step)
            log.warning("checkpoint %s is damaged: %s; going on from the one before", self.at(step), wrong)
        if steps:
            raise InputError(
                f"none of the {len(steps)} checkpoints in {self.folder} is intact; put a whole one back, or delete the folder "
                "to train from the first step"
            )
        return None

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        """Copy the state, and write it while the training continues; every rank takes part.

        Waits for the checkpoint before, and raises its error if it had one.
        """
        tensors = training_tensors(engine)
        if engine.global_rank == 0:
            self.wait()
            self._writing = self._writer.submit(self._write, step, tensors, state)

    def wait(self) -> None:
        """Wait until the last save is on disk; raises its error if it had one."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        """End the writing thread, after what it is writing."""
        self._writer.shutdown()

    def _write(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        write_checkpoint(self.at(step), tensors, state)
        steps = self.steps()
        past = [other for other in steps if other <= step]
        # Later ones were damaged: else the training would have resumed from them.
        for other in {*steps} - {*past[: self.keep]}:
            shutil.rmtree(self.at(other), ignore_errors=True)


class Checkpoint:
    """A written checkpoint. Weights go into the bare module, moments into the engine that is then built around it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    def state(self) -> dict[str, Any]:
        """Return what `write_checkpoint` was given."""
        with safe_open(self.file, "pt") as file:
            return json.loads(file.metadata()["state"])

    def load_weights(self, module: nn.Module) -> None:
        """Set every parameter of a module that no engine shards yet."""
        with safe_open(self.file, "pt") as file:
            kept = {name: file.get_tensor(_key(None, name)) for name, _ in module.named_parameters()}
            module.load_state_dict({**module.state_dict(), **kept})  # buffers are the teacher's: they are there already

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
