"""A run's checkpoints: whole or not there, checked by their bytes, the newest few kept, and a damaged one passed over."""

import errno
import types

import pytest
import torch
from torch import nn

from jobs.run.failures import exit_code, known_cause
from jobs.training.checkpoint import FILE, MANIFEST, Checkpoint, Checkpoints, damage, write_checkpoint
from refbert import atomic
from refbert.errors import InputError, UnavailableError


def engine_with(value: float) -> types.SimpleNamespace:
    """As much of an engine as a checkpoint reads: one parameter, its moments, no sharding."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    moments = {"exp_avg": torch.zeros(1, 1), "exp_avg_sq": torch.zeros(1, 1)}
    optimizer = types.SimpleNamespace(state={module.weight: moments})
    return types.SimpleNamespace(
        module=module, optimizer=optimizer, global_rank=0, zero_optimization_stage=lambda: 0
    )  # fmt: skip


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield made
    made.close()


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(engine_with(step), step, {"step": step})
    checkpoints.wait()


def flip_a_bit(file) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_the_newest_few_are_kept_and_the_newest_is_found(checkpoints):
    assert checkpoints.newest_intact() is None
    save(checkpoints, 3, 6, 9)
    assert checkpoints.steps() == [9, 6]
    assert Checkpoint(checkpoints.newest_intact()).state() == {"step": 9}


def test_a_checkpoint_holds_the_weights_of_the_moment_of_saving(checkpoints, monkeypatch):
    from jobs.training import checkpoint

    engine, write = engine_with(1.0), checkpoint.write_checkpoint

    def change_then_write(*arguments):
        nn.init.constant_(engine.module.weight, 2.0)  # the next step, while the thread has not written yet
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_checkpoint", change_then_write)
    checkpoints.save(engine, 1, {})
    checkpoints.wait()
    restored = nn.Linear(1, 1, bias=False)
    Checkpoint(checkpoints.newest_intact()).load_weights(restored)
    assert restored.weight.item() == 1.0


@pytest.mark.parametrize(
    ("hurt", "message"),
    [
        (lambda folder: flip_a_bit(folder / FILE), "another checksum"),
        (lambda folder: (folder / FILE).write_bytes(b"short"), "has 5 bytes"),
        (lambda folder: (folder / FILE).unlink(), f"has no {FILE}"),
        (lambda folder: (folder / MANIFEST).unlink(), f"has no {MANIFEST}"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "cannot be read"),
    ],
)
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning_and_written_again(checkpoints, caplog, hurt, message):
    save(checkpoints, 3, 6)
    hurt(checkpoints.at(6))
    assert checkpoints.newest_intact() == checkpoints.at(3)
    assert message in caplog.text
    assert "going on from the one before" in caplog.text
    save(checkpoints, 4)
    assert checkpoints.steps() == [4, 3]  # the damaged one is of a course that was given up
    save(checkpoints, 6)
    assert damage(checkpoints.at(6)) is None


def test_weights_that_are_not_finite_are_not_written_and_the_checkpoint_before_is_kept(checkpoints):
    save(checkpoints, 3)
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"the training diverged: 1 tensors hold NaN .* first is weights/weight"):
            checkpoints.save(engine_with(value), 6, {}) or checkpoints.wait()
        checkpoints._writing = None
    assert checkpoints.steps() == [3]


def test_a_checkpoint_of_an_earlier_release_that_is_not_finite_is_passed_over(checkpoints, caplog, monkeypatch):
    save(checkpoints, 3)
    monkeypatch.setattr("jobs.training.checkpoint.fault_in", lambda tensors: None)
    save(checkpoints, 6)
    checkpoints.save(engine_with(float("nan")), 9, {})
    checkpoints.wait()
    monkeypatch.undo()
    assert checkpoints.newest_intact() == checkpoints.at(6)
    assert "step-00000009 is damaged: 1 tensors hold NaN or infinite values" in caplog.text


def test_a_run_with_only_damaged_checkpoints_is_refused(checkpoints):
    save(checkpoints, 3, 6)
    for step in (3, 6):
        flip_a_bit(checkpoints.at(step) / FILE)
    with pytest.raises(InputError, match=r"none of the 2 checkpoints in .* is intact; put a whole one back"):
        checkpoints.newest_intact()


def test_checkpoints_of_an_older_version_are_refused(checkpoints):
    (checkpoints.folder / "checkpoint_2026-11-22_10-00-00").mkdir(parents=True)
    with pytest.raises(InputError, match="is no checkpoint of this version"):
        checkpoints.newest_intact()


def test_a_half_written_checkpoint_is_ignored_and_cleaned_up(checkpoints):
    save(checkpoints, 3)
    half = checkpoints.at(6).with_name("step-00000006.partial")
    half.mkdir()
    (half / FILE).write_bytes(b"half")
    assert checkpoints.newest_intact() == checkpoints.at(3)
    save(checkpoints, 6)
    assert not half.exists()


def test_a_write_error_is_raised_at_the_next_save(checkpoints):
    checkpoints.folder.write_text("a file is in the way")
    checkpoints.save(engine_with(1), 1, {})
    with pytest.raises(OSError, match="checkpoints"):
        checkpoints.save(engine_with(2), 2, {})


def test_a_full_disk_ends_the_training_in_one_line_and_keeps_the_checkpoint_before(checkpoints, monkeypatch):
    save(checkpoints, 3)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "sync", full)
    checkpoints.save(engine_with(6), 6, {"step": 6})
    with pytest.raises(OSError, match="No space") as raised:
        checkpoints.wait()
    known = known_cause(raised.value)
    assert isinstance(known, UnavailableError)
    assert exit_code(known) == 3
    assert "no space is left on the disk of" in str(known)
    assert checkpoints.newest_intact() == checkpoints.at(3)
    assert not list(checkpoints.folder.glob("*.partial"))


def test_a_checkpoint_replaces_the_older_one_only_when_it_is_whole(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "step-1", {"a": torch.zeros(1)}, {"step": 1})

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path / "step-1", {"a": torch.ones(1)}, {"step": 2})
    assert damage(tmp_path / "step-1") is None
    assert Checkpoint(tmp_path / "step-1").state() == {"step": 1}
