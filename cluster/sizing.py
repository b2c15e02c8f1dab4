"""Compute the nodes, shards, disk and memory that a Qdrant cluster needs for a number of references.

    python -m cluster.sizing RUN.yaml [key.sub=value ...]                      references like the run's, 10^6 to 10^9 of them
    python -m cluster.sizing RUN.yaml --references 5000000 --replication 3
    python -m cluster.sizing jobs/configs/quickstart.yaml references.datatype=int8

Without RUN.yaml: the quickstart's. The bytes that a reference is stored in are the mean of points from a sample of the run's
corpus, with made-up vectors and states, as in `jobs/ingest.py --show`; a teacher is loaded only where its files do not tell its
shape. The rest is arithmetic, with assumptions that stand in this module and, for memory, in jobs/memory/shard_plan.py.
"""

import argparse
import math
import sys
from collections.abc import Iterable
from typing import NamedTuple

from jobs.config import RunConfig, load_config
from refbert.errors import InputError

DISK_PER_STORED_BYTE = 1.05
"""Bytes of segments on disk per byte of points as messages. Measured: 1.012 with float16, 1.022 with int8 (2,850 references of
the quickstart, embedded engine); the rest is for the copy of the inverted index that a server's optimizers write."""
LOGS_GB = 5.0
"""Disk of a node without references: the write-ahead logs of its shards (about 0.1 GB each) and of the cluster."""
FREE_DISK = 1 / 3
"""Share of a volume that is kept free: optimizers write a new segment before they delete the old one."""
CACHED_SHARE = 0.1
"""Share of the states that should fit the page cache, because they are read often. The rest is read from disk."""
BASE_GB = 2.0
"""Memory of a node without references."""
SHARD_GB = 60.0
"""Size of the largest shard: it can be moved to another node, or be restored, in minutes."""
SHARDS_PER_NODE = 2
"""Fewest shards per node. The number of shards is fixed, so it limits how many nodes can be added later."""
NODE_DISK_GB = 2000.0
"""Largest volume of a node; for more another node is added."""
NODE_RAM_GB = 128.0


class ReferenceSize(NamedTuple):
    """Mean size of a reference: bytes of its point as a message, and bytes that the engine must hold in memory."""

    stored_bytes: float
    ram_bytes: int


class Sizing(NamedTuple):
    """Size of a cluster for a number of references; disk and memory are per node, 1 GB is 10^9 bytes."""

    references: int
    nodes: int
    shards: int
    replication: int
    shard_gb: float
    disk_gb: float
    ram_gb: float


def size(references: int, each: ReferenceSize, nodes: int = 3, replication: int = 2) -> Sizing:
    """Size a cluster of at least `nodes` nodes. ValueError where two copies of a shard would be on one node."""
    if replication > nodes:
        raise ValueError(
            f"replication {replication} over {nodes} nodes: a copy needs a node of its own; give more nodes"
        )
    data_gb = references * each.stored_bytes * DISK_PER_STORED_BYTE / 1e9
    index_gb = references * each.ram_bytes / 1e9
    ram_gb = index_gb + CACHED_SHARE * data_gb
    nodes = max(
        nodes,
        math.ceil(replication * data_gb / (NODE_DISK_GB - LOGS_GB) / (1 - FREE_DISK)),
        math.ceil(replication * ram_gb / (NODE_RAM_GB - BASE_GB)),
    )
    shards = nodes * max(SHARDS_PER_NODE, math.ceil(data_gb / SHARD_GB / nodes))
    return Sizing(
        references=references,
        nodes=nodes,
        shards=shards,
        replication=replication,
        shard_gb=data_gb / shards,
        disk_gb=LOGS_GB + replication * data_gb / nodes / (1 - FREE_DISK),
        ram_gb=BASE_GB + replication * ram_gb / nodes,
    )


def table(each: ReferenceSize, references: Iterable[int], nodes: int = 3, replication: int = 2) -> str:
    """Return a Markdown table, and above it the mean size of a reference, from which it is computed."""
    lines = [
        f"{each.stored_bytes:.0f} bytes per reference, {each.ram_bytes} of memory; {replication} copies:",
        "",
        "| references | nodes | shards | GB per shard | disk per node | memory per node |",
        "|---|---|---|---|---|---|",
    ]
    for count in references:
        made = size(count, each, nodes, replication)
        lines.append(
            f"| {count:,} | {made.nodes} | {made.shards} | {made.shard_gb:.2g} | {_rounded(made.disk_gb)} GB "
            f"| {_rounded(made.ram_gb)} GB |"
        )
    return "\n".join(lines)


def _rounded(gigabytes: float) -> int:
    """Round up to whole GB, above 1000 GB to three digits."""
    step = max(1, 10 ** (math.floor(math.log10(max(gigabytes, 1))) - 2))
    return math.ceil(gigabytes / step) * step


POWERS = tuple(10**power for power in range(6, 10))


def main(arguments: list[str]) -> int:
    """Print the table for a run."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.sizing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="the run's YAML, by default the demo's")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--references", type=int, nargs="+", default=POWERS)
    parser.add_argument("--nodes", type=int, default=3, help="the fewest; three keep a majority when one goes")
    parser.add_argument("--replication", type=int, default=2)
    given = parser.parse_intermixed_args(arguments)
    if given.run and "=" in given.run:
        given.overrides.insert(0, given.run)
        given.run = None
    try:
        if min(*given.references, given.replication, given.nodes) < 1:
            raise InputError("--references, --replication and --nodes are counts: give 1 or more")
        each = measured(load_config(given.run, given.overrides))
        print(table(each, given.references, given.nodes, given.replication))
    except (InputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measured(config: RunConfig) -> ReferenceSize:
    """Measure the mean size on points from a sample of the run's corpus."""
    from jobs.memory.shard_plan import ram_per_reference
    from jobs.plan import reference_sample, teacher_outline
    from refbert.memory.manifest import manifest_of

    teacher = teacher_outline(config.teacher)
    manifest = manifest_of(teacher, config.references)
    sample = reference_sample(config, teacher, manifest)
    return ReferenceSize(sample.stored_bytes, ram_per_reference(manifest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
