"""The workers' process group on this machine: nobody else can join it, and what workers tell each other is text."""

import os

import pytest
import ray.train
from ray.exceptions import RayActorError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from jobs.training import process_group
from jobs.training.process_group import ProcessGroup, ProcessGroupConfig, gathered_texts, require_own
from refbert.errors import UnavailableError
from tests.listeners import addresses_of, is_loopback


def tell() -> dict:
    rank = ray.train.get_context().get_world_rank()
    texts = gathered_texts(["", "é, and more"][rank])
    addresses = [
        gathered_texts(" ".join(addresses_of([os.getpid()]))),
        os.environ["LOCAL_RANK"],
        os.environ["WORLD_SIZE"],
    ]
    return {"texts": texts, "addresses": addresses}


def test_workers_on_one_machine_meet_in_a_private_file_and_listen_on_loopback_alone(ray_cluster, tmp_path):
    trainer = TorchTrainer(
        tell,
        torch_config=ProcessGroupConfig(backend="gloo", timeout_s=60),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path)),
    )
    told = trainer.fit().return_value
    assert told["texts"] == ["", "é, and more"]
    listening, local_rank, world_size = told["addresses"]
    assert (local_rank, world_size) == ("0", "2")
    assert all(listening)  # gloo itself listens, in each
    assert all(is_loopback(address) for one in listening for address in one.split()), listening


def test_where_workers_met_is_removed_even_if_one_has_died(tmp_path):
    class Dead:
        def execute_async(self, *_, **__):
            raise RayActorError

        def __len__(self):
            return 2

    group = ProcessGroup()
    group.folder = str(tmp_path / "group")
    (tmp_path / "group").mkdir()
    with pytest.raises(RayActorError):
        group.on_shutdown(Dead(), ProcessGroupConfig())
    assert not (tmp_path / "group").exists()


def test_a_training_does_not_go_on_with_another_user_in_a_workers_place(monkeypatch):
    require_own()
    monkeypatch.setattr(process_group, "connected_strangers", lambda: {65534})
    with pytest.raises(UnavailableError, match="uid 65534"):
        require_own()
