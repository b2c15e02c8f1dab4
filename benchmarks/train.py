"""Training: what Ray Train and DeepSpeed cost, what a second worker brings, and whether look-ups hide behind the step.

    python benchmarks/train.py [--quick] [--out DIR] [--only PART ...]

Parts: overhead, against a plain PyTorch loop; workers, two against one on the same cores; references, live look-ups against
the same references from RAM, with a profile of the step. The full run takes about half an hour on two cores.
"""

import sys
import tempfile
import time
from pathlib import Path

from measures import live_references, training
from measures.distilling import give_equal_priority
from measures.goals import Part, arguments, write_results

from jobs.worker import quiet_libraries

PARTS = {"overhead": training.overhead, "workers": training.workers, "references": live_references.measure}


def main() -> None:
    """Measure the parts that are asked for; what was measured before a failure is written too."""
    given = arguments(__doc__ or "", list(PARTS))
    quiet_libraries()
    give_equal_priority()
    started_s = time.monotonic()
    parts: dict[str, Part] = {}
    try:
        for name in given.only:
            with tempfile.TemporaryDirectory() as folder:
                parts[name] = PARTS[name](given.quick, Path(folder) / name)
            print(f"{name}: done after {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    finally:
        if parts:
            write_results("train: the training step", given, started_s, parts, list(PARTS))


if __name__ == "__main__":
    main()
