"""Exported graphs match the student at any batch and length; a graph that does not is not written."""

import shutil
import subprocess
import sys
from copy import deepcopy

import numpy as np
import onnx
import pytest
import torch

from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.correction import Correction
from refbert.correction import References as TorchReferences
from refbert.errors import InputError
from refbert.export import Corrected, Graph, differences, export_onnx, open_onnx, read_export
from refbert.exported import CORRECTION, ExportedStudent, References
from refbert.global_part import GlobalPartOptions, Rows, fit_global_part
from refbert.references import word_table
from refbert.words import WordVectors

SHAPE = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "dim": 16,
    "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """A student that reads token states, and its exported folder: each graph takes many seconds to trace."""
    torch.manual_seed(0)
    student = RefBertModel(RefBertConfig(**SHAPE)).eval()
    folder = tmp_path_factory.mktemp("reading-export") / "onnx"
    return student, folder, export_onnx(student, folder, int8=True)


def test_an_exported_encoder_and_its_int8_form_match_the_student(reading):
    student, folder, export = reading
    assert read_export(folder) == export
    assert export.inputs == ("input_ids", "attention_mask", "token_type_ids", "reference_states", "reference_mask")
    assert 0 < export.difference < 1e-5
    assert export.difference < export.int8_difference < 0.2
    assert export.int8_cosine > 0.99
    assert export.int8_bytes < export.bytes
    assert axes(folder / "model.onnx") == {
        **{key: ["batch", "tokens"] for key in ("input_ids", "attention_mask", "token_type_ids")},
        "reference_states": ["batch", "ref_tokens", 16], "reference_mask": ["batch", "ref_tokens"],
        "sentence_embedding": ["batch", 16],
    }  # fmt: skip
    other = deepcopy(student)
    with torch.no_grad():
        other.null_reference.add_(1.0)
    assert differences(Graph(other), open_onnx(folder / "model.onnx"))[0] > 1e-3  # it can tell


def axes(path):
    """What a graph's inputs and outputs call their dimensions."""
    graph = onnx.load(path).graph
    named = [*graph.input, *graph.output]
    return {each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in named}


def test_a_second_graph_takes_no_references_and_reads_the_null_reference(reading, exported):
    student, folder, export = reading
    assert 0 < export.alone_difference < 1e-5
    assert export.alone_bytes == (folder / "model_alone.onnx").stat().st_size < export.bytes
    texts = {key: ["batch", "tokens"] for key in ("input_ids", "attention_mask", "token_type_ids")}
    assert axes(folder / "model_alone.onnx") == {**texts, "sentence_embedding": ["batch", 16]}
    ids = torch.randint(1, 50, (3, 11))
    given = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((3, 11), int),
        "token_type_ids": np.zeros((3, 11), int),
    }
    (vectors,) = open_onnx(folder / "model_alone.onnx")(**given)
    np.testing.assert_allclose(vectors, student(ids).sentence_embedding.detach(), atol=1e-5)
    folder, alone = exported  # of a student that reads no states
    assert (alone.alone_difference, alone.alone_bytes) == (None, None)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "correction.npz", "export.json"}


def test_an_adapted_student_that_could_read_states_is_exported_without_them(adapted, tmp_path):
    _, corrected, ids, mask, _ = adapted
    torch.manual_seed(0)
    student = RefBertModel(RefBertConfig(**SHAPE)).eval()
    export = export_onnx(student, tmp_path / "onnx", corrected=corrected)
    assert export.inputs == ("input_ids", "attention_mask", "token_type_ids")
    answer = ExportedStudent(tmp_path / "onnx").answer(ids.numpy(), mask.numpy())
    with torch.inference_mode():
        said = student(ids, attention_mask=mask).sentence_embedding
        wanted = corrected.correction.answer(said, corrected.words(ids, mask)).vector
    np.testing.assert_allclose(answer.vector, wanted, atol=1e-4)


def test_an_exported_classifier_with_embedded_keys_and_readout_matches_the_student_or_is_refused(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = RefBertConfig(
        **SHAPE,
        num_labels=3,
        embedding_size=8,
        reference_keys="embedding",
        reference_layers="first",
        reference_readout=True,
        reference_gate=True,
    )
    student = RefBertForSequenceClassification(config)
    for gates in (student.encoder.layers[0].attention.gate, student.encoder.readout.gate):
        torch.nn.init.ones_(gates)
    export = export_onnx(student, tmp_path / "onnx")
    assert "reference_ids" in export.inputs
    assert export.outputs == ("logits", "sentence_embedding")
    assert export.int8_difference is None
    assert student.training  # untouched
    assert student.encoder.layers[0].attention.own is None
    # The same graph, which takes ten seconds to trace.
    monkeypatch.setattr("refbert.export.to_onnx", lambda *given: shutil.copy(tmp_path / "onnx/model.onnx", given[-1]))
    with pytest.raises(InputError, match="nothing was written"):
        export_onnx(student, tmp_path / "refused", tolerance=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


# ---------------------------------------------------------------- of a student that was adapted

WORDS, COUNT = 12, 6


@pytest.fixture(scope="module")
def adapted():
    """A student that reads nothing, what corrects it, and texts with references, of which the first text has none."""
    torch.manual_seed(0)
    student = RefBertModel(RefBertConfig(**SHAPE, reference_mode="none")).eval()
    vectors = np.random.default_rng(0).standard_normal((50, WORDS)).astype(np.float32)
    words = WordVectors(word_table(vectors), [0, 1, 2])
    ids, mask = torch.randint(3, 50, (300, 7)), torch.ones(300, 7, dtype=torch.long)
    with torch.inference_mode():
        said, near = student(ids, attention_mask=mask).sentence_embedding, words(ids, mask)
    taught = 5 * (said + torch.tanh(near @ torch.randn(WORDS, SHAPE["dim"]) * 2))
    fitted = fit_global_part(lambda: iter([Rows(said, near, taught)]), GlobalPartOptions(landmarks=40))
    correction = Correction("0123456789ab", "v1", fitted.part, 0.4, 0.1, COUNT)
    correction = Correction.from_bytes(correction.to_bytes())  # as a folder keeps it
    residuals = taught - correction.answer(said, near).vector
    asked, asked_mask = torch.randint(0, 50, (5, 9)), torch.ones(5, 9, dtype=torch.long)
    asked_mask[1, 4:] = 0
    asked[2] = 1  # special tokens only
    found = torch.randint(0, 300, (5, COUNT))
    references = TorchReferences(taught[found], residuals[found], near[found])
    references.residuals[0] = torch.nan
    references.residuals[3, 2:] = torch.nan
    return student, Corrected(correction, words), asked, asked_mask, references


@pytest.fixture(scope="module")
def exported(adapted, tmp_path_factory):
    student, corrected, *_ = adapted
    folder = tmp_path_factory.mktemp("adapted-export") / "onnx"
    return folder, export_onnx(student, folder, corrected=corrected)


def test_an_exported_student_answers_as_the_adapted_one_alone_and_by_references(adapted, exported):
    student, (correction, words), ids, mask, references = adapted
    folder, export = exported
    assert export.outputs == ("words", "key", "sentence_embedding")
    assert export.reader == "0123456789ab_v1"
    with torch.inference_mode():
        said, near = student(ids, attention_mask=mask).sentence_embedding, words(ids, mask)
        wanted = {name: correction.answer(said, near, read) for name, read in (("alone", None), ("read", references))}
    assert (wanted["alone"].vector - wanted["read"].vector).abs().max() > 0.1  # references matter here
    reader = ExportedStudent(folder)
    given = References(*(column.numpy() for column in references))
    for name, read in (("alone", None), ("read", given)):
        answer = reader.answer(ids.numpy(), mask.numpy(), references=read)
        for part, of_torch in wanted[name]._asdict().items():
            np.testing.assert_allclose(getattr(answer, part), of_torch.numpy(), atol=1e-5, err_msg=f"{name} {part}")
    np.testing.assert_allclose(reader.words(ids.numpy(), mask.numpy()), near.numpy(), atol=1e-5)


def test_an_exported_student_refuses_other_references_and_folders_in_one_line(adapted, exported, tmp_path):
    _, _, ids, mask, references = adapted
    reader = ExportedStudent(exported[0])
    narrow = References(*(column.numpy() for column in references))._replace(words=np.zeros((5, COUNT, 3), np.float32))
    with pytest.raises(InputError, match=r"have words of shape \(5, 6, 3\), wanted \(5, 6, 12\)"):
        reader.answer(ids.numpy(), mask.numpy(), references=narrow)
    with pytest.raises(InputError, match=r"model_int8.onnx is not there; export it"):
        ExportedStudent(exported[0], int8=True)
    with pytest.raises(InputError, match=r"exported before it was adapted, or never was"):
        ExportedStudent(tmp_path)
    (tmp_path / CORRECTION).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"correction.npz cannot be read .*; export the student again"):
        ExportedStudent(tmp_path)


def test_an_exported_student_needs_no_torch():
    code = "import sys, refbert.exported; print('torch' in sys.modules, 'transformers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]
