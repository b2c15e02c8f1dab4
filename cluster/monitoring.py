"""The alert rules and dashboards of this folder as Kubernetes resources, for an operator of kube-prometheus-stack.

    python -m cluster.monitoring | kubectl apply -f -
    python -m cluster.monitoring --release monitoring --namespace refbert

The rules become a PrometheusRule, which Prometheus selects by the label `release`. Each dashboard becomes a ConfigMap with the
label `grafana_dashboard`, which Grafana's sidecar loads. docker/compose.yaml uses the same files.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent


def resources(namespace: str, release: str) -> list[dict[str, Any]]:
    """Return the resources in the order in which they are applied."""
    rules = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "refbert", "namespace": namespace, "labels": {"release": release}},
        "spec": yaml.safe_load((FOLDER / "alerts.yaml").read_text()),
    }
    return [rules, *(_dashboard(path, namespace) for path in sorted(FOLDER.glob("grafana-*.json")))]


def _dashboard(path: Path, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"dashboard-{path.stem.removeprefix('grafana-')}",
            "namespace": namespace,
            "labels": {"grafana_dashboard": "1"},
        },
        "data": {path.name: path.read_text()},
    }


def main(arguments: list[str]) -> int:
    """Print the resources."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.monitoring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--namespace", default="refbert")
    parser.add_argument("--release", default="monitoring", help="Helm release of the stack")
    given = parser.parse_args(arguments)
    yaml.safe_dump_all(resources(given.namespace, given.release), sys.stdout, sort_keys=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
