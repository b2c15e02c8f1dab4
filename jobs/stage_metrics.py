"""What each stage of a job counts of itself, for Prometheus: rows, tokens, bytes, and seconds of work and of waiting.

Ray exports them on every node's metrics port (`ray start --metrics-export-port`), labelled with the stage:

    ray_refbert_stage_rows_total           read: rows of files; encode: texts; store: points acknowledged; train: texts
    ray_refbert_stage_tokens_total         encode, train: tokens, special ones included
    ray_refbert_stage_bytes_total          read: characters of passages; store: bytes of upserts; train: bytes of references
    ray_refbert_stage_busy_seconds_total   seconds of a worker's own work
    ray_refbert_stage_wait_seconds_total   encode: for the store to say what it has; store: to take points; train: for data
"""

from ray.util.metrics import Counter

NAMES = {
    "rows": ("rows", "Rows that a stage is done with."),
    "tokens": ("tokens", "Tokens that a stage is done with."),
    "bytes": ("bytes", "Bytes that a stage has moved."),
    "busy_s": ("busy_seconds", "Seconds that a stage's workers worked."),
    "wait_s": ("wait_seconds", "Seconds that a stage's workers waited for another."),
}


class StageMetrics:
    """The counters of one stage in one process."""

    def __init__(self, stage: str) -> None:
        self._counters = {}
        for key, (name, text) in NAMES.items():
            counter = Counter(f"refbert_stage_{name}_total", text, ("stage",))
            counter.set_default_tags({"stage": stage})
            self._counters[key] = counter

    def count(self, **amounts: float) -> None:
        """Add to the counters named by `NAMES`."""
        for key, amount in amounts.items():
            if amount:  # a counter refuses zero
                self._counters[key].inc(amount)
