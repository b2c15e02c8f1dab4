"""An exported student that was adapted, in ONNX Runtime and numpy: corrects answers by its maps, and by references if given.

    student = ExportedStudent("runs/x/student/onnx")
    student.answer(input_ids, attention_mask, token_type_ids)                  # corrected, no look-up
    student.answer(input_ids, attention_mask, token_type_ids, references)      # and by its references

Looks nothing up: the caller finds references. Needs numpy and onnxruntime: no torch, no database. `jobs/export.py` writes the
folder of a student that was adapted.

Shapes: batch, tokens, count (references of a text), dim (of the teacher's vector), words_dim, key_dim (dim + words_dim).
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refbert.errors import InputError, UnavailableError

MODEL, MODEL_INT8, MODEL_ALONE = "model.onnx", "model_int8.onnx", "model_alone.onnx"
CORRECTION = "correction.npz"
"""How references correct an answer: the fields of `Reading`."""

Array = NDArray[np.float32]


class References(NamedTuple):
    """Near references as a memory keeps them: `vectors` and `residuals` (batch, count, dim) in the teacher's units, and `words`
    (batch, count, words_dim), the vector `sentence` of a point with a dense index, or the graph's output `words` of its text.

    A row of NaN in `residuals` is a reference that is not there. Residuals are those of the correction's own version.
    """

    vectors: Array
    residuals: Array
    words: Array


class Answer(NamedTuple):
    """Answers: `vector` (batch, dim) in the teacher's units, `weights` (batch, count), and `nearness` and `variance` (batch,).

    Without references `weights` has no columns, nearness is -1 and variance 1.
    """

    vector: Array
    weights: Array
    nearness: Array
    variance: Array


class Reading(NamedTuple):
    """How a version weighs so many `references`: `centre` (dim,), the teacher's mean length, kriging's width and noise."""

    centre: Array
    teacher_norm: float
    tau: float
    noise: float
    references: int
    student: str
    version: str

    def save(self, path: Path) -> None:
        """Write the npz that `read_reading` reads."""
        with open(path, "wb") as stream:
            np.savez(stream, allow_pickle=False, **{name: np.asarray(value) for name, value in self._asdict().items()})

    def key(self, said: Array, words: Array) -> Array:
        """Return keys (..., key_dim) of texts of which the maps say `said` (..., dim), of the teacher's mean length 1."""
        return _unit(np.concatenate([_unit(said - self.centre), words], -1))

    def answer(self, vector: Array, key: Array, references: References | None = None) -> Answer:
        """Correct answers (batch, dim) without references, of texts with these keys (batch, key_dim), by references."""
        batch = len(vector)
        if references is None or not self.references or not references.residuals.shape[1]:
            one = np.ones(batch, np.float32)
            return Answer(vector, np.zeros((batch, 0), np.float32), -one, one)
        there = np.isfinite(references.residuals[:, :, 0])
        vectors, residuals, words = (np.where(there[:, :, None], column, np.float32(0)) for column in references)
        keys = self.key(((vectors - residuals) / self.teacher_norm).astype(np.float32), words)
        among = np.exp((keys @ keys.swapaxes(1, 2) - 1) / self.tau) * (there[:, :, None] & there[:, None, :])
        places = np.arange(keys.shape[1])
        among[:, places, places] += self.noise + ~there  # a missing reference: a row of the identity
        cosines = (keys @ key[:, :, None])[:, :, 0]
        to = np.exp((cosines - 1) / self.tau) * there
        weights = np.linalg.solve(among.astype(np.float64), to[:, :, None].astype(np.float64))[:, :, 0]
        variance = np.clip(1 - (weights * to).sum(1), 0, 1)
        added = (weights[:, None, :] @ residuals)[:, 0]
        nearness = np.where(there, cosines, np.float32(-1)).max(1)
        return Answer(
            *(each.astype(np.float32) for each in (vector + added, weights, nearness, variance)),
        )


def read_reading(folder: Path) -> Reading:
    """Read how an exported student weighs references. Raises InputError where it was not exported with a correction."""
    path = folder / CORRECTION
    if not path.exists():
        raise InputError(
            f"{folder} holds no {CORRECTION}: this student was exported before it was adapted, or never was; run "
            "`python jobs/export.py` again after `python jobs/adapt.py`"
        )
    try:
        with np.load(path) as saved:
            values: dict[str, Any] = {name: saved[name] for name in Reading._fields}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); export the student again") from None
    plain = {name: value.item() for name, value in values.items() if name != "centre"}
    return Reading(centre=values["centre"], **plain)


class ExportedStudent:
    """An exported student that was adapted to a memory. Threads may share it."""

    def __init__(self, folder: str | Path, int8: bool = False, threads: int = 0) -> None:
        """Open an `onnx/` folder; 0 threads is one for each core.

        Raises InputError for a folder that holds no such student, UnavailableError without onnxruntime.
        """
        path = Path(folder)
        self.reading = read_reading(path)
        graph = path / (MODEL_INT8 if int8 else MODEL)
        if not graph.exists():
            raise InputError(f"{graph} is not there; export it: `python jobs/export.py` (export.int8=true)")
        try:
            import onnxruntime
        except ImportError:
            raise UnavailableError("onnxruntime is not installed; `pip install onnxruntime`") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def answer(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64] | None = None,
        references: References | None = None,
    ) -> Answer:
        """Answer texts, (batch, tokens) each, by these references where there are any. Raises InputError for other shapes."""
        segments = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": segments}
        said = dict(zip(self._outputs, self._session.run(None, given), strict=True))
        if references is not None:
            batch, dim = said["sentence_embedding"].shape
            _check(references, batch, dim, said["words"].shape[1])
        return self.reading.answer(said["sentence_embedding"], said["key"], references)

    def words(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Array:
        """Return the vectors of texts' words, (batch, words_dim): what `References.words` are of stored texts."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": np.zeros_like(input_ids),
        }
        (words,) = self._session.run(["words"], given)
        return np.asarray(words)


def _check(references: References, batch: int, dim: int, words_dim: int) -> None:
    count = references.residuals.shape[1] if references.residuals.ndim > 1 else 0
    for name, width in (("vectors", dim), ("residuals", dim), ("words", words_dim)):
        found, wanted = getattr(references, name).shape, (batch, count, width)
        if found != wanted:
            raise InputError(
                f"references have {name} of shape {found}, wanted {wanted}: a row of references for each text"
            )


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
