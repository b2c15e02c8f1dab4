"""Fine-tuning: the order of batches, exact resumption after a kill, and refusal of a loss that is not finite."""

import numpy as np
import pytest
import torch
from torch import nn

from refbert.config import FineTuneConfig
from refbert.errors import InputError
from refbert.fine_tuning import train_epochs
from refbert.sampler import BucketSampler

LENGTHS = np.random.default_rng(0).integers(3, 200, 70)


def test_every_epoch_has_every_row_once_in_a_new_order():
    order = BucketSampler(LENGTHS, batch=4, seed=1)
    epochs = [[order.rows(epoch * order.per_epoch + n) for n in range(order.per_epoch)] for epoch in range(2)]
    for epoch in epochs:
        assert sorted(np.concatenate(epoch).tolist()) == list(range(70))
        assert [len(rows) for rows in epoch] == [4] * 17 + [2]
    assert np.concatenate(epochs[0]).tolist() != np.concatenate(epochs[1]).tolist()
    again = BucketSampler(LENGTHS, batch=4, seed=1)
    assert np.array_equal(again.rows(20), order.rows(20))


def test_rows_of_a_batch_have_similar_lengths():
    def spread(batch: np.ndarray) -> int:
        return int(np.ptp(LENGTHS[batch]))

    order = BucketSampler(LENGTHS, batch=4, seed=1)
    ours = np.mean([spread(order.rows(n)) for n in range(17)])
    assert ours < np.mean([spread(np.arange(n, n + 4)) for n in range(0, 68, 4)]) / 3


def trained(tmp_path, stop_after: int | None = None, seed: int = 0) -> tuple[nn.Module, list[float]]:
    """Fit a line with dropout for three epochs of four steps; `stop_after` steps the training is killed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    data = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(1))
    config = FineTuneConfig(epochs=3, learning_rate=0.01)

    def loss_of(step: int) -> torch.Tensor:
        return (model(data[step]).squeeze(-1) - data[step].sum(-1)).square().mean()

    losses = []
    for step, loss in train_epochs(model, loss_of, 4, config, seed, tmp_path / "checkpoint.pt", torch.device("cpu")):
        losses.append(loss)
        if step == stop_after:
            break
    return model, losses


@pytest.mark.parametrize("stop_after", [5, 8, 9])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path, stop_after):
    (tmp_path / "whole").mkdir()
    whole, losses = trained(tmp_path / "whole")
    trained(tmp_path, stop_after)
    resumed, tail = trained(tmp_path)
    assert tail == losses[-len(tail) :]
    assert len(tail) in (4, 8)  # from the last whole epoch
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (float("nan"), "the loss became nan at step 6 of 12; lower learning_rate=5e-05"),
        (float("inf"), "the loss became -?inf at step 6 of 12"),
        (1e38, "the gradient is not finite at step 6 of 12"),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_ends_the_training_and_keeps_its_checkpoint(tmp_path, factor, message):
    model = nn.Linear(2, 1)

    def loss_of(step: int) -> torch.Tensor:
        out = model(torch.full((1, 2), 100.0)).sum()
        return (out - out.detach() if factor == 1e38 else out) * (factor if step == 5 else 1.0)

    checkpoint = tmp_path / "checkpoint.pt"
    steps = train_epochs(model, loss_of, 4, FineTuneConfig(epochs=3), 0, checkpoint, torch.device("cpu"))
    with pytest.raises(InputError, match=message):
        list(steps)
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
