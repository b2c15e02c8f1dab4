"""How many nodes, shards, disk and memory a Qdrant cluster needs for so many references.

    python -m cluster.sizing RUN.yaml [key.sub=value ...]                      the run's references, by the powers of ten
    python -m cluster.sizing RUN.yaml --references 5000000 --replication 3
    python -m cluster.sizing jobs/configs/quickstart.yaml references.datatype=int8

What a reference takes comes from points made of a sample of the run's corpus, as `jobs/ingest.py --show` makes them; the rest
is the arithmetic below, which names its assumptions.
"""

import argparse
import math
import sys
from collections.abc import Iterable
from typing import NamedTuple

from jobs.config import RunConfig, load_config
from refbert.errors import InputError

DISK_PER_STORED_BYTE = 1.05
"""Segments on disk over the bytes of points as they travel. Measured: 1.012 with float16, 1.022 with int8 (2,850 references of
the quickstart, embedded engine); the rest is for the copy of the inverted index that a server's optimizers write."""
LOGS_GB = 5.0
"""Of a node without references, on disk: the write-ahead logs of its shards (some 0.1 GB each) and of the cluster."""
FREE_DISK = 1 / 3
"""Share of a volume kept free: optimizers write a segment anew before they drop the old one."""
CACHED_SHARE = 0.1
"""Share of the states that should fit the page cache: what is looked up often. The rest is read from disk."""
BASE_GB = 2.0
"""Of a node without references, in memory."""
SHARD_GB = 60.0
"""Largest shard: what may move to another node, or be restored, in minutes."""
SHARDS_PER_NODE = 2
"""The fewest: a collection's shard number is for good, so this is how often nodes can double."""
NODE_DISK_GB = 2000.0
"""Volume of a node over which another node is added."""
NODE_RAM_GB = 128.0


class ReferenceSize(NamedTuple):
    """What one reference takes in the mean: bytes of its point on the wire, and of memory that the engine cannot drop."""

    stored_bytes: float
    ram_bytes: int


class Sizing(NamedTuple):
    """A cluster for so many references; disk and memory are of one node, GB are 10^9 bytes."""

    references: int
    nodes: int
    shards: int
    replication: int
    shard_gb: float
    disk_gb: float
    ram_gb: float


def size(references: int, each: ReferenceSize, nodes: int = 3, replication: int = 2) -> Sizing:
    """Size a cluster of at least `nodes` nodes. ValueError where a shard's copies would have to share a node."""
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
    """Return a Markdown table, with the sample's mean above it: the table follows from that alone."""
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
    """Up to whole GB, and above a thousand to three digits."""
    step = max(1, 10 ** (math.floor(math.log10(max(gigabytes, 1))) - 2))
    return math.ceil(gigabytes / step) * step


POWERS = tuple(10**power for power in range(6, 10))


def main(arguments: list[str]) -> int:
    """Print the table of a run."""
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
    """Take the means from points of a sample of the run's corpus."""
    from jobs.memory.shard_plan import ram_per_reference
    from jobs.plan import reference_sample
    from refbert.memory.manifest import manifest_of
    from refbert.teacher import load_teacher

    teacher = load_teacher(config.teacher)
    manifest = manifest_of(teacher, config.references)
    sample = reference_sample(config, teacher, manifest)
    return ReferenceSize(sample.stored_bytes, ram_per_reference(manifest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
