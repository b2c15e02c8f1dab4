"""Peak memory of `jobs/ingest.py`, its Ray and its store, on a corpus and on one ten times as long.

Read from /proc/PID/smaps_rollup of every process of the job, several times a second. PSS shares each page among the
processes that map it, so that no page counts twice. The goal is on anonymous and shared memory: what the job holds and
the kernel cannot drop. File pages, which the engine's and the corpus's memory maps leave in the page cache, are evicted
under pressure and grow with the data as free memory lets them; the total is in the table beside it.
"""

import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from measures.goals import Goal, Part, Rows

EVERY_S = 0.2
OBJECT_STORE_BYTES = 200 * 2**20
"""Ray would take a share of the machine's memory; fixed, so that the machine does not decide."""

ROLES = {"vector_store serve": "server", "EncodeAndStore": "encoder", "jobs/ingest.py": "driver"}
"""A process's role by a piece of its command line; all others are Ray's own."""

NOTE = (
    "jobs/ingest.py as a process of its own with its own Ray (object store of 200 MiB) and embedded server, MiniLM at 32 "
    f"tokens, sampled every {EVERY_S} s over all its processes. held: anonymous plus shared pages (Pss_Anon + Pss_Shmem), "
    "the goal's measure; total: PSS with file pages. Roles: what each held at the peak of the sum, MiB."
)


@dataclass
class Peak:
    """The largest sample so far of the pages held, with its roles, and of total PSS; bytes."""

    held: int = 0
    total: int = 0
    roles: Counter[str] = field(default_factory=Counter)

    def note(self, sample: dict[int, tuple[str, int, int]]) -> None:
        """Take in one sample: role, held and total bytes by process."""
        held = sum(process[1] for process in sample.values())
        self.total = max(self.total, sum(process[2] for process in sample.values()))
        if held > self.held:
            self.held, self.roles = held, Counter()
            for role, own, _ in sample.values():
                self.roles[role] += own


def measure(quick: bool, folder: Path) -> Part:
    """Ingest both corpora into empty stores and compare the peaks."""
    texts = 300 if quick else 2000  # at least one full batch of the encoder
    peaks = {size: ingest_peak(size, folder / str(size)) for size in (texts, 10 * texts)}
    small, large = peaks.values()
    rows: Rows = [
        {
            "texts": size,
            "held_mib": peak.held / 2**20,
            "total_mib": peak.total / 2**20,
            **{f"{role}_mib": peak.roles[role] / 2**20 for role in (*ROLES.values(), "Ray")},
        }
        for size, peak in peaks.items()
    ]
    rows.append({"texts": "10x over 1x", "held_mib": large.held / small.held, "total_mib": large.total / small.total})
    goals = [Goal("ingest_peak_memory_10x_over_1x", large.held / small.held, 1.1, "<=")]
    return Part(rows, goals, NOTE, {"texts": list(peaks), "object_store_bytes": OBJECT_STORE_BYTES})


def ingest_peak(texts: int, home: Path) -> Peak:
    """Run one ingest to its end and sample its processes meanwhile."""
    home.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"REFBERT_HOME": str(home), "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECT_STORE_BYTES)}
    script = Path(__file__).parents[2] / "jobs" / "ingest.py"
    log = home / "ingest.log"
    peak = Peak()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), f"corpus.max_texts={texts}"], env=environment, stdout=output, stderr=output
        )
        done = threading.Event()
        sampler = threading.Thread(target=sample_until, args=(done, process.pid, peak))
        sampler.start()
        code = process.wait()
        done.set()
        sampler.join()
    if code:
        raise RuntimeError(f"jobs/ingest.py of {texts} texts ended with {code}:\n{log.read_text()[-2000:]}")
    return peak


def sample_until(done: threading.Event, root: int, peak: Peak) -> None:
    """Sample the tree of processes under `root`."""
    while not done.wait(EVERY_S):
        sample = {}
        for pid in tree(root):
            try:
                sample[pid] = (role(pid), *held_and_total(pid))
            except (OSError, ValueError):  # it has just ended
                continue
        peak.note(sample)


def tree(root: int) -> list[int]:
    """The process and all its descendants: Ray's processes and the server are started by the driver."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # Behind the command's name, which may hold blanks: state, then parent.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def role(pid: int) -> str:
    """What the process is to the job."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((name for piece, name in ROLES.items() if piece in command), "Ray")


def held_and_total(pid: int) -> tuple[int, int]:
    """Anonymous plus shared-memory PSS, and all PSS, in bytes."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) * 1024
    return fields["Pss_Anon"] + fields["Pss_Shmem"], fields["Pss"]
