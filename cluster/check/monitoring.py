"""Check alert rules (schema, PromQL, metrics), dashboards (PromQL, metrics) and the scrape config (its jobs and rule files).

A metric must be one that this project's or Ray's code defines, or stand in this module's lists for Qdrant, Prometheus and
Kubernetes. Asks no server what it exports.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from cluster.check.schemas import custom_mistakes

QDRANT = {
    "app_info", "app_status_recovery_mode", "collections_total", "collection_points", "collection_vectors",
    "collection_active_replicas_min", "collection_active_replicas_max", "collection_dead_replicas",
    "collection_running_optimizations", "snapshot_creation_running", "snapshot_recovery_running", "snapshot_created_total",
    "rest_responses_total", "rest_responses_fail_total", "rest_responses_duration_seconds", "grpc_responses_total",
    "grpc_responses_fail_total", "grpc_responses_duration_seconds", "memory_active_bytes", "memory_allocated_bytes",
    "memory_resident_bytes", "process_threads", "process_open_mmaps", "system_max_mmaps", "process_open_fds", "process_max_fds",
    "process_major_page_faults_total", "cluster_enabled", "cluster_peers_total", "cluster_term", "cluster_commit",
    "cluster_pending_operations_total", "cluster_voter",
}  # fmt: skip
"""Metrics of a node, from Qdrant's documentation (Monitoring & Telemetry, v1.16 and later)."""

OTHERS = {"up", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
"""Metrics of Prometheus itself and of Kubernetes."""

SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


@cache
def exported() -> frozenset[str]:
    """Names of all metrics, without suffixes of histograms and counters, from the code that exports them."""
    from jobs.run.telemetry import INGEST, STAGE, TRAINING
    from jobs.service.metrics import Metrics

    service = {sample.name for sample in Metrics().registry.collect()}
    runs = {f"ray_refbert_{name}" for kind in (TRAINING, INGEST) for name, _ in kind.values()}
    stages = {f"ray_refbert_stage_{name}" for name, _ in STAGE.values()}
    return frozenset({SUFFIX.sub("", name) for name in service | runs | stages | ray_metrics() | QDRANT | OTHERS})


def ray_metrics() -> set[str]:
    """Names of metrics in the installed Ray's source: those of its dashboards, and those that its modules define."""
    ray = Path(str(files("ray")))
    asked = "".join(path.read_text() for path in (ray / "dashboard/modules/metrics/dashboards").glob("*_panels.py"))
    names = set(re.findall(r"\b((?:ray|autoscaler)_[a-z0-9_]+)", asked))
    for pattern in ("serve/_private/*.py", "train/v2/_internal/metrics/*.py", "dashboard/modules/reporter/*.py"):
        defined = "".join(path.read_text() for path in ray.glob(pattern))
        names |= {f"ray_{name}" for name in re.findall(r'"((?:serve|train|node|component)_[a-z0-9_]+)"', defined)}
    autoscaler = (ray / "autoscaler/_private/prom_metrics.py").read_text()
    return names | {f"autoscaler_{name}" for name in re.findall(r'"([a-z_]+)",\n', autoscaler)}


def rule_mistakes(path: Path) -> list[str]:
    """Check a file of alert rules: fields, expressions, metrics, and that every rule has a severity and a summary."""
    rules = yaml.safe_load(path.read_text())
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "x"},
        "spec": rules,
    }
    found = [f"{path.name}: {mistake}" for mistake in custom_mistakes("PrometheusRule", resource)]
    if found:
        return found
    every = [rule for group in rules["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in every]
    found += [f"{path.name}: {name} stands there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for rule in every:
        where = f"{path.name}: {rule['alert']}"
        found += [f"{where}: {mistake}" for mistake in expression_mistakes(rule["expr"])]
        if rule["labels"].get("severity") not in ("critical", "warning"):
            found.append(f"{where}: severity is critical or warning")
        if "summary" not in rule["annotations"]:
            found.append(f"{where}: wants a summary")
    return found


def dashboard_mistakes(path: Path) -> list[str]:
    """Check a Grafana dashboard: JSON, and every expression of its panels."""
    try:
        dashboard = json.loads(path.read_text())
    except ValueError as error:
        return [f"{path.name} is not JSON: {error}"]
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            # Variables that Grafana replaces before Prometheus reads the expression.
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$__range", "1h")
            found += [f"{path.name}: {panel['title']}: {mistake}" for mistake in expression_mistakes(expression)]
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    if len(set(identifiers)) < len(identifiers):
        found.append(f"{path.name}: two panels have one id")
    return found


def expression_mistakes(expression: str) -> Iterator[str]:
    """Check that an expression is PromQL, and that its metrics are exported."""
    try:
        tree = promql_parser.parse(expression)
    except ValueError as error:
        yield f"{expression.strip()!r} is not PromQL: {' '.join(str(error).split())}"
        return
    for name in sorted(set(metric_names(tree))):
        if SUFFIX.sub("", name) not in exported():
            yield f"nobody exports {name}"


def metric_names(node: Any) -> Iterator[str]:
    """The metrics that an expression selects."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name or ""
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector.name or ""
    else:
        for part in ("expr", "lhs", "rhs", "param"):
            if (child := getattr(node, part, None)) is not None and not isinstance(child, str):
                yield from metric_names(child)
        for child in getattr(node, "args", None) or ():
            yield from metric_names(child)


def scrape_mistakes(path: Path) -> list[str]:
    """Check that Prometheus' config names the jobs that rules and dashboards know, and files that compose mounts."""
    config = yaml.safe_load(path.read_text())
    jobs = {each["job_name"] for each in config["scrape_configs"]}
    found = [f"{path.name}: wants a job {name}" for name in sorted({"ray", "refbert", "qdrant"} - jobs)]
    missing = [name for name in config["rule_files"] if not (path.parent / name).is_file()]
    return found + [f"{path.name}: rule file {name} is not there" for name in missing]
