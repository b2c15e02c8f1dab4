"""Training: what Ray Train and DeepSpeed cost, what a second worker brings, whether look-ups hide behind the step, and what
a memory that teaches gains.

    python benchmarks/train.py [--quick] [--out DIR] [--only PART ...]

Parts: overhead, against a plain PyTorch loop; workers, two against one on the same cores; references, live look-ups against
the same references from RAM, with a profile of the step; targets, the teacher's states out of the memory against a teacher
in the worker. The full run takes an hour on two cores.
"""

from measures import live_references, target_source, training
from measures.distilling import give_equal_priority
from measures.goals import arguments, measure_parts

from jobs.run.worker import quiet_libraries

PARTS = {
    "overhead": training.overhead,
    "workers": training.workers,
    "references": live_references.measure,
    "targets": target_source.measure,
}


def main() -> None:
    """Measure the parts that are asked for."""
    given = arguments(__doc__ or "", list(PARTS))
    quiet_libraries()
    give_equal_priority()
    measure_parts("train: the training step", given, PARTS)


if __name__ == "__main__":
    main()
