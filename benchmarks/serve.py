"""The service: throughput and latency beside a bare loop and beside infinity-emb with the teacher, its start, its memory.

    python benchmarks/serve.py [--quick] [--out DIR] [--only PART ...] [--run YAML_OR_NAME]
    python benchmarks/serve.py --only infinity --infinity ENVIRONMENT [--teacher PATH] [--run YAML_OR_NAME]

Parts: throughput at 1, 8 and 64 clients, for single texts and batches of 32; soak, ten minutes of steady load; infinity, only
where `--infinity` says where its virtual environment is, or shall be made (1 to 3 GB). Serves a trained run of $REFBERT_HOME,
by default the demo's: `python jobs/demo.py` first. The goal on infinity wants a student of all-mpnet-base-v2, and that teacher.
"""

import sys
import time
from pathlib import Path

from measures import infinity, service
from measures.goals import Part, arguments, write_results

from jobs.config import load_config
from jobs.worker import quiet_libraries

PARTS = ("throughput", "soak", "infinity")


def main() -> None:
    """Measure the parts that are asked for; what was measured before a failure is written too."""
    given = arguments(
        __doc__ or "",
        PARTS,
        {
            "--run": "the run's YAML, or its name (default: the demo's)",
            "--infinity": "folder of infinity-emb's virtual environment, made where it is not there",
            "--teacher": "a model that infinity serves (default: the run's teacher)",
        },
    )
    quiet_libraries()
    config = load_config(given.run) if given.run and Path(given.run).exists() else load_config()
    if given.run and not Path(given.run).exists():
        config = config.model_copy(update={"name": given.run})
    if (trained := config.run_directory / "config.yaml").exists():
        config = load_config(trained)
    wanted = [name for name in given.only if name != "infinity" or given.infinity]
    started_s = time.monotonic()
    parts: dict[str, Part] = {}
    try:
        for name in wanted:
            if name == "throughput":
                parts[name] = service.measure(config, given.quick)
            elif name == "soak":
                parts[name] = service.soak(config, given.quick)
            else:
                parts[name] = infinity.measure(config, given.quick, Path(given.infinity).absolute(), given.teacher)
            print(f"{name}: done after {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    finally:
        if parts:
            write_results("serve: the service", given, started_s, parts, PARTS)


if __name__ == "__main__":
    main()
