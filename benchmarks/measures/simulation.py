"""Ingest and distillation on a cluster, from the rates of their stages: which resource is the narrowest, and what follows.

Every stage is a resource with so many texts per second; stages overlap, all but the reading before an ingest, so the slowest of
them decides. Pure arithmetic: what is measured comes in as `Rates`, everything else is a field of `Assumptions`.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from measures.stage_rates import Rates


@dataclass(frozen=True)
class Assumptions:
    """What cannot be measured here. Each is one number with its reason; results print them all."""

    gpu_peak_flops: float = 989e12
    """One H100 SXM, bf16 without sparsity (NVIDIA's data sheet)."""
    encode_utilisation: float = 0.3
    """Share of that peak which a forward of a BERT-size encoder on full batches reaches."""
    train_utilisation: float = 0.15
    """The same of a training step: its student is small, its losses are memory-bound."""
    cores_per_gpu: float = 16
    """CPU cores beside each GPU, for reading, tokenising, packing and look-ups."""
    core_speed: float = 1.0
    """Of those cores and the store's, over the measured machine's."""
    nic_bytes_per_s: float = 3.1e9
    """Network of a GPU's share of its node and of a store's node: 25 Gbit/s each."""
    store_cores: float = 16
    store_ram_bytes: float = 128e9
    store_disk_bytes: float = 3.5e12
    store_disk_bytes_per_s: float = 1e9
    """A store's node: cores, RAM, one NVMe disk and what it writes steadily."""
    store_busy: float = 0.7
    """Share of a store's node that may be planned for: RAM, disk and cores."""
    store_nodes_at_least: int = 3
    replication_factor: int = 2
    write_amplification: float = 3.0
    """Bytes written to disk per byte kept: the log, the segment, one merge of it."""
    ram_bytes_per_reference: float = 2500
    """What the store cannot drop of a reference without a dense index (jobs/memory/shard_plan.py)."""
    look_up_growth: float = 0.37
    """A look-up's cost in a shard grows with its points to this power: 7.0, 18.0, 37.9 ms at 10^4, 10^5, 10^6
    (benchmarks/results, store, scaling)."""
    look_up_flat_to: float = 10_000
    """Up to so many points per shard it is taken as measured."""
    batch_per_gpu: float = 256
    gradient_bytes: float = 4
    """Per parameter, added over all GPUs by a ring: twice over each link per step, not overlapped."""
    passes: float = 1.0
    """How often distillation sees each reference's text."""
    failures_share: float = 0.03
    """Time lost to restarts and repeated steps."""
    gpu_usd_per_h: float = 3.0
    store_node_usd_per_h: float = 1.2
    """Prices on demand, a GPU with its share of the node."""

    def as_dict(self) -> dict[str, Any]:
        """All assumptions by name."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """One job on one cluster."""

    job: str
    references: float
    gpus: int
    store_nodes: int
    texts_per_s: float
    bottleneck: str
    hours: float
    usd: float
    network_tb: float
    disk_tb: float
    ram_tb: float

    def row(self) -> dict[str, Any]:
        """As a line of a table."""
        return asdict(self)


def store_nodes(rates: Rates, given: Assumptions, references: float) -> int:
    """Nodes that hold so many references with their copies, in disk and in RAM."""
    copies = references * given.replication_factor / given.store_busy
    by_disk = copies * rates.disk_bytes / given.store_disk_bytes
    by_ram = copies * given.ram_bytes_per_reference / given.store_ram_bytes
    return max(given.store_nodes_at_least, math.ceil(max(by_disk, by_ram)))


def ingest(rates: Rates, given: Assumptions, references: float, gpus: int) -> Estimate:
    """Read, encode and store so many references."""
    nodes = store_nodes(rates, given, references)
    cores = gpus * given.cores_per_gpu * given.core_speed
    server_core_s = given.replication_factor * rates.store_write_core_s + rates.store_exists_core_s
    written_bytes = given.replication_factor * given.write_amplification * rates.disk_bytes
    limits = {
        "GPU": gpus * given.gpu_peak_flops * given.encode_utilisation / rates.teacher_flop,
        "encoders' cores": cores / rates.client_core_s,
        "encoders' network": gpus * given.nic_bytes_per_s / rates.sent_bytes,
        "store's cores": _store_cores(given, nodes) / server_core_s,
        "store's network": nodes * given.nic_bytes_per_s / (given.replication_factor * rates.sent_bytes),
        "store's disks": nodes * given.store_disk_bytes_per_s / written_bytes,
    }
    reading_s = references * rates.read_core_s / cores
    sent_bytes = references * rates.sent_bytes * given.replication_factor
    return _estimate("ingest", rates, given, references, gpus, nodes, limits, references, reading_s, sent_bytes)


def distil(rates: Rates, given: Assumptions, references: float, gpus: int) -> Estimate:
    """Train a student on every reference's text, each with one live look-up."""
    nodes = store_nodes(rates, given, references)
    texts = references * given.passes
    per_shard = references / nodes
    grown = max(1.0, per_shard / given.look_up_flat_to) ** given.look_up_growth
    flop = rates.teacher_flop + rates.student_flop
    compute_s = given.batch_per_gpu * flop / (given.gpu_peak_flops * given.train_utilisation)
    gradient_bytes = 2 * rates.student_parameters * given.gradient_bytes * (gpus - 1) / gpus
    limits = {
        "GPU": gpus * given.batch_per_gpu / (compute_s + gradient_bytes / given.nic_bytes_per_s),
        "trainers' cores": gpus * given.cores_per_gpu * given.core_speed / rates.look_up_core_s,
        "trainers' network": gpus * given.nic_bytes_per_s / rates.look_up_bytes,
        # Every shard is searched for every look-up.
        "store's cores": _store_cores(given, nodes) / (nodes * rates.store_look_up_core_s * grown),
        "store's network": nodes * given.nic_bytes_per_s / rates.look_up_bytes,
    }
    steps = texts / (given.batch_per_gpu * gpus)
    moved_bytes = texts * rates.look_up_bytes + steps * gradient_bytes * gpus
    return _estimate("distil", rates, given, references, gpus, nodes, limits, texts, 0.0, moved_bytes)


def _store_cores(given: Assumptions, nodes: int) -> float:
    return nodes * given.store_cores * given.store_busy * given.core_speed


def _estimate(
    job: str,
    rates: Rates,
    given: Assumptions,
    references: float,
    gpus: int,
    nodes: int,
    limits: dict[str, float],
    texts: float,
    before_s: float,
    moved_bytes: float,
) -> Estimate:
    bottleneck = min(limits, key=lambda name: limits[name])
    hours = (before_s + texts / limits[bottleneck]) * (1 + given.failures_share) / 3600
    copies = references * given.replication_factor
    return Estimate(
        job=job,
        references=references,
        gpus=gpus,
        store_nodes=nodes,
        texts_per_s=limits[bottleneck],
        bottleneck=bottleneck,
        hours=hours,
        usd=hours * (gpus * given.gpu_usd_per_h + nodes * given.store_node_usd_per_h),
        network_tb=moved_bytes / 1e12,
        disk_tb=copies * rates.disk_bytes / 1e12,
        ram_tb=copies * given.ram_bytes_per_reference / 1e12,
    )
