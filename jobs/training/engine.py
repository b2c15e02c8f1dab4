"""Build the DeepSpeed engine of a training by its config, with the optimizer and its schedule.

The config decides sharding, clipping, bf16 weights, activation checkpointing and compilation. Autocast is set in `loop`.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from jobs.sections import TrainConfig
from jobs.training.checkpoint import make_moments
from refbert.distillation import Distiller
from refbert.errors import UnavailableError
from refbert.optimisation import adamw, warmup_decay
from refbert.packaged import cache_folder
from refbert.student import RefBertModel

COMPILED = "TORCHINDUCTOR_CACHE_DIR"


def build_engine(distiller: Distiller, train: TrainConfig, step: int = 0, skipped: int = 0) -> Any:
    """Wrap the model in DeepSpeed: AdamW, linear warm-up and linear decay, ZeRO stage and precision of the config.

    `step` steps have been made already, `skipped` of which changed no weight.
    """
    if not train.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at DeepSpeed's import
    with hidden("mlflow"):  # half of the import's time, for DeepSpeed's tuner, which nothing here calls
        import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Its start-up would compile a shared-memory all-reduce for CPUs; gloo needs none, and no C++ compiler is asked for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    fit_layers(distiller, train)
    optimizer = adamw(distiller, train.learning_rate, train.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=distiller,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda later: warmup_decay(step + later, train.steps, train.warmup_fraction)
        ),
        config={
            "train_micro_batch_size_per_gpu": train.micro_batch,
            "gradient_accumulation_steps": train.accumulation(torch.distributed.get_world_size()),
            "gradient_clipping": train.clip,
            "zero_optimization": {"stage": train.zero_stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": train.precision == "bf16"},
            "steps_per_print": 10**9,
        },
    )
    make_moments(engine, step - skipped)
    engine.train()
    return engine


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """While the block runs, the module cannot be imported, as if it were not installed; one that is imported already stays."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def keep_compiled_code_private() -> None:
    """Have torch.compile keep its code in this user's cache folder, unless $TORCHINDUCTOR_CACHE_DIR names another.

    Torch 2.13 runs what it finds in its cache, by default in a folder of /tmp that another user may have made before.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # whose module takes a second to import

    default = default_cache_dir()
    if os.environ.get(COMPILED, default) == default:  # torch itself sets it to that
        os.environ[COMPILED] = str(cache_folder() / "torchinductor")


def fit_layers(distiller: Distiller, train: TrainConfig) -> None:
    """Turn on activation checkpointing of the student's layers, and compile each, where the config says so.

    Losses stay the same, and the names of parameters too. Layers are alike, so that one compilation serves all of them.
    """
    encoder = distiller.student if isinstance(distiller.student, RefBertModel) else distiller.student.encoder
    if train.activation_checkpointing:
        encoder.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if train.compile:
        compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
        if not any(map(shutil.which, compilers)):
            raise UnavailableError(
                f"train.compile=true needs a C++ compiler where workers run, and {' or '.join(compilers)} is not there; "
                "install g++ (Debian: apt-get install g++), or set train.compile=false"
            )
        keep_compiled_code_private()
        for layer in encoder.layers:
            layer.compile(dynamic=True)  # lengths of texts and references differ from batch to batch
