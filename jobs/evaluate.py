"""Measure a distilled student against its teacher, with controls, and write the report.

    python jobs/evaluate.py [RUN.yaml] [key=value ...]
    python jobs/evaluate.py corpus.path=tickets.jsonl corpus.text_field=body      an adapted student, on its new domain

On held-out text: fidelity; a linear classifier on frozen features where the corpus has labels; latency of teacher and student.
A student that reads token states is also measured with only the reference swapped (nearest, null, random) and timed with the
look-up, and what one text read is written to example.json. A student that was adapted to a memory is measured as it answers,
too: corrected without a look-up, with references, and by how near these are.
Writes report.json, report.md and plots into the run's directory.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.evaluate", __doc__)  # before what follows is imported, which takes seconds

import logging
import time
from contextlib import ExitStack

from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from jobs.evaluation.corrected import collection_of
from jobs.evaluation.explanation_report import write_explanation
from jobs.evaluation.measurements import EvaluationJob, measure
from jobs.evaluation.provenance import provenance
from jobs.evaluation.report import verdict, warnings, write_report
from jobs.memory.store import MemoryAddress, running_store
from jobs.run.directory import require_trained
from refbert.memory.manifest import manifest_of
from refbert.teacher import load_teacher
from vector_store.client import connect
from vector_store.store import Store

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Raise InputError where the run has not been trained; before Ray is started."""
    require_trained(config)


def run(config: RunConfig) -> None:
    """Evaluate the run's student and write the report."""
    started_s = time.monotonic()
    check(config)
    corpus = prepare(config)
    teacher = load_teacher(config.teacher)
    student = config.run_directory / "student"
    is_adapted = collection_of(student) is not None
    with ExitStack() as stack:
        url = stack.enter_context(running_store(config)) if config.needs_memory or is_adapted else None
        address = None
        if url and config.needs_memory:
            with connect(config.store, url) as client:
                store = Store(client, config.store)
                manifest = store.require(manifest_of(teacher, config.references))
                address = MemoryAddress(url, manifest, store.config.collection)
        report = measure(EvaluationJob(config, address, corpus, student, url if is_adapted else None))
    report["run"] |= provenance(started_s)
    if explanation := report.pop("explanation", None):
        report["explanation"] = write_explanation(explanation, config.run_directory, "example")
    write_report(report, config.run_directory)
    for line in warnings(report):
        log.warning("%s", line)
    log.info("%s", verdict(report) or "nothing is read")
    log.info("report: %s", config.run_directory / "report.md")
