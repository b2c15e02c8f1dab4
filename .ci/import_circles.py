"""Count the circles of the import graph: strongly connected components of more than one module, imports in functions included.

Part of `make check`. Prints each circle and, last, their number; ends with 1 where there is any.
"""

import sys
from pathlib import Path

import grimp
import networkx

PACKAGES = ("refbert", "vector_store", "jobs", "cluster")


def main() -> int:
    """Print the circles and return the exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # jobs and cluster are in no wheel
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    imports = networkx.DiGraph()
    for module in graph.modules:
        imports.add_edges_from((module, other) for other in graph.find_modules_directly_imported_by(module))
    circles = [sorted(found) for found in networkx.strongly_connected_components(imports) if len(found) > 1]
    for circle in circles:
        print("circle:", " <-> ".join(circle))
    print(f"{len(circles)} circles among {len(graph.modules)} modules")
    return int(bool(circles))


if __name__ == "__main__":
    sys.exit(main())
