"""A student beside the memory that it reads: what serving, explaining and offline scoring open.

A store that is away costs quality, not the answer (an adapted student then answers by its folder's maps, one that reads token
states reads the null reference), unless a version is asked for that the student's folder has no copy of. Another memory than
the student's is refused. A student that reads nothing needs no store.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from jobs.config import RunConfig, load_config
from jobs.memory.store import running_store
from refbert.correction_files import correction_in
from refbert.errors import InputError
from refbert.folder import (
    CORRECTION,
    load_correction,
    load_model,
)
from refbert.memory.manifest import trained_manifest, trained_references
from refbert.memory.opening import beside_version, mixing_of, open_look_up, reading_of
from refbert.memory.reader import Reader, text_tokens
from refbert.memory.version import current_name, current_version, memory_it_is_of, version_named
from refbert.student_config import RefBertConfig
from refbert.teacher import load_tokenizer
from vector_store.client import connect
from vector_store.errors import StoreUnavailable
from vector_store.schema import Manifest
from vector_store.store import Store

log = logging.getLogger(__name__)


def student_memory_options(config: RunConfig, manifest: Manifest | None) -> dict[str, Any]:
    """Return what a student's folder says of its reading: its token budget and, where it has a memory, how to ask it."""
    if manifest is None:
        return {"text_tokens": config.teacher.tokens}
    return {
        "text_tokens": manifest.text_tokens,
        "memory": manifest.model_dump(mode="json"),
        "collection": config.store.collection,
        "references": config.references.model_dump(mode="json"),
    }


def open_reader(
    config: RunConfig,
    folder: Path,
    url: str | None,
    device: torch.device,
    *,
    text: bool = False,
    batch: int = 32,
    version: str | None = None,
) -> Reader:
    """Open a student's folder and, where `url` is its memory's, its look-up; each process opens its own.

    What corrects the student is the memory's current version, or the one that `version` names, or the folder's copy where there
    is no memory, or it is away. With `text` look-ups bring the references' texts.
    """
    model, tokenizer = load_model(folder).fuse().to(device), load_tokenizer(str(folder))
    max_tokens = text_tokens(model.config) or config.teacher.tokens
    correction, words = correction_in(folder, tokenizer.all_special_ids)
    alone = Reader(model, tokenizer, max_tokens, correction=correction, words=words, batch=batch)
    if not url:
        return alone
    client = connect(config.store, url)
    if correction:
        try:
            found = (
                version_named(client, config.store, correction.student, version)
                if version
                else current_version(client, config.store, correction.student)
            )
        except StoreUnavailable as error:
            if version not in (None, correction.version):
                raise  # the folder's copy is of another one
            log.warning("answering without references: %s", error)
            return alone
        return beside_version(alone, folder, client, found, text=text)
    manifest = trained_manifest(model.config.memory, folder)
    if not manifest:
        return alone
    read = reading_of(model.config, text)
    look_up = open_look_up(folder, manifest, tokenizer, client, config.store, config.references, read)
    return Reader(model, tokenizer, max_tokens, *look_up, mixing=mixing_of(model.config), batch=batch)


def student_run(config: RunConfig, student: str | None) -> tuple[RunConfig, Path]:
    """Return a student's folder, the run's own where none is given, and the run with the memory that this student reads.

    Of a given student its folder says which collection it reads, and how; for one that an earlier release wrote, the run's
    config.yaml beside it does. Raises InputError where neither does.
    """
    folder = Path(student).expanduser().absolute() if student else config.run_directory / "student"
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} holds no student; train one first: `python jobs/distill.py`")
    if correction := load_correction(folder):
        collection, _, asked = memory_it_is_of(correction)
        store = config.store.model_copy(update={"collection": collection})
        return config.model_copy(update={"references": asked, "store": store}), folder
    if not student:
        return config, folder
    shape = RefBertConfig.from_pretrained(folder)
    trained = folder.parent / "config.yaml"
    if references := trained_references(shape.references, folder):
        store = config.store.model_copy(update={"collection": shape.collection})
        return config.model_copy(update={"references": references, "store": store}), folder
    if shape.text_tokens and not shape.memory:  # reads no references: the folder says all there is
        return config, folder
    if not trained.exists():
        raise InputError(
            f"{folder} does not say how it reads texts and references: an earlier release wrote it; copy the config.yaml of "
            "its run beside it, or distil again"
        )
    own = load_config(trained)
    store = config.store.model_copy(update={"collection": own.store.collection})
    return config.model_copy(update={"teacher": own.teacher, "references": own.references, "store": store}), folder


def served_run(config: RunConfig, name: str, student: str | None) -> tuple[RunConfig, Path]:
    """Return one of a service's students as `student_run` does, as a run that has the student's name."""
    return student_run(config.model_copy(update={"name": name}), student)


def reads_memory(config: RunConfig, folder: Path) -> bool:
    """Whether a student reads references where there are any."""
    if (folder / CORRECTION).exists():
        return config.references.criterion != "none"
    shape = RefBertConfig.from_pretrained(folder)
    return bool(shape.memory and (shape.reads_any or shape.answers)) and config.references.criterion != "none"


def version_to_read(config: RunConfig, folder: Path, url: str | None) -> str | None:
    """Return the name of the version that corrects a student: its memory's current one, the folder's where that is away.

    None for a student that was never adapted.
    """
    correction = load_correction(folder)
    if not correction:
        return None
    if url:
        impatient = config.store.model_copy(update={"write_deadline_s": 5.0})
        with connect(config.store, url) as client:
            try:
                return current_name(client, impatient, correction.student)[1]
            except StoreUnavailable:
                pass  # `memory_of` has said so
    return correction.version


@contextmanager
def memory_of(config: RunConfig, folder: Path) -> Iterator[str | None]:
    """Yield the URL of the memory that a student reads; None where it reads none, or an embedded store does not start."""
    with ExitStack() as stack:
        url = None
        if reads_memory(config, folder):
            try:
                url = stack.enter_context(running_store(config))
            except StoreUnavailable as error:
                log.warning("going on without references: %s", error)
        check_memory(config, folder, url)
        yield url


def check_memory(config: RunConfig, folder: Path, url: str | None) -> None:
    """Refuse a memory that is not the one the student was trained with. A store that is away is no reason not to start."""
    correction = load_correction(folder)
    manifest = trained_manifest(json.loads((folder / "config.json").read_text()).get("memory"), folder)
    if not url or not (manifest or correction):
        return
    impatient = config.store.model_copy(update={"write_deadline_s": 5.0})
    with connect(config.store, url) as client:
        try:
            if correction:
                current_version(client, impatient, correction.student)
            elif manifest:
                Store(client, impatient).require(manifest)
        except StoreUnavailable as error:
            log.warning("starting without references: %s", error)
