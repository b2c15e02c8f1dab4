"""NaN and infinity in a loss or a gradient, at random steps: the last finite checkpoint is kept.

Without Ray's processes: what is tried is the training's own judgement. One on Ray: tests/integration/jobs/test_divergence.py.
"""

import types

import pyarrow as pa
import pytest
import ray
import torch
from safetensors.torch import load_file

from jobs.training import loop
from jobs.training.checkpoint import damage
from refbert.distillation import Distiller
from refbert.errors import InputError
from tests.integration.jobs.in_process import compute_in_process

pytestmark = pytest.mark.long

STEPS, SAVE_EVERY, MICRO_BATCHES = 12, 3, 2
TEXTS = [f"text {number} of a corpus that needs no cluster" for number in range(100)]


@pytest.fixture
def process_group(tmp_path) -> None:
    """One of this process alone, unless another test's is there: DeepSpeed keeps its first one for good."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)


def with_nan_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The same finite loss, whose gradient is not."""
    kept = loss.clone()
    kept.register_hook(lambda gradient: gradient * float("nan"))
    return kept


FAULTS = {
    "a loss that is NaN": lambda loss: loss * float("nan"),
    "an infinite loss": lambda loss: loss + float("inf"),
    "a gradient that is NaN": with_nan_gradient,
}


@pytest.mark.usefixtures("process_group", "home")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_with_nan_at_a_random_step_keeps_its_last_finite_checkpoint_and_goes_on_without_the_step(
    tiny_run, monkeypatch, moments, fault
):
    step = moments.randint(SAVE_EVERY + 1, STEPS)
    place = moments.randrange(MICRO_BATCHES)
    print(f"{fault} in micro-batch {place} of step {step}")
    rows = [{"text": text, "text_pair": None, "document": text, "source": "s", "split": "train"} for text in TEXTS]
    corpus = types.SimpleNamespace(content="c", table=lambda split: pa.Table.from_pylist(rows))
    compute_in_process(monkeypatch)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})

    def train(starts_after: int, **options):
        config = tiny_run(
            name="poisoned", references__criterion="none", student__reference_mode="none", train__targets="teacher",
            train__micro_batch=8, train__global_batch=8 * MICRO_BATCHES, train__steps=STEPS, train__save_every=SAVE_EVERY,
            **options,
        )  # fmt: skip
        forward, calls = Distiller.forward, []

        def poisoned(made, *inputs):
            loss, parts = forward(made, *inputs)
            calls.append(1)
            is_hit = len(calls) - 1 == (step - 1 - starts_after) * MICRO_BATCHES + place
            return (FAULTS[fault](loss) if is_hit else loss), parts

        with monkeypatch.context() as patch:
            patch.setattr(Distiller, "forward", poisoned)
            loop.distil(config, corpus, None, None)
        return config

    with pytest.raises(InputError, match=f"step {step}"):
        train(starts_after=0)
    directory = tiny_run(name="poisoned").run_directory
    kept = (step - 1) // SAVE_EVERY * SAVE_EVERY
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{kept:08d}"
    assert damage(newest) is None
    assert not (directory / "student").exists()

    train(starts_after=kept, train__max_skipped_steps=1)
    weights = load_file(directory / "student" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
