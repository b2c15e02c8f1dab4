"""The metrics of a training: losses, rates, waiting and look-ups, in metrics.jsonl, TensorBoard, Ray and a bar.

Ray Train gets them as reports; some go by Ray to Prometheus (`jobs.run.telemetry`). starts.jsonl has a line for each start of
the workers. MLflow and Weights & Biases are `tracking`'s.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray.train
import torch
from torch import Tensor

from jobs.run.telemetry import TRAINING, RunGauges, StageMetrics
from jobs.sections import TrainConfig
from jobs.training.stream import DistillStream
from refbert.memory.progress import progress as progress_bar

METRICS = "metrics.jsonl"
STARTS = "starts.jsonl"
"""One line per start of the workers: at which step, on how many workers, and how many steps are repeated for it."""

REPORT_S = 0.25
"""Ray takes one report of a worker at each look (RAY_TRAIN_HEALTH_CHECK_INTERVAL_S, 0.2): more of them would queue up, and the
end of a training would wait until all are taken."""

RUNGS = ("live", "cached", "null")
"""Of the degrade ladder, by which every look-up is answered."""


@dataclass
class TrainingProgress:
    """What a checkpoint carries beside weights: steps, how many of them were left out, time, and all look-ups by rung."""

    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0
    lookups: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RUNGS, 0))


class MetricsLogger:
    """Averages the metrics of steps, writes them to metrics.jsonl and TensorBoard, and reports them to Ray Train.

    Losses are means over the micro-batches of all workers; waiting and look-ups are the writer's own, rank 0's, since its
    start.
    """

    def __init__(
        self, train: TrainConfig, directory: Path, progress: TrainingProgress, rank: int, device: torch.device
    ) -> None:
        self.train, self.directory, self.device = train, directory, device
        self.is_writer = rank == 0
        self.step = progress.step
        self.before = progress
        self.started_s = time.monotonic()
        self.skipped = progress.skipped
        self.step_losses: dict[str, Tensor] = {}  # sums over the micro-batches of the step under way
        self.step_micro_batches = 0
        self.sums: dict[str, Tensor] = {}
        self.micro_batches = 0
        self.stream: DistillStream | None = None
        self.window_s, self.window_wait_s, self.window_step = self.started_s, 0.0, progress.step
        self.window_counts: dict[str, int] = {}
        self.reported_s = -REPORT_S
        self.stage = StageMetrics("train")

    def __enter__(self) -> Self:
        if self.is_writer:
            from torch.utils.tensorboard import SummaryWriter

            metrics = self.directory / METRICS
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            steps = {line: json.loads(line)["step"] for line in lines if line.endswith("}")}
            kept = [line for line, step in steps.items() if step <= self.step]
            metrics.write_text("".join(f"{line}\n" for line in kept))  # what lies beyond the checkpoint is done again
            self._note_start(max(steps.values(), default=0))
            self.file = metrics.open("a", buffering=1)
            self.board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=self.step + 1)
            self.latest: dict[str, float] = {"steps": self.train.steps}
            self.gauges = RunGauges(TRAINING, self.directory.name, self.latest)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_writer:
            self.gauges.close()
            self.file.close()
            self.board.close()

    def add(self, loss: Tensor, parts: dict[str, Tensor], stream: DistillStream) -> None:
        """Count one micro-batch."""
        self.stream = stream
        for name, value in {"loss": loss.detach(), **parts}.items():
            self.step_losses[name] = self.step_losses.get(name, torch.zeros((), device=self.device)) + value.float()
        self.step_micro_batches += 1

    def finish_step(self, engine: Any, is_finite: bool) -> None:
        """Count one optimizer step; every `log_every` steps, average over workers and write. Losses must be finite to count."""
        self.step += 1
        if is_finite:
            self.sums = {name: value + self.sums.get(name, 0.0) for name, value in self.step_losses.items()}
            self.micro_batches += self.step_micro_batches
        else:
            self.skipped += 1
        self.step_losses, self.step_micro_batches = {}, 0
        train = self.train
        if (self.step % train.log_every and self.step != train.steps) or not self.sums:
            return
        assert self.stream is not None
        now_s = time.monotonic()
        is_due = self.is_writer and (now_s - self.reported_s >= REPORT_S or self.step == train.steps)
        counted = torch.tensor([float(self.micro_batches), float(is_due)], device=self.device)
        sums = torch.cat([torch.stack([*self.sums.values()]), counted])
        torch.distributed.all_reduce(sums)
        means, is_reported = sums[:-2] / sums[-2], bool(sums[-1])
        window_s = max(now_s - self.window_s, 1e-9)
        line: dict[str, float] = {"step": self.step}
        line |= {f"train/{name}": float(mean) for name, mean in zip(self.sums, means, strict=True)}
        line["train/skipped_steps"] = self.skipped
        line["train/learning_rate"] = engine.get_lr()[0]
        line["train/examples_per_s"] = (self.step - self.window_step) * train.global_batch / window_s
        wait_s = self.stream.wait_s - self.window_wait_s
        line["data/wait_fraction"] = wait_s / window_s
        if self.stream.source is not None:
            line |= {f"store/{rung}": count for rung, count in self.stream.source.counts.items()}
            line["store/query_ms"] = self.stream.source.lookup_ms
        given = {name: count - self.window_counts.get(name, 0) for name, count in self.stream.counts.items()}
        self.stage.count(**given, wait_s=wait_s, busy_s=window_s - wait_s)
        self.sums, self.micro_batches = {}, 0
        self.window_counts = dict(self.stream.counts)
        self.window_s, self.window_wait_s, self.window_step = now_s, self.stream.wait_s, self.step
        if self.is_writer:
            self.file.write(json.dumps(line) + "\n")
            for name, value in line.items():
                if name != "step":
                    self.board.add_scalar(name, value, self.step)
            self.latest.update(line)
        if is_reported:  # by every rank, or by none: Ray waits for all of them
            self.reported_s = now_s
            # In the background: in the foreground a report waits until Ray has taken the one before. Any: mypy sees Train V1's.
            report: Any = ray.train.report
            report(line, checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC)

    def snapshot(self, stream: DistillStream) -> TrainingProgress:
        """Return the progress for a checkpoint, earlier submissions included; every rank takes part."""
        counts = stream.source.counts if stream.source else {}
        ours = torch.tensor([float(counts.get(rung, 0)) for rung in RUNGS], device=self.device)
        torch.distributed.all_reduce(ours)
        before = self.before
        return TrainingProgress(
            self.step,
            self.skipped,
            before.seconds + time.monotonic() - self.started_s,
            before.wait_s + stream.wait_s,
            {rung: before.lookups[rung] + int(now) for rung, now in zip(RUNGS, ours, strict=True)},
        )

    def summary(self, progress: TrainingProgress) -> dict[str, float]:
        """Return the report's figures of the whole training so far, in all submissions and after all failures."""
        train, lines = self.train, (self.directory / STARTS).read_text().splitlines()
        return {
            "steps": progress.step,
            "skipped_steps": progress.skipped,
            "seconds": round(progress.seconds, 1),
            "examples_per_s": round(progress.step * train.global_batch / max(progress.seconds, 1e-9), 2),
            "data_wait_fraction": round(progress.wait_s / max(progress.seconds, 1e-9), 4),
            "world_size": torch.distributed.get_world_size(),
            "zero_stage": train.zero_stage,
            "starts": len(lines),
            "steps_repeated": sum(json.loads(line)["steps_repeated"] for line in lines),
            **{f"lookups_{rung}": number for rung, number in progress.lookups.items()},
        }

    def _note_start(self, reached: int) -> None:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "step": self.step,
            "steps_repeated": max(0, reached - self.step),
            "workers": torch.distributed.get_world_size(),
        }
        with (self.directory / STARTS).open("a") as file:
            file.write(json.dumps(line) + "\n")


@contextmanager
def training_bar(metrics: Path, steps: int) -> Iterator[None]:
    """Show a bar that follows metrics.jsonl: the driver can read that file, wherever the workers run."""
    done = threading.Event()

    def follow() -> None:
        shown = 0
        with progress_bar("distil", steps, "step") as update:
            while True:
                last = done.wait(1.0)
                lines = metrics.read_text().splitlines() if metrics.exists() else []
                line = next((json.loads(line) for line in reversed(lines) if line.endswith("}")), None)
                if line and line["step"] > shown:
                    update(line["step"] - shown, loss=line["train/loss"], wait=line["data/wait_fraction"])
                    shown = line["step"]
                if last:
                    return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
