"""A run's gauges stay for as long as it runs, and go with it."""

import time

from jobs import gauges
from jobs.gauges import TRAINING, RunGauges


def test_a_run_that_stands_still_is_told_again_and_again_and_one_that_ended_no_more(monkeypatch):
    told = []
    monkeypatch.setattr(gauges, "REPEAT_S", 0.01)
    monkeypatch.setattr(gauges.Gauge, "set", lambda gauge, value, tags: told.append((gauge.info["name"], value, tags)))
    run = RunGauges(TRAINING, "a")
    run.show({"step": 3, "unknown": 1})
    deadline = time.monotonic() + 10
    while told.count(("refbert_train_step", 3.0, {"run": "a"})) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    run.close()
    assert set(map(str, told)) == {str(("refbert_train_step", 3.0, {"run": "a"}))}
    count = len(told)
    assert count >= 3
    time.sleep(0.1)
    assert len(told) == count
