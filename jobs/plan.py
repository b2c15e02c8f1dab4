"""What a run would make, computed before anything starts: `--show`."""

import torch

from jobs.config import RunConfig
from jobs.memory import manifest_of
from refbert.distillation import new_student
from refbert.teacher import load_teacher


def plan(config: RunConfig) -> dict[str, str]:
    """Return the figures of a run by name: sizes, compression, bytes of memory, steps and batches."""
    teacher = load_teacher(config.teacher)
    with torch.device("meta"):
        student = new_student(config.student.model_copy(update={"initial": "random"}), teacher, config.seed)
    parameters = sum(p.numel() for p in student.parameters())
    manifest = manifest_of(teacher, config.references)
    full = manifest.bytes_per_point()
    train = config.train
    return {
        "teacher": f"{config.teacher.model}, {teacher.num_parameters / 1e6:.2f} M parameters",
        "student": f"{parameters / 1e6:.2f} M parameters, {teacher.num_parameters / parameters:.2f}x smaller",
        "memory": f"at most {full / 1e3:.1f} kB per reference, {full / 1e3:.1f} GB per million",
        "training": f"{train.steps} steps x {train.global_batch} examples = {train.steps * train.global_batch} examples; "
        f"{train.num_workers} workers x {train.accumulation} micro-batches of {train.micro_batch}",
        "files": str(config.run_directory),
    }
