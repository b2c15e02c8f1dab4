"""The workers' process group: how they find each other, and how they tell each other texts.

torch's own way is a port on every interface that asks callers for nothing, and collectives of Python objects that unpickle, and
so run, whatever comes. On one machine, where Ray listens on loopback alone, workers meet in a file of a folder that only their
user may enter, and talk over loopback; gloo asks there for a number that can be guessed, so `require_own` looks whom a worker
is connected to. On several machines they meet as Ray Train has it: their network must be one that only the cluster is in. Texts
travel as bytes, and nothing is unpickled.
"""

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig

from jobs.run.mutual_tls import LOOPBACK
from jobs.run.ports import connected_strangers
from refbert.errors import UnavailableError

INTERFACE = "GLOO_SOCKET_IFNAME"
"""What gloo reads for where to listen; by default where the machine's name leads."""

FOLDER_PREFIX = "refbert-group-"


class ProcessGroup(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray names the class by this property alone
    """Ray Train's process group, met in a private file where all workers are on 127.0.0.1."""

    folder: str | None = None

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Join every worker to one process group."""
        if set(worker_group.execute(ray.util.get_node_ip_address)) != {LOOPBACK}:
            super().on_start(worker_group, backend_config)
            return
        self.folder = worker_group.execute_single(0, tempfile.mkdtemp, prefix=FOLDER_PREFIX)
        worker_group.execute(_join, backend_config.backend, str(Path(self.folder) / "met"), backend_config.timeout_s)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Leave the group, and remove its folder."""
        try:
            super().on_shutdown(worker_group, backend_config)  # which raises where a worker has died
        finally:
            if self.folder:
                shutil.rmtree(self.folder, ignore_errors=True)  # on this machine, as all of them are


@dataclass
class ProcessGroupConfig(TorchConfig):
    """`TorchConfig` with `ProcessGroup`."""

    @property
    def backend_cls(self) -> type:
        """What starts and ends the group."""
        return ProcessGroup


def _join(backend: str, file: str, timeout_s: int) -> None:
    """Join this worker to the group whose members meet in `file`, with the variables that DeepSpeed and others read."""
    context = ray.train.get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        os.environ.setdefault(INTERFACE, loopback)
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{file}",
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=timeout_s),
    )
    require_own()


def require_own() -> None:
    """Raise UnavailableError where another user of this machine is at an end of a connection, and may have a worker's place.

    Nothing that was told so far is to be used. To be called after each group that is made, by `init_process_group` or others.
    """
    if strangers := connected_strangers():
        raise UnavailableError(
            f"another user of this machine (uid {min(strangers)}) has connected to this training in a worker's place; start "
            "the same command again"
        )


def gathered_texts(text: str) -> list[str]:
    """Return the text of every rank, in their order; every rank takes part."""
    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    said = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(said)], device=device)
    sizes = [torch.empty_like(size) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, size)
    longest = max(map(int, sizes))
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(said)] = said
    every = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(every, padded)
    return [bytes(each[: int(size)].tolist()).decode() for each, size in zip(every, sizes, strict=True)]
