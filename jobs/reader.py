"""A trained student beside the memory it reads: what serving, explaining and offline scoring share.

A store that is away costs quality, never an answer: its texts then read the null reference. Another memory than the student's
is refused. A student that reads nothing needs no store.
"""

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerBase

from jobs.config import RunConfig, load_config
from jobs.memory import (
    SENTENCE_TABLE,
    NeighbourSource,
    ReferenceTexts,
    connect_store,
    open_retriever,
    running_store,
    trained_manifest,
)
from jobs.stream import reference_batch
from refbert.corpus import Text
from refbert.distillation import DistillBatch
from refbert.errors import InputError
from refbert.student_config import RefBertConfig
from refbert.teacher import Tokens, load_tokenizer, tokenize
from refbert.trained import load_model
from vector_store.client import Client
from vector_store.errors import StoreError, StoreUnavailable
from vector_store.schema import Manifest, Neighbours
from vector_store.store import Store

log = logging.getLogger(__name__)


class ReferenceRead(BaseModel):
    """Which reference a text read, and which rung of the degrade ladder brought it."""

    step: Literal["live", "cached", "null"]
    id: str | None
    text: Text | None
    score: float


def references_read(found: Neighbours | None, row: int) -> list[ReferenceRead]:
    """Say what a text read, the best first; the null reference where there was nothing to read."""
    if found is None or not found.ids[row]:
        step = "null" if found is None else found.steps[row]
        return [ReferenceRead(step=step, id=None, text=None, score=0.0)]
    read = zip(found.ids[row], found.texts[row], found.scores[row].tolist(), strict=False)  # scores are padded
    return [ReferenceRead(step=found.steps[row], id=id_, text=text, score=score) for id_, text, score in read]


class Reader:
    """A student, its tokenizer and its look-up; `source` is None where it reads the null reference only, or nothing.

    Threads may share everything but the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        texts: ReferenceTexts | None,
        source: NeighbourSource | None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.texts = texts
        self.source = source
        self._tokenizing = threading.Lock()

    def tokenize(self, texts: Sequence[Text]) -> Tokens:
        """Return what the student reads of the texts themselves."""
        with self._tokenizing:
            return tokenize(self.tokenizer, texts, self.max_tokens)

    def look_up(
        self, texts: Sequence[Text], tokens: Tokens, documents: Sequence[str | None] | None = None
    ) -> Neighbours | None:
        """Find the texts' references; None where there is no memory, or a broken one."""
        if self.source is None or self.texts is None:
            return None
        try:
            return self.source.neighbours(self.texts.queries(texts, tokens.input_ids, tokens.mask, documents))
        except StoreError as error:  # not only away, but broken: readers still get their answer
            log.warning("answering without references: %s", error)
            return None

    def inputs(self, tokens: Tokens, found: Neighbours | None) -> DistillBatch:
        """Put tokens and references where the student is."""
        ids, mask, segments = tokens
        batch = reference_batch(ids, mask, found, self.model.config.reference_dim, token_type_ids=segments)
        return batch.to(self.model.device)


def open_reader(
    config: RunConfig, folder: Path, url: str | None, device: torch.device, *, with_text: bool = False
) -> Reader:
    """Open a student's folder and, where `url` is its memory's, its look-up; each process opens its own."""
    model, tokenizer = load_model(folder).fuse().to(device), load_tokenizer(str(folder))
    manifest = trained_manifest(model.config.memory, folder)
    max_tokens = manifest.text_tokens if manifest else config.teacher.tokens
    if not (url and manifest):
        return Reader(model, tokenizer, max_tokens, None, None)
    texts, source = open_look_up(config, folder, manifest, tokenizer, connect_store(config, url), with_text=with_text)
    return Reader(model, tokenizer, max_tokens, texts, source)


def open_look_up(
    config: RunConfig,
    folder: Path,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    client: Client,
    *,
    with_text: bool = False,
) -> tuple[ReferenceTexts, NeighbourSource]:
    """Open what a student's texts ask with, and whom they ask."""
    table = load_file(folder / SENTENCE_TABLE)["table"] if manifest.dense_index else None
    texts = ReferenceTexts(manifest, config.references, tokenizer, table)
    return texts, open_retriever(client, config.store, texts, config.references.criterion, with_text=with_text)


def student_run(config: RunConfig, student: str | None) -> tuple[RunConfig, Path]:
    """Return a student's folder, the run's own where none is given, and the run with the memory that this student reads.

    Where a config.yaml lies beside a given folder, what it says of teacher, references and collection goes.
    """
    folder = Path(student).expanduser().absolute() if student else config.run_directory / "student"
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} holds no student; train one first: `python jobs/distill.py`")
    trained = folder.parent / "config.yaml"
    if student and trained.exists():
        own = load_config(trained)
        store = config.store.model_copy(update={"collection": own.store.collection})
        config = config.model_copy(update={"teacher": own.teacher, "references": own.references, "store": store})
    return config, folder


def reads_memory(config: RunConfig, folder: Path) -> bool:
    """Whether a student reads references where there are any."""
    shape = RefBertConfig.from_pretrained(folder)
    return bool(shape.memory) and shape.reads_any and config.references.criterion != "none"


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
    manifest = trained_manifest(json.loads((folder / "config.json").read_text()).get("memory"), folder)
    if not url or not manifest:
        return
    impatient = config.store.model_copy(update={"write_deadline_s": 5.0})
    with connect_store(config, url) as client:
        try:
            Store(client, impatient).require(manifest)
        except StoreUnavailable as error:
            log.warning("starting without references: %s", error)
