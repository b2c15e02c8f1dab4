"""A student that a replica serves: tokens, look-up, forward, one result for each text, and explanations.

Two threads of the queue use the student: one prepares batches (tokens and references), the other runs the model and explains
single texts, with look-ups of its own. The student's `MemoryWatch` keeps the connection to the memory.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from jobs.config import RunConfig
from jobs.memory.student_memory import open_reader
from jobs.service.errors import NonFiniteAnswer
from jobs.service.inputs import TextInput, is_text
from jobs.service.memory_watch import MemoryWatch
from jobs.service.metrics import Metrics
from jobs.service.schema import AttendedReference
from refbert.correction import Correction
from refbert.explanation import answer
from refbert.folder import fingerprint
from refbert.memory.explanation import READ_OUT, explained
from refbert.memory.reader import Reader, references_read
from refbert.passages import Text, normalise
from refbert.teacher import Tokens
from vector_store.schema import Neighbours

BUCKET_TOKENS = 8
"""Forwards are padded to multiples of this: few shapes occur, so kernels and buffers are reused."""


@dataclass(frozen=True)
class TextResult:
    """Result of one text: `vector` (dim,) float32, L2-normalised; `scores` (labels,) of a student with a head.

    `nearness` is the cosine of the nearest reference's key where references correct the answer, 1 where the text is stored.
    """

    vector: NDArray[np.float32]
    scores: NDArray[np.float32] | None
    tokens: int
    references: list[AttendedReference] | None
    nearness: float | None
    lookup_ms: float
    student_ms: float
    correction: Correction | None = None
    """What corrected the vector."""
    queue_ms: float = 0.0


@dataclass(frozen=True)
class PreparedBatch:
    """Texts of like length that share a forward: their rows among the texts that were prepared, tokens and references.

    `reader` answers them: what corrects its answers belongs to the version of the memory that was looked up.
    """

    rows: list[int]
    reader: Reader
    tokens: Tokens
    found: Neighbours | None
    explain: bool
    lookup_ms: float


class ServedStudent:
    """A student of one replica, named as its run is, and its memory. Close its `memory` when no batch uses it any more."""

    def __init__(self, config: RunConfig, folder: Path, device: torch.device, metrics: Metrics) -> None:
        self.config, self.name, self.metrics = config.serve, config.name, metrics.of(config.name)
        self.reader = open_reader(config, folder, None, device)
        model = self.reader.model
        self.dim: int = model.config.dim
        self.vocabulary: int = model.config.vocab_size
        self.labels = _labels(model)
        self.fingerprint = fingerprint(folder)
        self.created = int((folder / "config.json").stat().st_mtime)
        empty = self.reader.tokenizer("")["input_ids"]
        self._before, self._after = empty[:1], empty[1:]  # the special tokens around a text
        self.metrics.set_student(self.fingerprint)
        self.memory = MemoryWatch(config, folder, self.reader, self.metrics)

    # ------------------------------------------------------------ before the forward

    def prepare(self, inputs: Sequence[TextInput], explain: Sequence[bool]) -> list[PreparedBatch]:
        """Tokenize texts, cut them into batches of like length, and look up what each text reads."""
        texts = [self._text(given) for given in inputs]
        tokens = self._tokens(inputs, texts)
        lengths = tokens.mask.sum(1).tolist()
        batches = []
        for is_explained in (False, True):
            chosen = [row for row, wanted in enumerate(explain) if wanted is is_explained]
            for rows in cut(chosen, lengths, self.config.max_batch, self.config.batch_tokens):
                segments = None if tokens.token_type_ids is None else tokens.token_type_ids[rows]
                width = padded(max(lengths[row] for row in rows))
                own = _resized(Tokens(tokens.input_ids[rows], tokens.mask[rows], segments), width)
                started_s = time.perf_counter()
                reader, found = self.memory.look_up([texts[row] for row in rows], own)
                lookup_s = time.perf_counter() - started_s
                self.metrics.lookup_s.observe(lookup_s)
                batches.append(PreparedBatch(rows, reader, own, found, is_explained, 1000 * lookup_s))
        return batches

    def _text(self, given: TextInput) -> Text:
        """Return the text that is looked up, normalised as stored texts are."""
        if is_text(given):
            return normalise(given)  # type: ignore[arg-type]
        return normalise(str(self.reader.tokenizer.decode([int(token) for token in given], skip_special_tokens=True)))

    def _tokens(self, inputs: Sequence[TextInput], texts: Sequence[Text]) -> Tokens:
        """Tokenize texts. Given token ids stay as they are: truncated, and put between the special tokens."""
        tokens = self.reader.tokenize(texts)
        most = self.reader.max_tokens - len(self._before) - len(self._after)
        given = {
            row: [*self._before, *list(ids)[:most], *self._after] for row, ids in enumerate(inputs) if not is_text(ids)
        }
        if not given:
            return tokens
        ids, mask, segments = tokens = _resized(tokens, max(tokens.input_ids.shape[1], *map(len, given.values())))
        for row, tokens_given in given.items():
            ids[row], mask[row] = 0, 0
            ids[row, : len(tokens_given)], mask[row, : len(tokens_given)] = torch.tensor(tokens_given), 1
            if segments is not None:
                segments[row] = 0
        return tokens

    # ------------------------------------------------------------ the forward

    @torch.inference_mode()
    def forward(self, batch: PreparedBatch) -> list[TextResult]:
        """Run the student over one batch and return a result for each of its rows."""
        started_s = time.perf_counter()
        output, corrected = batch.reader.answer(
            batch.tokens, batch.found, output_projected_states=False, output_attentions=batch.explain
        )
        nearness: list[Any] = [None] * len(batch.rows)
        if corrected is not None:
            nearness = corrected.nearness.tolist()
            self.metrics.count_nearness(nearness)
        vectors = F.normalize(output.sentence_embedding, dim=-1).float().cpu().numpy()
        logits = output.get("logits")
        scores: Any = [None] * len(vectors) if logits is None else answer(logits.float()).cpu().numpy()
        if not (np.isfinite(vectors).all() and (logits is None or np.isfinite(scores).all())):
            raise NonFiniteAnswer(
                f"student {self.fingerprint} answered with numbers that are not finite; it is not fit to serve: deploy another"
            )
        student_s = time.perf_counter() - started_s
        self.metrics.student_s.observe(student_s)
        self.metrics.batch_texts.observe(len(vectors))
        references: Any = self._attended(batch, output) if batch.explain else [None] * len(vectors)
        columns = zip(vectors, scores, batch.tokens.mask.sum(1).tolist(), references, nearness, strict=True)
        return [TextResult(*column, batch.lookup_ms, 1000 * student_s, batch.reader.correction) for column in columns]

    def _attended(self, batch: PreparedBatch, output: Any) -> list[list[AttendedReference]]:
        """Return what each row read, best first, with the attention mass that fell on it by reading layer.

        Mean over heads and the row's own tokens, as in `refbert.explanation` for one text without padding.
        """
        config, own, found = self.reader.model.config, batch.tokens.mask.float(), batch.found
        layers = {
            str(layer): scores for layer, scores in enumerate(output.attention_scores) if config.reads_reference(layer)
        }
        if output.readout_scores is not None:
            layers[READ_OUT] = output.readout_scores
        ref_tokens = max(1, int(found.mask.sum(1).max(initial=0))) if found else 1
        masses = {}
        for name, scores in layers.items():
            mass = scores.softmax(-1).mean(1).cpu()  # (batch, tokens, seen)
            masses[name] = ((mass * own[:, :, None]).sum(1) / own.sum(1, keepdim=True)).numpy()

        def mass_of(row: int, rank: int, is_null: bool, mass: NDArray[np.float32]) -> float:
            """The mass on the null slot, which lies before the references, or on one reference's tokens."""
            if is_null or found is None:
                return float(mass[row, -ref_tokens - 1])
            return float(mass[row, -ref_tokens:][found.ranks[row, :ref_tokens] == rank].sum())

        return [
            [
                AttendedReference(
                    **read.model_dump(),
                    attention_mass={name: mass_of(row, rank, read.id is None, mass) for name, mass in masses.items()},
                )
                for rank, read in enumerate(references_read(found, row))
            ]
            for row in range(len(batch.rows))
        ]

    # ------------------------------------------------------------ one text, closely

    def explain(self, text: Text) -> dict[str, Any]:
        """Explain one text, with the `nearest` stored texts by the memory's criterion.

        `vector_without` is its vector (dim,) without a reference.
        """
        text = normalise(text)
        explanation = explained(self.memory.reader, text)
        nearest: list[dict[str, Any]] = []
        if (wide := self.memory.wide_reader) is not None:
            found = wide.look_up([text], wide.tokenize([text]))
            nearest = [read.model_dump() for read in references_read(found, 0) if read.text is not None]
        return {**explanation, "nearest": nearest, "vector_without": self.reader.encode([text])[0]}


def cut(rows: Sequence[int], lengths: Sequence[int], max_texts: int, max_tokens: int) -> list[list[int]]:
    """Cut texts into batches of like length, shortest first, each within `max_texts` and, padding included, `max_tokens`.

    A text that exceeds the budget by itself is a batch by itself.
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda row: lengths[row]):
        current = batches[-1] if batches else None
        if current is None or len(current) == max_texts or (len(current) + 1) * padded(lengths[row]) > max_tokens:
            batches.append([row])
        else:
            current.append(row)
    return batches


def padded(length: int) -> int:
    """Return the width that a text of so many tokens is padded to."""
    return -(-length // BUCKET_TOKENS) * BUCKET_TOKENS


def _resized(tokens: Tokens, width: int) -> Tokens:
    """Cut or pad tokens to a width; only padding is cut, and what is added is masked."""

    def resized(part: torch.Tensor) -> torch.Tensor:
        return F.pad(part[:, :width], (0, max(0, width - part.shape[1])))

    ids, mask, segments = tokens
    return Tokens(resized(ids), resized(mask), None if segments is None else resized(segments))


def _labels(model: Any) -> list[str] | None:
    if not hasattr(model, "classifier"):
        return None
    return [str(model.config.id2label[label]) for label in range(model.config.num_labels)]
