"""Compare students by what they read and by how they learned, on labelled tasks and over seeds, in one command.

    python jobs/ablate.py jobs/configs/ablation-cpu.yaml ablate.folder=$GLUE_DIR
    ray job submit -- python jobs/ablate.py RUN.yaml train.gpus_per_worker=1

Arms are trained for the same epochs, and each is evaluated in its own way. Unless ablate.general_stage=false, all start from
general students, distilled on the corpus (one with references, one without):

    nearest                        reads the nearest reference
    random                         reads a random one
    null                           has the same layers, and reads the learned null reference only
    vanilla                        has no reference layers, as TinyBERT has none
    vanilla_without_distillation   the same, taught the task by its labels alone

A table of its own swaps the reference of the students that were trained with the nearest. Teachers, memories and plans are made
once per task and shared; a finished student is never trained again, so a killed ablation is continued by starting it again.
Writes ablation.json, ablation.md and ablation.png into the run's directory.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.ablate", __doc__)  # before what follows is imported, which takes seconds

import json
import logging
import time
from pathlib import Path
from typing import Any

from jobs import distill, evaluate
from jobs.config import RunConfig
from jobs.evaluation.provenance import hardware, provenance
from jobs.memory.store import running_store
from jobs.tasks.arms import VANILLA, ablate_task, task_name
from jobs.tasks.report import write_ablation
from jobs.training.tracking import check_tracking
from refbert.config import TaskConfig
from refbert.errors import InputError
from refbert.pooling import pooling_of

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Raise InputError where there is no task, or arms read what this run's students or memory have not.

    Also where the teacher's vector is none that a student learns. Raises UnavailableError where a package is missing that the
    training's metrics go to. All of it before Ray is started.
    """
    check_tracking(config)
    pooling_of(config.teacher)
    if not tasks_of(config):
        raise InputError("no task to compare students on; set ablate.tasks, or task")
    if config.ablate.mixing and not config.references.dense_index:
        raise InputError(
            "ablate.mixing finds near texts by their words, and the memory has no index of those; set "
            "references.dense_index=true"
        )
    reading = [arm for arm in config.ablate.arms if arm not in VANILLA]
    if reading and not config.reads_references:
        raise InputError(
            f"the arms {', '.join(reading)} read token states, which this run's students do not: "
            f"student.reference_mode={config.student.reference_mode}, references.criterion={config.references.criterion}; set "
            "them to concat and keywords, or ablate.arms=[vanilla, vanilla_without_distillation]"
        )


def tasks_of(config: RunConfig) -> tuple[TaskConfig, ...]:
    """Return the tasks that students are compared on."""
    return config.ablate.tasks or ((config.task,) if config.task else ())


def run(config: RunConfig) -> None:
    """Train and score whatever is missing, and write the report."""
    started_s = time.monotonic()
    with running_store(config) as url:
        starts = general_stages(config) if config.ablate.general_stage else {}
        found = {}
        for task in tasks_of(config):
            chosen = config.model_copy(update={"task": _in_folder(task, config.ablate.folder)})
            found[task_name(task)] = ablate_task(chosen, url, starts)
    report = {
        "config": config.model_dump(mode="json"),
        "hardware": hardware(),
        "general": {name: _general(start) for name, start in starts.items()},
        "tasks": found,
        **provenance(started_s),
    }
    write_ablation(report, config.run_directory, config.ablate.results)
    log.info("report: %s", config.run_directory / "ablation.md")


def general_stages(config: RunConfig) -> dict[str, Path]:
    """Distil the students that all arms start from, one with references and one without; returns their folders."""
    starts = {}
    modes = {"vanilla" if arm in VANILLA else "references" for arm in config.ablate.arms}
    for mode in sorted(modes):
        update: dict[str, Any] = {"name": f"{config.name}-general-{mode}"}
        if mode == "vanilla":
            update["student"] = config.student.model_copy(update={"reference_mode": "none"})
        general = config.model_copy(update=update)
        log.info("general stage: %s", general.run_directory)
        distill.run(general)
        if not (general.run_directory / "report.json").exists():
            evaluate.run(general)
        starts[mode] = general.run_directory / "student"
    return starts


def _in_folder(task: TaskConfig, folder: str | None) -> TaskConfig:
    return task if task.path or task.name == "custom" else task.model_copy(update={"path": folder})


def _general(student: Path) -> dict[str, Any]:
    report = json.loads((student.parent / "report.json").read_text())
    return {key: report[key] for key in ("fidelity", "student", "distill")}
