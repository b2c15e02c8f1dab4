"""Check the deployment files of this project: image, compose file, manifests, chart values, Ray's launcher file, monitoring.

python -m cluster.check            exit code 0, or 1 with a line for each mistake
python -m cluster.check FOLDER     for another checkout
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from cluster.check.images import compose_mistakes, dockerfile_mistakes
from cluster.check.kubernetes import launcher_mistakes, manifest_mistakes, values_mistakes
from cluster.check.monitoring import dashboard_mistakes, rule_mistakes, scrape_mistakes

PARTS: tuple[tuple[str, Callable[[Path], list[str]]], ...] = (
    ("docker/Dockerfile", dockerfile_mistakes),
    ("docker/compose.yaml", compose_mistakes),
    ("cluster/kubernetes", manifest_mistakes),
    ("cluster/qdrant-values.yaml", values_mistakes),
    ("cluster/ray-cluster.yaml", launcher_mistakes),
    ("cluster/alerts.yaml", rule_mistakes),
    ("cluster/prometheus.yaml", scrape_mistakes),
    ("cluster/grafana-serving.json", dashboard_mistakes),
    ("cluster/grafana-cluster.json", dashboard_mistakes),
)


def main(arguments: list[str]) -> int:
    """Check every part, print the mistakes, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[2], help="a checkout")
    root, count = parser.parse_args(arguments).folder, 0
    for name, part in PARTS:
        found = part(root / name) if (root / name).exists() else [f"{name} is not there"]
        for mistake in found:
            print(mistake)
        count += len(found)
    print(f"{len(PARTS)} parts checked, {count} mistakes")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
