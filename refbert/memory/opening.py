"""Open a student's folder for inference, without its memory or beside it.

    with refbert.load("runs/x/student", "http://qdrant:6334") as student:  # or a store's directory, or nothing
        vectors = student.encode(texts)
        labels = student.predict(texts)

The second argument may also be a function of your own (`LookUp` of `reader.py`). A student that is loaded without references
looks nothing up: an adapted one is corrected by its global part only, one that reads token states reads the null reference, and
one that mixes in its teacher's answers gives its own. Neither gRPC nor a database is imported then.
"""

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from refbert.answers import ANSWERS, Mixing
from refbert.config import ReferenceConfig
from refbert.correction_files import correction_in
from refbert.errors import InputError, UnavailableError
from refbert.folder import load_model, load_word_table
from refbert.memory.batch import ReferenceKeys
from refbert.memory.manifest import trained_manifest, trained_references
from refbert.memory.reader import LookUp, Reader, text_tokens
from refbert.memory.retrieval import NeighbourSource, open_retriever
from refbert.memory.texts import ReferenceTexts
from refbert.student_config import RefBertConfig
from refbert.teacher import load_tokenizer
from refbert.words import WordVectors
from vector_store.config import StoreConfig
from vector_store.errors import CollectionMissing
from vector_store.schema import STATES_ALONE, Manifest, Parts

if TYPE_CHECKING:  # needs gRPC, which a student without references does not
    from refbert.memory.version import MemoryVersion
    from vector_store.client import Client

FIRST_ANSWER_S = 10.0
"""How long `load` waits for a store that does not answer."""


def load(
    folder: str | Path,
    references: str | Path | LookUp | None = None,
    device: str | torch.device = "cpu",
    tokens: int | None = None,
    batch: int = 32,
    replica: bool = False,
    *,
    text: bool = False,
) -> Reader:
    """Open a `student/` folder, or a copy of it, for inference. `tokens` cuts texts; by default where its teacher's were cut.

    `references` says where its memory is: the URL of a Qdrant server (its key, if any, is in $QDRANT_API_KEY), or a store's
    directory; or it is a `LookUp`. A memory that goes away later costs quality, not an error. Close the reader to let it go.
    With `replica` an adapted student's memory is copied into this process now, and asked no more. With `text` look-ups
    bring the references' texts, for explanations.

    Raises InputError for a folder that is no student, or that cannot read references; UnavailableError without the packages
    of the extra `memory`; StoreError where there is no store, or it holds another memory than the student's.
    """
    path = Path(folder).expanduser()
    model = load_model(path).fuse().to(device)
    tokenizer = load_tokenizer(str(path))
    most = tokens or text_tokens(model.config) or model.config.max_position_embeddings
    if not (references is None or isinstance(references, str | Path) or callable(references)):
        raise InputError(
            f"references={references!r} is neither a server's URL, nor a store's directory, nor a function"
        )
    correction, words = correction_in(path, tokenizer.all_special_ids)
    if not isinstance(references, str | Path):
        return Reader(model, tokenizer, most, source=references, correction=correction, words=words, batch=batch)
    manifest = options = None
    if correction is None:  # else the correction says which memory it is of, whatever the student was trained with
        manifest, options = (
            trained_manifest(model.config.memory, path),
            trained_references(model.config.references, path),
        )
        if manifest is None:
            raise InputError(f"{path} was trained without a memory; load it without references")
        if options is None:
            raise InputError(
                f"{path} does not say how it looks up references: an earlier release wrote it; distil again"
            )
        if options.criterion == "none" or not (model.config.reads_any or model.config.answers):
            raise InputError(f"{path} was trained to read no references; load it without references")
    try:
        from refbert.memory.version import current_version, memory_it_is_of
        from vector_store.location import connect_to
        from vector_store.store import Store, collections_there
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"reading a memory needs {error.name}, which is not installed: pip install 'refbert[memory]', or load the student "
            "without references"
        ) from None
    collection = memory_it_is_of(correction)[0] if correction else model.config.collection
    store = StoreConfig(collection=collection, write_deadline_s=FIRST_ANSWER_S)
    with ExitStack() as stack:
        client = stack.enter_context(connect_to(str(references), store))
        try:
            if correction:
                version = current_version(client, store, correction.student)
                alone = Reader(model, tokenizer, most, correction=correction, words=words, batch=batch)
                reader = beside_version(alone, path, client, version, text=text, replica=replica)
            else:
                assert manifest is not None
                assert options is not None
                Store(client, store).require(manifest)
                read = reading_of(model.config, text)
                look_up = open_look_up(path, manifest, tokenizer, client, store, options, read)
                reader = Reader(model, tokenizer, most, *look_up, mixing=mixing_of(model.config), batch=batch)
        except CollectionMissing:
            there = collections_there(client)
            raise CollectionMissing(
                f"{path} reads the memory {collection!r}, and {client.url} has no such collection (there are: {there}); "
                "give the store that has it, or adapt the student to a memory there"
            ) from None
        stack.callback(setattr, reader, "_is_closed", True)
        reader._opened = stack.pop_all()
    return reader


def mixing_of(config: RefBertConfig) -> Mixing | None:
    """How a student's answers are mixed with its teacher's of near texts; None where they are not."""
    return Mixing(**config.answers) if config.answers else None


def reading_of(config: RefBertConfig, text: bool = False) -> Parts:
    """What a look-up reads of a reference for a student that nothing corrects: token states, or what its teacher answered."""
    return Parts(states=False, text=text, residual_of=ANSWERS) if config.answers else Parts(text=text)


def beside_version(
    student: Reader,
    folder: Path,
    client: "Client",
    version: "MemoryVersion",
    *,
    text: bool = False,
    own_answers: bool = False,
    replica: bool = False,
    keyed: bool = True,
) -> Reader:
    """Return a student beside a version of its memory, which corrects it; the model is shared. A `replica` asks no store.

    `keyed`, look-ups bring the keys that references are weighed by; else the vectors and tokens that keys are made of.
    """
    reader, read = copy.copy(student), version.parts(text)
    reader.correction, reader.own_answers = version.correction, own_answers
    version.correction.part.to(student.model.device)
    reader.texts = texts = texts_of_folder(
        folder, version.manifest, student.tokenizer, version.references, student.words
    )
    if replica:
        from refbert.memory.replica import Replica
        from vector_store.store import Store

        reader.source = Replica(texts, version.correction, Store(client, version.store).read(read), read)
    else:
        keys = ReferenceKeys(version.correction, student.words) if keyed and student.words is not None else None
        reader.source = open_retriever(client, version.store, texts, version.references.criterion, read, keys=keys)
    return reader


def open_look_up(
    folder: Path,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    client: "Client",
    store: StoreConfig,
    references: ReferenceConfig,
    read: Parts = STATES_ALONE,
) -> tuple[ReferenceTexts, NeighbourSource]:
    """Open the query builder and the neighbour source of a student that nothing corrects."""
    texts = texts_of_folder(folder, manifest, tokenizer, references)
    return texts, open_retriever(client, store, texts, references.criterion, read)


def texts_of_folder(
    folder: Path,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    references: ReferenceConfig,
    words: WordVectors | None = None,
) -> ReferenceTexts:
    """Make the query builder of a student's folder; `words` are those of the folder, if they are loaded."""
    if not manifest.dense_index:
        words = None
    elif words is None:
        words = WordVectors(load_word_table(folder), tokenizer.all_special_ids)
    return ReferenceTexts(manifest, references, tokenizer, words)
