"""What a training measures of itself: losses, rates and waiting, written to metrics.jsonl and TensorBoard, shown as a bar."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from jobs.config import TrainConfig
from jobs.gauges import TRAINING, RunGauges
from jobs.progress import progress
from jobs.stream import DistillStream

METRICS = "metrics.jsonl"


@dataclass
class Progress:
    """What a checkpoint carries beside weights: the step, the data position and the time both took."""

    step: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0


class Meter:
    """Counts steps and writes them down: metrics.jsonl and TensorBoard.

    Losses are means over all workers; waiting and look-ups are the writer's own, rank 0's, since its start.
    """

    def __init__(self, train: TrainConfig, directory: Path, made: Progress, rank: int, device: torch.device) -> None:
        self.train, self.directory, self.device = train, directory, device
        self.is_writer = rank == 0
        self.step = made.step
        self.before = made
        self.started_s = time.monotonic()
        self.sums: dict[str, Tensor] = {}
        self.micro_batches = 0
        self.stream: DistillStream | None = None
        self.window_s, self.window_wait_s, self.window_step = self.started_s, 0.0, made.step

    def __enter__(self) -> Self:
        if self.is_writer:
            from torch.utils.tensorboard import SummaryWriter

            metrics = self.directory / METRICS
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            metrics.write_text("".join(f"{line}\n" for line in kept))  # what lies beyond the checkpoint is done again
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
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.float()
        self.micro_batches += 1

    def finish_step(self, engine: Any) -> None:
        """Count one optimizer step; every `log_every` steps, average over workers and write."""
        self.step += 1
        train = self.train
        if self.step % train.log_every and self.step != train.steps:
            return
        assert self.stream is not None
        means = torch.stack(list(self.sums.values())) / self.micro_batches
        torch.distributed.all_reduce(means)
        means /= torch.distributed.get_world_size()
        now_s = time.monotonic()
        window_s = max(now_s - self.window_s, 1e-9)
        line: dict[str, float] = {"step": self.step}
        line |= {f"train/{name}": float(mean) for name, mean in zip(self.sums, means, strict=True)}
        line["train/learning_rate"] = engine.get_lr()[0]
        line["train/examples_per_s"] = (self.step - self.window_step) * train.global_batch / window_s
        line["data/wait_fraction"] = (self.stream.wait_s - self.window_wait_s) / window_s
        if self.stream.source is not None:
            line |= {f"store/{step}": count for step, count in self.stream.source.counts.items()}
            line["store/query_ms"] = self.stream.source.lookup_ms
        self.sums, self.micro_batches = {}, 0
        self.window_s, self.window_wait_s, self.window_step = now_s, self.stream.wait_s, self.step
        if self.is_writer:
            self.file.write(json.dumps(line) + "\n")
            for name, value in line.items():
                if name != "step":
                    self.board.add_scalar(name, value, self.step)
            self.latest.update(line)

    def snapshot(self, stream: DistillStream) -> Progress:
        """Return what a checkpoint must know, the time of earlier submissions included."""
        seconds = self.before.seconds + time.monotonic() - self.started_s
        return Progress(self.step, seconds, self.before.wait_s + stream.wait_s)

    def summary(self, stream: DistillStream) -> dict[str, float]:
        """Return the report's figures of the whole training so far, in all submissions together."""
        made, train = self.snapshot(stream), self.train
        return {
            "steps": made.step,
            "seconds": round(made.seconds, 1),
            "examples_per_s": round(made.step * train.global_batch / max(made.seconds, 1e-9), 2),
            "data_wait_fraction": round(made.wait_s / max(made.seconds, 1e-9), 4),
            "world_size": torch.distributed.get_world_size(),
            "zero_stage": train.zero_stage,
        }


@contextmanager
def followed_metrics(metrics: Path, steps: int) -> Iterator[None]:
    """Show a bar that follows metrics.jsonl, which lies where the driver sees it, wherever the workers run."""
    done = threading.Event()

    def follow() -> None:
        shown = 0
        with progress("distil", steps, "step") as update:
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
