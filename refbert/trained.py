"""A trained student as users meet it: texts in, vectors or labels out.

    student = refbert.load("runs/x/student", references=look_up)
    vectors = student.encode(texts)
    labels = student.predict(texts)

`references` is any callable from texts to the arrays of their references, or None: every text then reads the null
reference. Where references are kept is not known here; `jobs.memory.references_at` opens a memory as such a callable.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from refbert.corpus import Text, by_length, normalise
from refbert.errors import InputError
from refbert.student import RefBertForSequenceClassification, RefBertModel
from refbert.student_config import RefBertConfig
from refbert.teacher import load_tokenizer, tokenize

LookUp: TypeAlias = Callable[[Sequence[Text]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
"""Texts to their references: token ids (texts, ref_tokens), states (texts, ref_tokens, reference_dim), mask
(texts, ref_tokens), where a row of zeros is a text without a reference."""


class Prediction(NamedTuple):
    """The best label and its probability; for a student that answers with a number, its one label and that number."""

    label: str
    score: float


class TrainedStudent:
    """A student, its tokenizer and its look-up. Texts of like length share a forward; results come in the texts' order."""

    def __init__(
        self,
        model: RefBertModel | RefBertForSequenceClassification,
        tokenizer: PreTrainedTokenizerBase,
        references: LookUp | None,
        tokens: int,
        batch: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.references = references
        self.tokens = tokens
        self.batch = batch

    def encode(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Return the (texts, dim) sentence vectors in the teacher's space, L2-normalised."""
        vectors = np.empty((len(texts), self.model.config.dim), np.float32)
        for chosen, output in self._forwards(texts):
            vectors[chosen] = torch.nn.functional.normalize(output.sentence_embedding, dim=-1).cpu().numpy()
        return vectors

    def predict(self, texts: Sequence[Text]) -> list[Prediction]:
        """Return each text's label and score. Raises InputError for a student without a head."""
        if not isinstance(self.model, RefBertForSequenceClassification):
            raise InputError("this student has no head, so it predicts nothing; use encode, or distil one on a task")
        names: Any = self.model.config.id2label
        is_number = self.model.config.num_labels == 1
        found: list[Prediction] = [Prediction("", 0.0)] * len(texts)
        for chosen, output in self._forwards(texts):
            scores, best = (output.logits if is_number else output.logits.softmax(-1)).max(-1)
            for index, score, label in zip(chosen, scores.tolist(), best.tolist(), strict=True):
                found[index] = Prediction(names[label], score)
        return found

    @torch.inference_mode()
    def _forwards(self, texts: Sequence[Text]) -> Iterator[tuple[list[int], Any]]:
        """Yield which texts a batch holds and what the model says of them, shortest first."""
        if isinstance(texts, str):
            raise InputError("got one text, wanted a list of them; write [text]")
        clean: list[Text] = [normalise(text) for text in texts]
        for chosen in by_length(clean, self.batch):
            some = [clean[index] for index in chosen]
            ids, mask, segments = tokenize(self.tokenizer, some, self.tokens)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, **self._referred(some)}
            moved = {name: tensor.to(self.model.device) for name, tensor in inputs.items() if tensor is not None}
            yield chosen, self.model(**moved, output_projected_states=False)

    def _referred(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        if self.references is None:
            return {}
        ids, states, mask = self.references(texts)
        if not len(ids) == len(states) == len(mask) == len(texts):
            raise InputError(
                f"the look-up answered {len(texts)} texts with {len(ids)} ids, {len(states)} states and {len(mask)} masks; it "
                "must return a row for each"
            )
        return {
            "reference_ids": torch.from_numpy(np.asarray(ids, np.int64)),
            "reference_states": torch.from_numpy(np.asarray(states, np.float32)),
            "reference_mask": torch.from_numpy(np.asarray(mask, np.int64)),
        }


def load(
    folder: str | Path,
    references: LookUp | None = None,
    device: str | torch.device = "cpu",
    tokens: int | None = None,
    batch: int = 32,
) -> TrainedStudent:
    """Open a `student/` folder for inference. `tokens` cuts texts; by default as those of the memory it was trained with."""
    model = load_model(folder).fuse()
    most = tokens or (model.config.memory or {}).get("text_tokens") or model.config.max_position_embeddings
    return TrainedStudent(model.to(device), load_tokenizer(str(folder)), references, most, batch)


def load_model(folder: str | Path) -> Any:
    """Load the encoder or the classifier that a `student/` folder holds, for inference."""
    path = Path(folder)
    if not (path / "config.json").exists():
        raise InputError(f"{path} holds no student; train one first, or give a run's student/ folder")
    config = AutoConfig.from_pretrained(path)
    if not isinstance(config, RefBertConfig):
        raise InputError(f"{path} holds a {config.model_type}, wanted a refbert student; give a run's student/ folder")
    return (RefBertForSequenceClassification if has_head(config) else RefBertModel).from_pretrained(path).eval()


def has_head(config: RefBertConfig) -> bool:
    """Whether the student that was saved with this config classifies."""
    return RefBertForSequenceClassification.__name__ in (config.architectures or ())


def fingerprint(folder: Path) -> str:
    """12 hex digits of the weights in a `student/` folder: which student answered."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()[:12]
