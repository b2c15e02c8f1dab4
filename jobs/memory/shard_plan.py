"""What a shard and the fullest node will hold of a run's memory: references, disk and RAM. Arithmetic: no server is asked.

Points go to shards by a hash of their ids, so shards are of about one size; shards and their copies are dealt out to nodes as
evenly as their number allows.
"""

import math

from vector_store.config import EMBEDDED, StoreConfig
from vector_store.schema import Manifest
from vector_store.store import HNSW_M

HELD_BYTES = 2500
"""RAM per reference that the engine cannot drop: ids, sparse vectors, three payload indexes. Measured on ingest of 2,000 and
20,000 texts (benchmarks/results, store, memory: 40 MiB for 17,100 more); states stay on disk.
A server whose optimizers have run needs less."""

LINK_BYTES = 4
"""A link of HNSW's graph; its lowest layer has 2 x m of them per point, all layers above together a few more in a hundred."""


def ram_per_reference(manifest: Manifest) -> int:
    """Bytes of RAM per reference: what is always held, and with a dense index vectors and links too."""
    dense = manifest.words_dim * 4 + 2 * HNSW_M * LINK_BYTES if manifest.dense_index else 0
    return HELD_BYTES + dense


def shard_plan(config: StoreConfig, manifest: Manifest, stored_bytes: float, references: int | None) -> str:
    """Say how many shards there will be, where, and what one of them and the fullest node take.

    `stored_bytes` is the mean of one reference. Where the number of references is unknown, figures are per million.
    """
    nodes = len(config.nodes)
    shards = config.shard_number or nodes
    copies = shards * config.replication_factor
    fullest = math.ceil(copies / nodes)
    points = 1_000_000 if references is None else references
    per_shard = math.ceil(points / shards)

    def holds(num_shards: int) -> str:
        held = num_shards * per_shard
        ram_gb, disk_gb = held * ram_per_reference(manifest) / 1e9, held * stored_bytes / 1e9
        return f"{held} references, {disk_gb:.3g} GB disk, {ram_gb:.3g} GB RAM"

    of = "per million references: " if references is None else ""
    if config.url == EMBEDDED:
        return f"{of}1 shard on the embedded server: {holds(1)}"
    even = "" if copies % nodes == 0 else f", others {copies // nodes}"
    each = f"each of {nodes} nodes" if not even else f"the fullest of {nodes} nodes"
    return (
        f"{of}{shards} shards x {config.replication_factor} copies; one shard: {holds(1)}; {each} ({fullest} shards{even}): "
        f"{holds(fullest)}"
    )
