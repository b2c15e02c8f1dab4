"""Distil a student from its teacher or the memory (train.targets), with references read in training on request.

    python jobs/distill.py                                    the quickstart, on this machine
    python jobs/distill.py RUN.yaml train.steps=2000 train.num_workers=2
    python jobs/distill.py RUN.yaml name=mine corpus.path=mine.jsonl train.start=runs/quickstart/student   on with a student
    ray job submit -- python jobs/distill.py RUN.yaml         the same on a running cluster

References are read where student.reference_mode and references.criterion are both other than none. Fills the memory first
where the training reads it and it lacks some of the corpus. Writes into the run's directory: config.yaml, metrics.jsonl,
TensorBoard events, checkpoints/, student/, memory.json where it reads the memory and, last, manifest.json. Workers that fail
are started anew (how often: jobs/training/recovery.py) and resume from the newest intact checkpoint. Submitted again the job
resumes too, on as many workers and with the ZeRO stage that this submission asks for, or says that the run is complete.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.distill", __doc__)  # before what follows is imported, which takes seconds

import logging
from contextlib import ExitStack

from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from jobs.memory.fill import filled_memory
from jobs.memory.neighbour_plan import neighbour_plan
from jobs.memory.store import begun_memory, remember_memory, running_store
from jobs.run.directory import is_complete
from jobs.training.loop import distil
from jobs.training.tracking import check_tracking
from refbert.distillation import check_losses
from refbert.folder import load_model
from refbert.memory.texts import reference_texts
from refbert.pooling import pooling_of
from refbert.teacher import load_teacher

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Raise UnavailableError where a package is missing that the training's metrics go to, before Ray is started.

    Raises InputError where the teacher's vector is none that a student learns.
    """
    check_tracking(config)
    pooling_of(config.teacher)


def run(config: RunConfig) -> None:
    """Fill the memory where needed, and train."""
    if is_complete(config):
        log.info("run %r is complete: %s; give another name=... to train anew", config.name, config.run_directory)
        return
    if config.references.criterion != "none" and config.student.reference_mode == "none":
        log.warning(
            "references.criterion=%s finds nothing in this training: student.reference_mode=none reads no token states (concat "
            "does)", config.references.criterion,
        )  # fmt: skip
    if config.train.start:
        load_model(config.train.start)  # before the memory is filled for it
    with ExitStack() as stack:
        corpus = prepare(config)
        teacher = load_teacher(config.teacher)
        check_losses(config.loss, config.student, teacher)
        address = plan = None
        if config.needs_memory:
            url = stack.enter_context(running_store(config))
            address = filled_memory(begun_memory(config, url), url, corpus, teacher)
            remember_memory(config, address)
            if config.references.plan and config.reads_references:
                texts = reference_texts(teacher, address.manifest, config.references)
                plan = neighbour_plan(config.store, config.references, address, corpus, texts)
        distil(config, corpus, address, plan)
