"""A trained student beside the memory it reads: texts in, vectors or labels out. `refbert.memory.opening` opens one.

`Reader.forwards` takes texts to the student's outputs, in batches: on a CPU up to as many side by side as torch has threads, 8
at most, each with its own look-up; on a GPU, or with one thread, one after another, with the next look-up in the background.
`encode`, `predict`, adapting, evaluation, the scoring of tasks and jobs/predict.py use `forwards`; the service, whose texts
come one by one, calls the methods that `forwards` is made of.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from refbert.answers import Mixing, mixed
from refbert.batch import Batch, moved
from refbert.correction import Corrected, Correction, check_dimensions, shorten
from refbert.errors import InputError
from refbert.memory.batch import references_to_read, student_batch
from refbert.memory.parallel import at_once, in_parallel
from refbert.memory.retrieval import NeighbourSource
from refbert.memory.texts import ReferenceTexts
from refbert.passages import Text, by_length, normalise
from refbert.student import RefBertForSequenceClassification
from refbert.student_config import RefBertConfig
from refbert.teacher import Tokens, tokenize
from refbert.words import WordVectors
from vector_store.errors import StoreError
from vector_store.pipeline import pipelined
from vector_store.schema import Neighbours, Rung

log = logging.getLogger(__name__)

LookUp: TypeAlias = Callable[[Sequence[Text]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
"""Texts to their references: token ids (texts, ref_tokens), states (texts, ref_tokens, reference_dim), mask
(texts, ref_tokens), where a row of zeros is a text without a reference."""


class ReferenceRead(BaseModel):
    """Which reference a text read, and which rung of the degrade ladder brought it."""

    rung: Rung
    id: str | None
    text: Text | None
    score: float


def references_read(found: Neighbours | None, row: int) -> list[ReferenceRead]:
    """Say what a text read, the best first; the null reference where there was nothing to read."""
    if found is None or not found.ids[row]:
        rung = "null" if found is None else found.rungs[row]
        return [ReferenceRead(rung=rung, id=None, text=None, score=0.0)]
    read = zip(found.ids[row], found.texts[row], found.scores[row].tolist(), strict=False)  # scores are padded
    return [ReferenceRead(rung=found.rungs[row], id=id_, text=text, score=score) for id_, text, score in read]


class Prediction(NamedTuple):
    """The best label and its probability; for a student that answers with a number, its one label and that number."""

    label: str
    score: float


class Forward(NamedTuple):
    """One forward: which rows of the texts it holds, their tokens, their references, what the model says of them, and how that
    was corrected, where it was."""

    rows: list[int]
    tokens: Tokens
    found: Neighbours | None
    output: Any
    corrected: Corrected | None = None


class Reader:
    """A student, its tokenizer and its look-up.

    `source` is a neighbour source, which `texts` make queries for, or a `LookUp` of one's own; None where the null reference is
    read. A `correction` needs the `words` of texts; what it corrects by references needs a source of vectors and residuals.
    With `own_answers` a text that is stored gets its teacher's own vector. With `mixing` the labels are mixed with what the
    teacher answered of the references; then the student itself reads none. A store that is broken costs quality, never an
    answer, unless the reader is `strict`. Threads may share it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        texts: ReferenceTexts | None = None,
        source: NeighbourSource | LookUp | None = None,
        *,
        correction: Correction | None = None,
        words: WordVectors | None = None,
        own_answers: bool = False,
        mixing: Mixing | None = None,
        batch: int = 32,
        strict: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.texts = texts
        self.source: Any = source
        self.correction, self.words = correction, words
        if correction and words is not None:
            correction.part.to(model.device)
            words.to(model.device)
        self.own_answers, self.mixing = own_answers, mixing
        self.batch = batch
        self.strict = strict
        self._opened = ExitStack()  # the memory, where `load` opened one
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the memory go where `load` opened one; this reader answers no more then."""
        self._opened.close()

    def encode(self, texts: Sequence[Text], dimensions: int | None = None) -> NDArray[np.float32]:
        """Return the (texts, dim) sentence vectors in the teacher's space, L2-normalised.

        With fewer `dimensions` an adapted student's are (texts, dimensions), in the first principal components of its memory:
        see `refbert.correction.shorten`. Raises InputError for another student.
        """
        width = dimensions if dimensions is not None else self.model.config.dim
        if width != self.model.config.dim:
            check_dimensions(width, self.model.config.dim, self.correction)
        vectors = np.empty((len(texts), width), np.float32)
        for forward in self.forwards(texts):
            answers = F.normalize(forward.output.sentence_embedding, dim=-1)
            if width != self.model.config.dim:
                answers = shorten(answers, width, self.correction)
            vectors[forward.rows] = answers.cpu().numpy()
        return vectors

    def predict(self, texts: Sequence[Text]) -> list[Prediction]:
        """Return each text's label and score. Raises InputError for a student without a head."""
        if not isinstance(self.model, RefBertForSequenceClassification):
            raise InputError("this student has no head, so it predicts nothing; use encode, or distil one on a task")
        names: Any = self.model.config.id2label
        is_number = self.model.config.num_labels == 1
        predictions = [Prediction("", 0.0)] * len(texts)
        for rows, _, _, output, _ in self.forwards(texts):
            scores, best = (output.logits if is_number else output.logits.softmax(-1)).max(-1)
            for row, score, label in zip(rows, scores.tolist(), best.tolist(), strict=True):
                predictions[row] = Prediction(names[label], score)
        return predictions

    def forwards(
        self,
        texts: Sequence[Text],
        documents: Sequence[str | None] | None = None,
        *,
        in_order: bool = False,
        output_projected_states: bool = False,
    ) -> Iterator[Forward]:
        """Yield the forwards of some texts, each of like length, the shortest first, or `in_order` of the texts.

        `documents` name each text's document, which it does not read. On a CPU as many batches run at once as torch has
        threads; elsewhere the next one is tokenized and looked up meanwhile.
        """
        if isinstance(texts, str):
            raise InputError("got one text, wanted a list of them; write [text]")
        clean: list[Text] = [normalise(text) for text in texts]
        every = range(len(clean))
        ordered = (list(every[start : start + self.batch]) for start in every[:: self.batch])
        batches = list(ordered if in_order else by_length(clean, self.batch))

        def look_up(rows: list[int]) -> tuple[Tokens, Neighbours | None]:
            some = [clean[row] for row in rows]
            tokens = self.tokenize(some)
            return tokens, self.look_up(some, tokens, documents and [documents[row] for row in rows])

        def forward(rows: list[int], tokens: Tokens, found: Neighbours | None) -> Forward:
            answer = self.answer(tokens, found, output_projected_states=output_projected_states)
            return Forward(rows, tokens, found, *answer)

        workers = at_once(len(batches), self.model.device)
        if workers > 1:
            yield from in_parallel(lambda rows: forward(rows, *look_up(rows)), batches, workers)
        else:
            for rows, looked_up in zip(batches, pipelined(look_up, batches), strict=True):
                yield forward(rows, *looked_up)

    def tokenize(self, texts: Sequence[Text]) -> Tokens:
        """Return what the student reads of the texts themselves."""
        return tokenize(self.tokenizer, texts, self.max_tokens)

    def look_up(
        self, texts: Sequence[Text], tokens: Tokens, documents: Sequence[str | None] | None = None
    ) -> Neighbours | None:
        """Find the texts' references; None where there is no memory, or a broken one."""
        if self.source is None:
            return None
        if self._is_closed:
            raise InputError("this student was closed, and its memory with it; load it again")
        if self.texts is None:
            return neighbours_from(self.source(texts), len(texts))
        try:
            queries = self.texts.queries(texts, tokens.input_ids, tokens.mask, documents)
            if self.own_answers and self.correction:
                found = with_own(*self.source.neighbours_and_points(queries))
            else:
                found = self.source.neighbours(queries)
        except StoreError as error:  # not only away, but broken: readers still get their answer
            if self.strict:
                raise
            log.warning("answering without references: %s", error)
            return None
        if self.correction and self.texts.words is self.words:  # it weighs by the vectors that were asked with
            asked = [query.sentence for query in queries if query.sentence is not None]
            return dataclasses.replace(found, asked=np.stack(asked) if asked else None)
        return found

    def inputs(self, tokens: Tokens, found: Neighbours | None) -> Batch:
        """Put tokens and references where the student is."""
        ids, mask, segments = tokens
        batch = student_batch(ids, mask, found, self.model.config.reference_dim, token_type_ids=segments)
        return moved(batch, self.model.device)

    def forward(self, tokens: Tokens, found: Neighbours | None, **options: bool) -> Any:
        """Run the student over one batch; `options` are those of its `forward`. Its vectors are corrected."""
        return self.answer(tokens, found, **options)[0]

    @torch.inference_mode()
    def answer(self, tokens: Tokens, found: Neighbours | None, **options: bool) -> tuple[Any, Corrected | None]:
        """Do the same, and return how the vectors were corrected, too: None where nothing corrects them."""
        if self.mixing:
            output = self.model(**self.inputs(tokens, None).student_inputs(), **options)
            if found is not None and found.residuals is not None:
                said, cosines = (
                    torch.from_numpy(column).to(self.model.device) for column in (found.residuals, found.scores)
                )
                output.logits = mixed(output.logits.float(), said, cosines, self.mixing)
            return output, None
        if self.correction is None or self.words is None:
            return self.model(**self.inputs(tokens, found).student_inputs(), **options), None
        output = self.model(**self.inputs(tokens, None).student_inputs(), **options)
        if found is not None and found.asked is not None:
            mine = torch.from_numpy(found.asked).to(self.model.device)
        else:
            mine = self.words(tokens.input_ids.to(self.model.device), tokens.mask.to(self.model.device))
        near = None if found is None else references_to_read(found, self.words)
        corrected = self.correction.answer(output.sentence_embedding.float(), mine, near)
        if found is not None and found.own is not None:
            corrected = corrected.where_stored(torch.from_numpy(found.own).to(self.model.device))
        output.sentence_embedding = corrected.vector
        return output, corrected


def said_without_references(student: Reader, texts: Sequence[Text]) -> NDArray[np.float32]:
    """Return what a student says of texts without looking anything up, (texts, dim): alone, or as it is corrected."""
    vectors = np.empty((len(texts), student.model.config.dim), np.float32)
    for forward in student.forwards(texts):
        vectors[forward.rows] = forward.output.sentence_embedding.float().cpu().numpy()
    return vectors


def text_tokens(config: RefBertConfig) -> int | None:
    """Tokens of a text that a student's teacher read; None for a student of an earlier release that has no memory."""
    return config.text_tokens or (config.memory or {}).get("text_tokens")


def with_own(found: Neighbours, own: Neighbours) -> Neighbours:
    """Put the vectors that are stored under the texts' own ids beside their references."""
    assert own.vectors is not None
    vectors = own.vectors[:, 0]
    is_stored: list[bool] = np.isfinite(vectors).all(axis=1).tolist()  # type: ignore[assignment]  # an array's, not a number's
    rungs: list[Rung] = ["own" if stored else rung for stored, rung in zip(is_stored, found.rungs, strict=True)]
    return dataclasses.replace(found, own=vectors, rungs=rungs)


def neighbours_from(looked_up: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], num_texts: int) -> Neighbours:
    """Take the arrays of a `LookUp` for neighbours, one at most for each text. Raises InputError for other rows."""
    ids, states, mask = (np.asarray(array) for array in looked_up)
    if not len(ids) == len(states) == len(mask) == num_texts:
        raise InputError(
            f"the look-up answered {num_texts} texts with {len(ids)} ids, {len(states)} states and {len(mask)} masks; it must "
            "return a row for each"
        )
    counts = [int(row.any()) for row in mask]
    return Neighbours(
        ids=[[""] * count for count in counts],
        texts=[[None] * count for count in counts],
        scores=np.zeros((num_texts, 1), np.float32),
        states=states,
        token_ids=ids,
        ranks=np.where(mask, 0, -1).astype(np.int16),
        rungs=["live"] * num_texts,
    )
