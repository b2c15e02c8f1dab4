"""A run's gauges stay for as long as it runs, and go with it."""

import time

from ray.util.metrics import Gauge

from jobs.run import telemetry as gauges
from jobs.run.telemetry import TRAINING, RunGauges


def test_gauges_are_repeated_until_the_run_ends(monkeypatch):
    told = []
    monkeypatch.setattr(gauges, "REPEAT_S", 0.01)
    monkeypatch.setattr(Gauge, "set", lambda gauge, value, tags: told.append((gauge.info["name"], value, tags)))
    values = {"step": 3, "unknown": 1}
    set_step = ("refbert_train_step", 3.0, {"run": "a"})
    deadline = time.monotonic() + 10
    with RunGauges(TRAINING, "a", values):
        while told.count(set_step) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told == [set_step] * len(told)
        assert len(told) >= 3
        values["step"] = 4
        while told[-1][1] != 4.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert told[-1] == ("refbert_train_step", 4.0, {"run": "a"})
    count = len(told)
    time.sleep(0.1)
    assert len(told) == count
