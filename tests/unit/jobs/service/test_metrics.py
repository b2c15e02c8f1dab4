"""Metrics in Prometheus' text format, of one replica and of several."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from jobs.service.metrics import Metrics, merged


def samples(text):
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }


def test_merged_metrics_keep_each_replicas_samples_under_one_head():
    both = []
    for replica, count in (("a", 1), ("b", 2)):
        metrics = Metrics(replica)
        metrics.of("served").texts.inc(count)
        metrics.requests.labels("/v1/embeddings", "200").inc(count)
        metrics.of("served").set_memory_state("ok")
        both.append(metrics.text())
    text = merged(both)
    assert text.count("# HELP refbert_texts_total") == text.count("# TYPE refbert_texts_total") == 1
    found = samples(text)
    for replica, count in (("a", 1), ("b", 2)):
        label = ("replica", replica)
        assert found["refbert_texts_total", ("model", "served"), label] == count
        assert found["refbert_requests_total", label, ("route", "/v1/embeddings"), ("status", "200")] == count
        assert found["refbert_memory_state", ("model", "served"), label, ("state", "ok")] == 1


def test_a_models_name_hides_none_of_its_metrics():
    metrics = Metrics()
    metrics.of("just_created").texts.inc(3)
    found = samples(metrics.text())
    assert found["refbert_texts_total", ("model", "just_created")] == 3
    assert not [name for name, *_ in found if name.endswith("_created")]


def test_every_rung_and_error_kind_has_a_series_from_the_start():
    metrics = Metrics()
    metrics.of("served")
    found = samples(metrics.text())
    for rung in ("own", "live", "cached", "null"):
        assert found["refbert_references_total", ("model", "served"), ("rung", rung), ("step", rung)] == 0
    # An alert on the first bug would not see a series that starts at one.
    assert [found["refbert_errors_total", ("kind", kind)] for kind in ("bug", "Overloaded")] == [0, 0]
    assert found["refbert_queued_texts",] == 0


def test_the_dashboard_queries_only_exported_metrics():
    metrics = Metrics()
    metrics.requests.labels("/", "200")
    metrics.request_s.labels("/")
    metrics.errors.labels("bug")
    metrics.of("served").set_student("fingerprint")
    there = {name for name, *_ in samples(metrics.text())}
    dashboard = (Path(__file__).parents[4] / "cluster" / "grafana-serving.json").read_text()
    asked = set(re.findall(r"refbert_[a-z_]+", dashboard)) - {"refbert_"}
    assert len(asked) > 10
    assert asked <= there, asked - there
