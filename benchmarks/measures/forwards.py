"""Encoders of BERT's kind on several backends that one could deploy: numpy arrays in, one vector per text out.

The weights of `encoder` are random: what a forward costs does not depend on them. Times nothing.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from refbert import RefBertConfig, RefBertModel
from refbert.export import Graph, open_onnx, quantize, to_onnx
from refbert.precision import has_fast_bf16
from refbert.student import masked_mean

Arrays = Mapping[str, NDArray[Any]]
Forward = Callable[[Arrays], Any]

BERT_BASE = "BERT-base"
COMPILED = "torch.compile fp32"
BF16 = "torch bf16"


class MeanOfStates(nn.Module):
    """An encoder of BERT's kind and the mean over its tokens, traced by the same names as a student."""

    inputs = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The inputs in their order to sentence vectors."""
        return (masked_mean(self.encoder(*tensors).last_hidden_state, tensors[1]),)

    def example(self, batch: int, tokens: int, _: int) -> tuple[Tensor, ...]:
        """Inputs to trace with."""
        ids = torch.ones(batch, tokens, dtype=torch.long)
        return ids, torch.ones_like(ids), torch.zeros_like(ids)


def encoder(name: str, **options: Any) -> MeanOfStates | Graph:
    """BERT-base, or a student of these options as it is deployed."""
    if name == BERT_BASE:
        return MeanOfStates(BertModel(BertConfig(), add_pooling_layer=False))
    return Graph(RefBertModel(RefBertConfig(**options)))


def torch_forward(module: MeanOfStates | Graph, call: Callable[..., Any] | None = None) -> Forward:
    """The module itself, or `call` in its place."""
    run: Any = module if call is None else call  # a compiled module has no truth value

    @torch.inference_mode()
    def forward(arrays: Arrays) -> Any:
        return run(*(torch.from_numpy(arrays[name]) for name in module.inputs))[-1].float().numpy()

    return forward


def onnx_forward(module: MeanOfStates | Graph, int8: bool) -> Forward:
    """The module's graph in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        run = open_onnx(write_graph(module, Path(folder), int8))
    return lambda arrays: run(**{name: arrays[name] for name in module.inputs})[-1]


def write_graph(module: MeanOfStates | Graph, folder: Path, int8: bool) -> Path:
    """Write the module's graph into a folder, quantised dynamically for `int8`, and return its file."""
    path = folder / "model.onnx"
    to_onnx(module, module.inputs, ("sentence_embedding",), module.example(2, 5, 3), path)
    if int8:
        quantize(path, path.with_name("int8.onnx"))
        path = path.with_name("int8.onnx")
    return path


def bf16_forward(module: MeanOfStates | Graph) -> Forward:
    """The module with bfloat16 weights and activations."""
    return torch_forward(deepcopy(module).to(torch.bfloat16))


def compiled_forward(module: MeanOfStates | Graph) -> Forward:
    """The module through TorchInductor, one graph for each shape."""
    return torch_forward(module, torch.compile(module, dynamic=False))


BACKENDS: dict[str, Callable[[MeanOfStates | Graph], Forward]] = {
    "torch fp32": torch_forward,
    BF16: bf16_forward,
    COMPILED: compiled_forward,
    "onnxruntime fp32": partial(onnx_forward, int8=False),
    "onnxruntime int8": partial(onnx_forward, int8=True),
}


def missing(backend: str) -> str | None:
    """Why a backend cannot run here; None where it can."""
    if backend == COMPILED and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return "no C++ compiler"
    if backend == BF16 and not has_fast_bf16("cpu"):
        return "no bf16 instructions"
    return None


def text_arrays(batch: int, tokens: int) -> dict[str, NDArray[Any]]:
    """Unpadded inputs of one batch."""
    ids = np.random.default_rng(batch).integers(1000, 30_000, (batch, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def no_reference(batch: int, dim: int) -> dict[str, NDArray[Any]]:
    """The inputs of texts that read the null reference."""
    return {
        "reference_states": np.zeros((batch, 1, dim), np.float32),
        "reference_mask": np.zeros((batch, 1), np.int64),
    }


def read_references(states: NDArray[np.float16], mask: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The inputs of texts that read what a look-up brought."""
    return {"reference_states": states.astype(np.float32), "reference_mask": mask.astype(np.int64)}
