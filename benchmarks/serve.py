"""The service: throughput and latency beside a bare loop and beside infinity-emb with the teacher, cold start, memory.

    python benchmarks/serve.py [--quick] [--out DIR] [--only PART ...] [--run YAML_OR_NAME]
    python benchmarks/serve.py --only infinity --infinity ENVIRONMENT [--teacher PATH] [--run YAML_OR_NAME]

Parts: throughput at 1, 8 and 64 clients, for single texts and batches of 32; soak, ten minutes of steady load; infinity, only
with `--infinity`, the folder of its virtual environment (1 to 3 GB; made where it is missing). Serves a trained run of
$REFBERT_HOME, by default the demo's: run `python jobs/demo.py` first. The goal on infinity needs the teacher
all-mpnet-base-v2, and a student of it.
"""

from collections.abc import Callable
from pathlib import Path

from measures import infinity, service
from measures.goals import Part, arguments, measure_parts

from jobs.config import load_config
from jobs.run.worker import quiet_libraries

PARTS = ("throughput", "soak", "infinity")


def main() -> None:
    """Measure the requested parts."""
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
    given.only = [name for name in given.only if name != "infinity" or given.infinity]
    parts: dict[str, Callable[[bool, Path], Part]] = {
        "throughput": lambda quick, _: service.measure(config, quick),
        "soak": lambda quick, _: service.soak(config, quick),
        "infinity": lambda quick, _: infinity.measure(config, quick, Path(given.infinity).absolute(), given.teacher),
    }
    measure_parts("serve: the service", given, parts)


if __name__ == "__main__":
    main()
