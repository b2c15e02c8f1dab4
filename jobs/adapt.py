"""Adapt a student's answers to the texts of a new domain, without training it.

    python jobs/adapt.py RUN.yaml corpus.path=tickets.jsonl corpus.text_field=body
    python jobs/adapt.py RUN.yaml corpus.path=more/                          more texts: stored as well, the maps fitted anew
    python jobs/adapt.py RUN.yaml corpus.path=today.jsonl adapt.refit=false  they are read at once, by the maps there are
    python jobs/adapt.py RUN.yaml corpus.path=new.csv adapt.collection=support adapt.references.count=64
    python jobs/adapt.py RUN.yaml adapt.student=/models/student store.url=http://qdrant:6334
    python jobs/adapt.py RUN.yaml adapt.adopt.collection=docs adapt.adopt.text_field=page_content   an index there is already
    ray job submit -- python jobs/adapt.py RUN.yaml ingest.num_encoders=8 ingest.gpus_per_encoder=1

The corpus goes through the teacher into the memory adapt.collection (Ray Data; what is stored already is not encoded again).
Then closed-form maps are fitted on all that is stored, and each stored text gets its residual: both become the version that
readers of this student get. A running service that reads this memory sees a new version within serve.memory_check_s, and
switches to it without a restart. The student's folder gets a copy of the maps, for answers without a store. Held-out texts of
the corpus say what the student gained, in runs/<name>/adapted.json.
With adapt.adopt.collection no corpus is read: a Qdrant collection of the teacher's embeddings (with any vector name; elsewhere
than the store with adapt.adopt.url) is copied into the memory without a forward of the teacher, but for a sample that is
compared. Left-out texts then say what was gained.
A killed job is continued by starting it again; until it ends, the version before goes on being read.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.adapt", __doc__)  # before what follows is imported, which takes seconds

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from jobs.config import RunConfig
from jobs.corpus.prepared import REJECTED, prepare
from jobs.memory.corrected import corrected_student
from jobs.memory.fill import fill_memory, open_collection
from jobs.memory.gain import HeldOutTexts, measured_gain
from jobs.memory.store import at_one_version, running_store
from jobs.run.directory import training_lock
from refbert.atomic import write_whole
from refbert.errors import InputError
from refbert.folder import load_model, save_correction
from refbert.memory.adaptation import adapt, adapting_student
from refbert.memory.adoption import Checked, adopt, checked
from refbert.memory.texts import ReferenceTexts
from refbert.memory.version import version_name
from refbert.pooling import pooling_of
from refbert.teacher import Teacher, load_teacher
from vector_store.client import Client, connect
from vector_store.store import Store

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Raise InputError where there is no student, or the teacher's vector is none that one learns; before Ray is started."""
    load_model(student_folder(config))
    pooling_of(config.teacher)


def student_folder(config: RunConfig) -> Path:
    """Return the folder of the student whose answers are to be corrected."""
    return Path(config.adapt.student or config.run_directory / "student").expanduser().absolute()


def run(config: RunConfig) -> None:
    """Fill the memory, adapt the student's answers to it, and say what that gained."""
    adapted_to_texts(config)


def adapted_to_texts(config: RunConfig, heldout: HeldOutTexts | None = None, is_filled: bool = False) -> dict[str, Any]:
    """Do what `run` does; return what it writes into adapted.json, empty where nothing was fitted.

    The gain is measured on the corpus's own held-out texts, or on those that are given, whose teacher is taken, too. Where the
    memory `is_filled`, nothing is stored: the caller knows that it holds the corpus.
    """
    options, folder, memory = config.adapt, student_folder(config), config.adapting()
    config.run_directory.mkdir(parents=True, exist_ok=True)
    gain: dict[str, float] = {}
    with training_lock(config.run_directory), running_store(memory) as url:
        memory = at_one_version(memory, url)  # whatever an alias names when the job ends
        teacher = heldout.teacher if heldout else load_teacher(config.teacher)
        adopting = options.adopt.collection is not None
        found = checked_collection(memory, url, teacher) if adopting else None
        corpus = None if found else prepare(memory, heldout=False)
        student, name = adapting_student(memory.references, folder, teacher, batch=options.batch)
        assert student.texts is not None
        memory = memory.model_copy(update={"references": student.texts.references})  # as wide as the student's words
        with connect(memory.store, url) as client, ExitStack() as stack:
            store = Store(client, memory.store)
            if corpus:
                open_collection(store, memory.references, corpus, teacher, config.seed)
            else:
                store.ensure(student.texts.manifest)
            filling = memory
            if options.refit and memory.store.bulk_load:
                # One pause for all: an index of what is stored now would be undone by the residuals.
                stack.enter_context(store.bulk_load())
                filling = memory.model_copy(update={"store": memory.store.model_copy(update={"bulk_load": False})})
            if corpus and not is_filled:
                fill_memory(filling, url, corpus, teacher, corrected=folder)
            elif found:
                adopt_collection(filling, url, client, found, student.texts, folder)
            if not options.refit and (version := version_name(store, name)):
                log.info("new texts are read by version %s of %r", version, options.collection)
                return {}
            scratch = config.run_directory / "adapt" / options.collection / name
            adapted = adapt(store, student, name, scratch, options, config.seed)
            save_correction(folder, adapted.correction)
            if asked := heldout or (corpus and HeldOutTexts(corpus, teacher)):
                gain = measured_gain(memory, client, student, adapted.correction, asked, options.texts)
    left_out = {"alone": adapted.alone, "global": adapted.kriging.before, "references": adapted.kriging.after}
    report: dict[str, Any] = {
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
    return report


def checked_collection(memory: RunConfig, url: str, teacher: Teacher) -> Checked:
    """See that the collection to adopt holds the teacher's embeddings. Raises InputError where not; nothing is written."""
    options = memory.adapt.adopt
    if options.collection == memory.store.collection and options.url is None:
        raise InputError(
            f"adapt.adopt.collection and adapt.collection are both {options.collection!r}; give the memory another name: "
            "adapt.collection=..."
        )
    with their_client(memory, url) as theirs:
        return checked(theirs, options, teacher, memory.store)


def adopt_collection(
    memory: RunConfig, url: str, client: Client, found: Checked, texts: ReferenceTexts, folder: Path
) -> None:
    """Copy a collection into the memory; without a refit its texts get residuals of the version there is."""
    corrected = None if memory.adapt.refit else corrected_student(memory, folder, client, torch.device("cpu"))
    with their_client(memory, url) as theirs:
        rejected = memory.run_directory / REJECTED
        adopt(theirs, found, memory.adapt.adopt, client, memory.store, texts, rejected, corrected)


def their_client(memory: RunConfig, url: str) -> Client:
    """Open a client of the server that holds the collection to adopt."""
    options = memory.adapt.adopt
    where = options.url or url
    key = {"api_key_env": options.api_key_env} if options.url else {}
    return connect(memory.store.model_copy(update={"url": where, **key}), where)
