"""Adapt a student's answers to the texts of a new domain, without training it.

    python jobs/adapt.py RUN.yaml corpus.path=tickets.jsonl corpus.text_field=body
    python jobs/adapt.py RUN.yaml corpus.path=more/                          more texts: the memory grows, and is fitted anew
    python jobs/adapt.py RUN.yaml corpus.path=today.jsonl adapt.refit=false  they are read at once, by the maps there are
    python jobs/adapt.py RUN.yaml corpus.path=new.csv adapt.collection=support adapt.references.count=64
    python jobs/adapt.py RUN.yaml adapt.student=/models/student store.url=http://qdrant:6334
    ray job submit -- python jobs/adapt.py RUN.yaml ingest.num_encoders=8 ingest.gpus_per_encoder=1

The corpus goes through the teacher into the memory adapt.collection (Ray Data; what is stored already is not encoded again).
Then closed-form maps and each stored text's residual are fitted on all that is stored, and become the version that readers of
this student switch to: a running service does so within serve.memory_check_s, without a restart. The student's folder gets a
copy of the maps, for answers without a store. Held-out texts of the corpus say what it gained, in runs/<name>/adapted.json.
A killed job is continued by starting it again; until it ends, the version before goes on being read.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.adapt", __doc__)  # before what follows is imported, which takes seconds

import json
import logging
from pathlib import Path

from jobs.config import RunConfig
from jobs.corpus.prepared import prepare
from jobs.memory.adaptation import adapt
from jobs.memory.fill import fill_memory
from jobs.memory.gain import measured_gain
from jobs.memory.store import at_one_version, running_store
from jobs.memory.student_memory import adapting_student
from jobs.run.directory import training_lock
from refbert.atomic import write_whole
from refbert.folder import load_model, save_correction
from refbert.memory.version import version_name
from refbert.teacher import load_teacher
from vector_store.client import connect
from vector_store.store import Store

log = logging.getLogger(__name__)

CONTINUES_RUN = True
"""Without a YAML, the options are those that the named run was trained with."""


def planned(config: RunConfig) -> RunConfig:
    """Return the run with the memory that is adapted to, in the place of the one that it trains with."""
    options = config.adapt
    store = config.store.model_copy(update={"collection": options.collection})
    return config.model_copy(update={"references": options.references, "store": store})


def check(config: RunConfig) -> None:
    """Raise InputError where there is no student; before Ray is started."""
    load_model(student_folder(config))


def student_folder(config: RunConfig) -> Path:
    """Return the folder of the student whose answers are to be corrected."""
    return Path(config.adapt.student or config.run_directory / "student").expanduser().absolute()


def run(config: RunConfig) -> None:
    """Fill the memory, adapt the student's answers to it, and say what that gained."""
    options, folder, memory = config.adapt, student_folder(config), planned(config)
    config.run_directory.mkdir(parents=True, exist_ok=True)
    with training_lock(config.run_directory), running_store(memory) as url:
        memory = at_one_version(memory, url)  # whatever an alias names when the job ends
        teacher = load_teacher(config.teacher)
        corpus = prepare(memory)
        student, name = adapting_student(memory, folder, teacher, batch=options.batch)
        assert student.texts is not None
        memory = memory.model_copy(update={"references": student.texts.references})  # as wide as the student's words
        fill_memory(memory, url, corpus, teacher, corrected=folder)
        with connect(memory.store, url) as client:
            store = Store(client, memory.store)
            if not options.refit and (version := version_name(store, name)):
                log.info("new texts are read by version %s of %r", version, options.collection)
                return
            scratch = config.run_directory / "adapt" / options.collection / name
            adapted = adapt(store, student, name, scratch, options, config.seed)
            save_correction(folder, adapted.correction)
            gain = measured_gain(memory, client, teacher, student, adapted.correction, corpus, options.texts)
    left_out = {"alone": adapted.alone, "global": adapted.kriging.before, "references": adapted.kriging.after}
    report = {
        "student": name,
        "collection": options.collection,
        "version": adapted.correction.version,
        "references": adapted.references,
        "correction_bytes": adapted.correction.num_bytes,
        "left_out": left_out,
        "heldout": gain,
    }
    write_whole(config.run_directory / "adapted.json", json.dumps(report, indent=2) + "\n")
    shown = gain or left_out
    log.info(
        "student %s reads version %s of %r (%d references): cosine to the teacher %.3f alone, %.3f corrected, %.3f with "
        "references (%s)", name, adapted.correction.version, options.collection, adapted.references, shown["alone"],
        shown["global"], shown["references"], f"{gain['texts']:.0f} held-out texts" if gain else "stored texts, left out",
    )  # fmt: skip
