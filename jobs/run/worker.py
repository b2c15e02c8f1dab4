"""What every worker process sets up before it computes: quiet libraries, its share of the cores, its device."""

import logging
import math
import os
import warnings

import ray
import torch
from transformers.utils import logging as transformers_logging


def per_node(workers: int) -> int:
    """How many of so many workers share a node, where they are spread evenly."""
    return math.ceil(workers / max(1, sum(node["Alive"] for node in ray.nodes())))


def set_up_worker(workers_per_node: int, num_gpus: float, threads: int | None = None) -> torch.device:
    """Quiet the libraries, take this worker's share of the node's CPU threads, and return its device."""
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Ray sets OMP_NUM_THREADS to the CPUs it reserved, which are bookkeeping here: one per worker.
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // workers_per_node))
    return torch.device("cuda" if num_gpus else "cpu")


def quiet_libraries() -> None:
    """Silence noise: progress bars over one file, advice about a library's next version."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
