"""The metrics of a run for Prometheus, exported by Ray on every node's metrics port (`ray start --metrics-export-port`).

Gauges of a load or a training that is under way, `ray_refbert_NAME{run}`, are there until it ends or its process dies: one that
stands still is seen, one that has ended is not. Counters of each stage of a job, labelled with the stage:

    ray_refbert_stage_rows_total           read: rows of files; encode: texts; store: points acknowledged; train: texts
    ray_refbert_stage_tokens_total         encode, train: tokens, special ones included
    ray_refbert_stage_bytes_total          read: characters of passages; store: bytes of upserts; train: bytes of references
    ray_refbert_stage_busy_seconds_total   seconds of a worker's own work
    ray_refbert_stage_wait_seconds_total   encode: for the store to say what it has; store: to take points; train: for data
"""

import threading
from collections.abc import Mapping
from typing import Any, Self

TRAINING = {
    "step": ("train_step", "Optimizer steps made."),
    "steps": ("train_steps_wanted", "Optimizer steps to make."),
    "train/loss": ("train_loss", "Loss, mean over workers and the last train.log_every steps."),
    "train/examples_per_s": ("train_examples_per_second", "Examples of all workers together."),
    "data/wait_fraction": ("train_data_wait_fraction", "Share of its time that rank 0 waited for batches."),
    "store/live": ("train_lookups_live", "Rank 0's look-ups that the memory answered, since its start."),
    "store/cached": ("train_lookups_cached", "Those answered from kept references."),
    "store/null": ("train_lookups_null", "Those that got the null reference."),
    "store/query_ms": ("train_lookup_milliseconds", "Rank 0's last look-up."),
}
"""A training's, by the name that metrics.jsonl has for them."""

INGEST = {
    "read": ("ingest_rows_read", "Rows read."),
    "skipped": ("ingest_rows_skipped", "Rows that the memory held already."),
    "duplicate": ("ingest_rows_duplicate", "Rows that repeat another."),
    "written": ("ingest_rows_written", "Rows that the store has acknowledged."),
    "rejected": ("ingest_rows_rejected", "Rows that cannot be read or stored; rejected.jsonl has their reasons."),
}
"""An ingest's, by outcome."""


REPEAT_S = 5.0
"""Ray forgets a gauge that nobody has set for two reports (20 s): a run that stands still would be one that has ended."""


class RunGauges:
    """The gauges of one run in one process: what `values` holds of them, set again every few seconds until closed.

    The owner of `values` keeps changing it.
    """

    def __init__(self, kind: Mapping[str, tuple[str, str]], run: str, values: dict[str, Any]) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {key: Gauge(f"refbert_{name}", text, ("run",)) for key, (name, text) in kind.items()}
        self._tags = {"run": run}
        self._values = values
        self._closed = threading.Event()
        self._repeater = threading.Thread(target=self._repeat, daemon=True)
        self._repeater.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop setting the gauges: their series end."""
        self._closed.set()
        self._repeater.join()

    def _repeat(self) -> None:
        while not self._closed.is_set():
            now = dict(self._values)
            for key in self._gauges.keys() & now.keys():
                self._gauges[key].set(float(now[key]), self._tags)
            self._closed.wait(REPEAT_S)


STAGE = {
    "rows": ("rows", "Rows that a stage is done with."),
    "tokens": ("tokens", "Tokens that a stage is done with."),
    "bytes": ("bytes", "Bytes that a stage has moved."),
    "busy_s": ("busy_seconds", "Seconds that a stage's workers worked."),
    "wait_s": ("wait_seconds", "Seconds that a stage's workers waited for another."),
}


class StageMetrics:
    """The counters of one stage in one process."""

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter  # here: `--show` waits for no Ray

        self._counters = {}
        for key, (name, text) in STAGE.items():
            counter = Counter(f"refbert_stage_{name}_total", text, ("stage",))
            counter.set_default_tags({"stage": stage})
            self._counters[key] = counter

    def count(self, **amounts: float) -> None:
        """Add to the counters named by `STAGE`."""
        for key, amount in amounts.items():
            if amount:  # a counter refuses zero
                self._counters[key].inc(amount)
