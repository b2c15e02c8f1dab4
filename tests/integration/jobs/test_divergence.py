"""NaN amid a training, on real DeepSpeed: it ends there with its last finite checkpoint, or goes on without the step."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModel

from jobs import distill
from jobs.config import RunConfig
from jobs.run.failures import known_cause
from jobs.training.checkpoint import damage
from jobs.training.divergence import finite_step, weighed
from jobs.training.engine import build_engine
from refbert.batch import Batch
from refbert.config import LossConfig
from refbert.distillation import Distiller, Targets
from refbert.errors import InputError
from refbert.student import RefBertModel
from refbert.student_config import RefBertConfig

MICRO_BATCHES = 4
"""Of a step of `tiny_run`."""


def distiller() -> Distiller:
    torch.manual_seed(0)
    shape = RefBertConfig(
        vocab_size=99, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, dim=16,
        reference_mode="none",
    )  # fmt: skip
    return Distiller(RefBertModel(shape).train(), LossConfig(relation_heads=4))


def take_step(engine: Any, poison: float = 1.0) -> bool:
    """One step of two micro-batches, of which the first is poisoned."""
    for factor in (poison, 1.0):
        ids = torch.randint(1, 99, (4, 6))
        batch = Batch(ids, torch.ones_like(ids), ids[:, :0], torch.zeros(4, 0, 16), ids[:, :0])
        loss, _ = engine(batch, Targets((torch.randn(4, 6, 16),), torch.ones_like(ids)))
        engine.backward(weighed(loss * factor, 1.0))
        is_finite = finite_step(engine)
    return is_finite


def weights(engine: Any) -> list[torch.Tensor]:
    from jobs.training.checkpoint import training_tensors

    return [tensor.clone() for tensor in training_tensors(engine).values()]


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning")  # DeepSpeed's, in ZeRO 3
@pytest.mark.parametrize(("zero_stage", "clip"), [(0, 1.0), (0, 0.0), (1, 0.0), (3, 1.0)])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_moments(tiny_run, zero_stage, clip, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    train = tiny_run(
        train__zero_stage=zero_stage, train__clip=clip, train__micro_batch=4, train__global_batch=8
    ).train  # fmt: skip
    engine = build_engine(distiller(), train)
    assert take_step(engine)
    before, rate = weights(engine), engine.get_lr()[0]
    for poison in (float("nan"), float("inf"), 1e38):  # the last: a finite loss, an infinite gradient
        assert not take_step(engine, poison)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(engine), before, strict=True))
    assert engine.get_lr()[0] != rate  # of the fifth step
    assert take_step(engine)
    after = weights(engine)
    assert all(tensor.isfinite().all() for tensor in after)
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))


@pytest.fixture
def poisoned(monkeypatch) -> Callable[..., None]:
    """Make the loss of one micro-batch of some steps NaN."""

    def poison(*steps: int) -> None:
        forward, calls = Distiller.forward, []

        def forward_or_nan(made: Distiller, *inputs: Any) -> Any:
            loss, parts = forward(made, *inputs)
            calls.append(loss)
            is_poisoned = len(calls) in [MICRO_BATCHES * step - 1 for step in steps]
            return loss * (float("nan") if is_poisoned else 1.0), parts

        monkeypatch.setattr(Distiller, "forward", forward_or_nan)

    return poison


@pytest.fixture
def vanilla(tiny_run, prepared_home, in_process) -> Callable[..., RunConfig]:
    """Make a run that needs no store."""

    def make(**changes: Any) -> RunConfig:
        return tiny_run(
            references__criterion="none", student__reference_mode="none", train__targets="teacher", **changes
        )

    return make


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_ends_at_its_first_loss_that_is_not_finite_and_keeps_the_checkpoint_before(vanilla, poisoned):
    config = vanilla(name="diverged")
    poisoned(5)
    with pytest.raises(Exception, match="step 5") as raised:
        distill.run(config)
    known = known_cause(raised.value)
    assert isinstance(known, InputError)
    assert "steps that are too long for train.learning_rate=0.001; lower it" in str(known)
    checkpoints = sorted((config.run_directory / "checkpoints").glob("step-*"))
    assert [path.name for path in checkpoints] == ["step-00000003"]
    assert damage(checkpoints[0]) is None
    assert not (config.run_directory / "manifest.json").exists()
    assert not (config.run_directory / "student").exists()
    lines = [json.loads(line) for line in (config.run_directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_goes_on_without_as_many_steps_as_may_be_skipped(vanilla, poisoned, caplog):
    config = vanilla(name="skipping", train__max_skipped_steps=2)
    poisoned(2, 5)
    distill.run(config)
    manifest = json.loads((config.run_directory / "manifest.json").read_text())["training"]
    assert (manifest["steps"], manifest["skipped_steps"]) == (8, 2)
    assert "step 5 left out, 2 of at most 2" in caplog.text
    text = (config.run_directory / "metrics.jsonl").read_text()
    assert "NaN" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 4, 6, 7, 8]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    student = AutoModel.from_pretrained(config.run_directory / "student")
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())
