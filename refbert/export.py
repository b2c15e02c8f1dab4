"""A student as an ONNX graph, with references as inputs where it reads token states, checked against the student itself.

    onnx/model.onnx        float32
    onnx/model_int8.onnx   matrix products and embeddings in 8-bit integers, where asked for
    onnx/model_alone.onnx  float32, without references as inputs, of a student that reads them: it reads the null reference
    onnx/correction.npz    how references correct the answer, of a student that was adapted to a memory: refbert/exported.py
    onnx/export.json       inputs, outputs and how far the graphs are from the student

Inputs are those of the student's `forward` that it reads: `input_ids`, `attention_mask`, `token_type_ids` (batch, tokens),
`reference_states` (batch, ref_tokens, reference_dim), `reference_mask` and, where keys come from embeddings or there is a
read-out, `reference_ids` (batch, ref_tokens). The axes batch, tokens and ref_tokens have these names and are free. A mask of
zeros over one reference token reads the null reference. Outputs: `sentence_embedding` (batch, dim) and, from a classifier,
`logits` (batch, labels).

A student that was adapted takes no references. Its `sentence_embedding` is the student's vector as the global part corrects it,
without a look-up, and there are `words` (batch, words_dim) and `key` (batch, key_dim), by which references are found and
weighed.

A float32 graph that is further off than the tolerance is refused; how far the int8 graph is off is only measured. Needs the
packages of the extra `export`.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from refbert.atomic import whole_folder
from refbert.correction import Correction
from refbert.errors import InputError
from refbert.exported import CORRECTION, MODEL, MODEL_ALONE, MODEL_INT8, Reading
from refbert.global_part import GlobalPart
from refbert.student import RefBertForSequenceClassification, RefBertModel
from refbert.words import WordVectors

DESCRIPTION = "export.json"
TOLERANCE = 1e-4
OPSET = 20

TRACED = (2, 5, 3)
CHECKED = ((1, 3, 1), (4, 17, 9), (3, 8, 24))
"""Batch, tokens and ref_tokens of the traced and of the checked inputs."""


class Export(BaseModel, frozen=True):
    """What was written, and the greatest absolute difference of any output from the student's, over CHECKED inputs.

    `alone_difference` is that of the graph without reference inputs; None for a student that reads none. `int8_cosine` is the
    least cosine of a sentence embedding with the student's; None where there is no int8 graph. These inputs are random: what a
    task loses is for an evaluation to say. `reader` names whose residuals correct the answer, in a memory that the student was
    adapted to.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    tolerance: float
    difference: float
    bytes: int
    alone_difference: float | None = None
    alone_bytes: int | None = None
    int8_difference: float | None = None
    int8_cosine: float | None = None
    int8_bytes: int | None = None
    reader: str | None = None


class Corrected(NamedTuple):
    """What corrects a student's answers, and the words that it needs."""

    correction: Correction
    words: WordVectors


class Graph(nn.Module):
    """A student as a function of positional tensors: what is traced. An adapted one takes no references, nor one `alone`."""

    def __init__(
        self,
        student: RefBertModel | RefBertForSequenceClassification,
        corrected: Corrected | None = None,
        *,
        alone: bool = False,
    ) -> None:
        super().__init__()
        self.part: GlobalPart | None = None
        self.words: WordVectors | None = None
        if corrected:
            self.part, self.words = deepcopy(corrected.correction.part).float().cpu(), deepcopy(corrected.words).cpu()
        self.student = deepcopy(student).float().cpu()
        self.student.fuse()
        self.eval()
        config = student.config
        self.width = config.reference_dim
        self.vocabulary = config.vocab_size
        self.inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
        self.reads = config.reads_any and not corrected and not alone
        if self.reads:
            by_ids = ("reference_ids",) if config.reference_keys == "embedding" or config.reads_out else ()
            self.inputs += (*by_ids, "reference_states", "reference_mask")
        self.outputs: tuple[str, ...] = ("sentence_embedding",)
        if isinstance(student, RefBertForSequenceClassification):
            self.outputs = ("logits", "sentence_embedding")
        if corrected:
            self.outputs = ("words", "key", "sentence_embedding")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Every input in the order of `inputs` to every output in the order of `outputs`."""
        given = dict(zip(self.inputs, tensors, strict=True))
        input_ids = given.pop("input_ids")
        output = self.student(input_ids, **given, output_projected_states=False)
        if self.part is not None and self.words is not None:
            words = self.words.of_padded(input_ids, given["attention_mask"])
            base, key = self.part(output["sentence_embedding"], words)
            return words, key, base * self.part.teacher_norm
        return tuple(output[name] for name in self.outputs)

    def example(self, batch: int, tokens: int, ref_tokens: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs; the first row is padded and has no reference, wherever there is room for that."""
        draw = torch.Generator().manual_seed(seed)
        mask, ref_mask = (torch.ones(batch, length, dtype=torch.long) for length in (tokens, ref_tokens))
        mask[0, (tokens + 1) // 2 :] = 0
        ref_mask[0] = 0
        named = {
            "input_ids": torch.randint(1, self.vocabulary, (batch, tokens), generator=draw) * mask,
            "attention_mask": mask,
            "token_type_ids": torch.randint(0, 2, (batch, tokens), generator=draw),
            "reference_ids": torch.randint(1, self.vocabulary, (batch, ref_tokens), generator=draw) * ref_mask,
            "reference_states": torch.randn(batch, ref_tokens, self.width, generator=draw) * ref_mask[..., None],
            "reference_mask": ref_mask,
        }
        return tuple(named[name] for name in self.inputs)


def export_onnx(
    student: RefBertModel | RefBertForSequenceClassification,
    folder: Path,
    int8: bool = False,
    tolerance: float = TOLERANCE,
    corrected: Corrected | None = None,
) -> Export:
    """Write the student's graphs into `folder`, completely or not at all. Refuses a graph further off than `tolerance`.

    With what it is `corrected` by, the graph answers as the student does without a look-up, and correction.npz is written, too.
    """
    graph = Graph(student, corrected)
    with whole_folder(folder) as scratch:
        if corrected:
            reading_of(corrected.correction).save(scratch / CORRECTION)
        alone = Graph(student, alone=True) if graph.reads else None
        return _write_graphs(graph, alone, scratch, int8, tolerance, corrected.correction.reader if corrected else None)


def reading_of(correction: Correction) -> Reading:
    """Return how a correction weighs references, for numpy."""
    part = correction.part
    return Reading(
        part.centre.float().cpu().numpy(), float(part.teacher_norm), correction.tau, correction.noise, correction.count,
        correction.student, correction.version,
    )  # fmt: skip


def _write_graphs(
    graph: Graph, alone: Graph | None, scratch: Path, int8: bool, tolerance: float, reader: str | None
) -> Export:
    difference = _write_graph(graph, scratch / MODEL, tolerance)
    reduced: dict[str, Any] = {}
    if alone:
        reduced |= {"alone_difference": _write_graph(alone, scratch / MODEL_ALONE, tolerance)}
        reduced |= {"alone_bytes": (scratch / MODEL_ALONE).stat().st_size}
    if int8:
        quantize(scratch / MODEL, scratch / MODEL_INT8)
        int8_difference, cosine = differences(graph, open_onnx(scratch / MODEL_INT8))
        size = (scratch / MODEL_INT8).stat().st_size
        reduced |= {"int8_difference": int8_difference, "int8_cosine": cosine, "int8_bytes": size}
    export = Export(
        inputs=graph.inputs,
        outputs=graph.outputs,
        opset=OPSET,
        tolerance=tolerance,
        difference=difference,
        bytes=(scratch / MODEL).stat().st_size,
        reader=reader,
        **reduced,
    )
    (scratch / DESCRIPTION).write_text(export.model_dump_json(indent=2) + "\n")
    return export


def _write_graph(graph: Graph, path: Path, tolerance: float) -> float:
    """Write one graph and return how far it is from the student. Raises InputError where that is over `tolerance`."""
    to_onnx(graph, graph.inputs, graph.outputs, graph.example(*TRACED), path)
    difference, _ = differences(graph, open_onnx(path))
    if not difference <= tolerance:
        raise InputError(
            f"the ONNX graph differs from the student by {difference:.2e}, more than {tolerance:.0e}; nothing was written: use "
            "torch, or report which versions of torch, onnx and onnxruntime these are"
        )
    return difference


def to_onnx(
    module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], example: tuple[Tensor, ...], path: Path
) -> None:
    """Write a module of BERT's kind, `forward(*tensors)`, as a graph whose inputs' first two dimensions are free, and named
    `batch` and `tokens`; of inputs `reference_*` the second is `ref_tokens`.

    `F.scaled_dot_product_attention` becomes two products and a softmax over masked scores. The exporter's own form guards
    against rows that see nothing, which an encoder has not, at a fifth of the whole graph's time (2 cores, ONNX Runtime 1.32).
    """
    _require_onnx()
    import onnxscript

    op: Any = onnxscript.opset20

    def attend(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        factor = scale if scale is not None else query.shape[-1] ** -0.5
        scores = op.MatMul(op.Mul(query, op.Constant(value_float=factor)), op.Transpose(key, perm=[0, 1, 3, 2]))
        if attn_mask is not None:
            hidden = op.Constant(value_float=float(np.finfo(np.float32).min))
            scores = op.Add(scores, op.Where(attn_mask, op.Constant(value_float=0.0), hidden))
        return op.MatMul(op.Softmax(scores, axis=-1), value)

    free = tuple({0: "batch", 1: "ref_tokens" if name.startswith("reference_") else "tokens"} for name in inputs)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(free,),
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attend},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))


def quantize(path: Path, to: Path) -> None:
    """Quantise weights per channel ahead, to 7 bits, activations per tensor while running; embeddings as well.

    With 8 bits of weight a CPU without VNNI saturates: the greatest error was 0.29 where 7 bits leave 0.10 (4 x 312), and
    unsigned weights, which do not saturate either, take 15 % longer (AVX2, ONNX Runtime 1.32).
    """
    _require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            path,
            to,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def open_onnx(path: Path, threads: int = 0) -> Callable[..., list[NDArray[np.float32]]]:
    """Open a graph in ONNX Runtime on the CPU; call it with named arrays. 0 threads is one for each core."""
    runtime = _require_onnx()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda **arrays: session.run(None, arrays)


def differences(graph: Graph, run: Callable[..., list[NDArray[np.float32]]]) -> tuple[float, float]:
    """Greatest absolute difference of any output over CHECKED inputs, and the least cosine of a sentence embedding."""
    worst, least = 0.0, 1.0
    for number, shape in enumerate(CHECKED):
        tensors = graph.example(*shape, seed=number + 1)
        with torch.inference_mode():
            wanted = [output.numpy() for output in graph(*tensors)]
        got = run(**{name: tensor.numpy() for name, tensor in zip(graph.inputs, tensors, strict=True)})
        worst = max(worst, *(float(np.abs(one - other).max()) for one, other in zip(wanted, got, strict=True)))
        norms = np.linalg.norm(wanted[-1], axis=1) * np.linalg.norm(got[-1], axis=1)
        least = min(least, float(((wanted[-1] * got[-1]).sum(1) / norms).min()))
    return worst, least


def read_export(folder: Path) -> Export | None:
    """Read what is said of an exported folder; None where there is none."""
    description = folder / DESCRIPTION
    return Export.model_validate(json.loads(description.read_text())) if description.exists() else None


def _require_onnx() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, ONNX needs it; `pip install 'refbert[export]'`") from None
    return onnxruntime


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of torchvision, the quantiser of steps that nobody asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
