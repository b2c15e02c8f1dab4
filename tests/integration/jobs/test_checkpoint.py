"""A checkpoint on real DeepSpeed ranks: whole again to the last bit on any number of them, whatever they shard."""

import pytest
import ray
import torch
from safetensors.torch import load_file

from jobs.training.checkpoint import FILE

pytestmark = [pytest.mark.usefixtures("ray_cluster")]

ODD = {
    "reference_mode": "concat",
    "token_embeddings": "learned",
    "hidden_size": 20,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 41,
}
"""Sizes that two ranks do not divide: ZeRO pads each of them, and another number of ranks pads otherwise."""


@pytest.fixture
def on_ranks(tmp_path, tiny_run):
    """Run steps on so many ranks, from a checkpoint or from the start, and write the checkpoint they end with."""

    def run(world_size: int, jobs: list[tuple[str | None, int, str, dict]]) -> None:
        """Each job: the checkpoint to load, how many steps to make, where to write, and the training's options."""

        @ray.remote(num_cpus=1, max_calls=1)  # DeepSpeed keeps a process's first group for ever
        def work(rank: int, configs: list) -> None:
            import os
            from pathlib import Path

            import torch.distributed

            from jobs.run.worker import set_up_worker
            from jobs.training.checkpoint import Checkpoint, training_tensors, write_checkpoint
            from jobs.training.engine import build_engine
            from refbert.batch import Batch
            from refbert.distillation import Distiller, Targets, new_student
            from refbert.teacher import load_teacher

            os.environ["LOCAL_RANK"] = str(rank)
            set_up_worker(world_size, 0)
            rendezvous = f"file://{tmp_path}/{jobs[0][2]}.rendezvous"
            torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
            teacher = load_teacher(configs[0].teacher)
            for (source, steps, target, _), config in zip(jobs, configs, strict=True):
                student = new_student(config.student, teacher, 0)
                distiller = Distiller(student, config.loss, autocast=config.train.precision == "autocast")
                made = 0
                if source:
                    checkpoint = Checkpoint(tmp_path / source)
                    made = checkpoint.state()["step"]
                    checkpoint.load_weights(distiller)
                engine = build_engine(distiller, config.train, made)
                if source:
                    checkpoint.load_optimizer(engine)
                for step in range(made, made + steps):
                    torch.manual_seed(step)
                    ids, mask = torch.randint(5, 900, (8, 6)), torch.ones(8, 6, dtype=torch.long)
                    read = mask * (torch.arange(8) > 0)[:, None]  # the first row reads the null reference
                    batch = Batch(ids, mask, ids, torch.randn(8, 6, teacher.dim), read)
                    loss, _ = engine(batch, Targets((torch.randn(8, 6, teacher.dim),), mask))
                    engine.backward(loss)
                    engine.step()
                tensors = training_tensors(engine)
                if rank == 0:
                    write_checkpoint(Path(tmp_path / target), tensors, {"step": made + steps})
            torch.distributed.destroy_process_group()

        configs = [
            tiny_run(
                student=ODD,
                train__steps=9,
                train__num_workers=world_size,
                train__micro_batch=8,
                train__global_batch=8 * world_size,
                **more,
            )
            for *_, more in jobs
        ]
        ray.get([work.remote(rank, configs) for rank in range(world_size)])

    return run


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if name.startswith("weights/")])


def test_a_checkpoint_can_be_resumed_with_any_number_of_ranks_and_any_zero_stage(on_ranks, tmp_path):
    stages = {f"on-two-zero{stage}": {"train__zero_stage": stage} for stage in range(4)}
    stages |= {
        f"bf16-{name}": {**more, "train__precision": "bf16"} for name, more in stages.items() if not name.endswith("0")
    }
    autocast = {"train__precision": "autocast", "train__zero_stage": 3}
    alone = [(None, 5, "whole", {}), (None, 3, "stopped", {}), ("stopped", 2, "resumed", {})]
    on_ranks(1, [*alone, (None, 3, "zero2", {"train__zero_stage": 2}), ("stopped", 2, "autocast", autocast)])
    on_ranks(2, [("stopped", 0, name, more) for name, more in stages.items()])

    def tensors(folder: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / folder / FILE)

    stopped, whole, resumed = tensors("stopped"), tensors("whole"), tensors("resumed")
    assert any(tensor.numel() % 2 for tensor in stopped.values())
    assert all(tensor.any() for tensor in stopped.values())
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    torch.testing.assert_close(tensors("zero2"), stopped, rtol=1e-4, atol=1e-6)
    made, wanted = (flat(x) - flat(stopped) for x in (tensors("autocast"), whole))
    assert 0 < (made - wanted).norm() < 0.05 * wanted.norm()
    for name in stages:
        restored = tensors(name)
        assert restored.keys() == stopped.keys()
        assert all(torch.equal(restored[key], stopped[key]) for key in stopped), name
