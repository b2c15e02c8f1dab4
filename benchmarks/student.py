"""The student's size and speed beside BERT-base's, references and their look-up included.

    python benchmarks/student.py [--quick] [--out DIR] [--only PART ...]

Parts: parameters; forwards on torch (float32, bfloat16, compiled) and ONNX Runtime (float32, int8). Weights are random. The
full run writes about 8 GB of made-up references into a temporary folder.
"""

import tempfile
import time
from pathlib import Path

from measures import student_size, student_speed
from measures.goals import Part, arguments, write_results

from jobs.worker import quiet_libraries

PARTS = {"size": student_size.measure, "speed": student_speed.measure}


def main() -> None:
    """Measure the parts that are asked for."""
    given = arguments(__doc__ or "", list(PARTS))
    quiet_libraries()
    started_s = time.monotonic()
    parts: dict[str, Part] = {}
    try:
        for name in given.only:
            with tempfile.TemporaryDirectory() as folder:
                parts[name] = PARTS[name](given.quick, Path(folder))
    finally:
        if parts:
            write_results("student: size and speed", given, started_s, parts, list(PARTS))


if __name__ == "__main__":
    main()
