"""The student's size and speed beside BERT-base's, references and their look-up included.

    python benchmarks/student.py [--quick] [--out DIR] [--only PART ...]

Parts: parameters; forwards on torch (float32, bfloat16, compiled) and ONNX Runtime (float32, int8). Weights are random. The
full run writes about 8 GB of made-up references into a temporary folder.
"""

from measures import student_size, student_speed
from measures.goals import arguments, measure_parts

from jobs.run.worker import quiet_libraries

PARTS = {"size": student_size.measure, "speed": student_speed.measure}


def main() -> None:
    """Measure the parts that are asked for."""
    given = arguments(__doc__ or "", list(PARTS))
    quiet_libraries()
    measure_parts("student: size and speed", given, PARTS)


if __name__ == "__main__":
    main()
