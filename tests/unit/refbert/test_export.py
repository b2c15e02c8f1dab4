"""Exported graphs match the student at any batch and length; a graph that does not is not written."""

import pytest
import torch

from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.errors import InputError
from refbert.export import Graph, differences, export_onnx, open_onnx, read_export

SHAPE = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "dim": 16,
    "initializer_range": 0.2,
}  # fmt: skip


def test_an_exported_encoder_and_its_int8_form_match_the_student(tmp_path):
    torch.manual_seed(0)
    student = RefBertModel(RefBertConfig(**SHAPE))
    export = export_onnx(student, tmp_path / "onnx", int8=True)
    assert read_export(tmp_path / "onnx") == export
    assert export.inputs == ("input_ids", "attention_mask", "token_type_ids", "reference_states", "reference_mask")
    assert 0 < export.difference < 1e-5
    assert export.difference < export.int8_difference < 0.2
    assert export.int8_cosine > 0.99
    assert export.int8_bytes < export.bytes
    with torch.no_grad():
        student.null_reference.add_(1.0)
    assert differences(Graph(student), open_onnx(tmp_path / "onnx/model.onnx"))[0] > 1e-3  # it can tell


def test_an_exported_classifier_with_embedded_keys_and_readout_matches_the_student_or_is_refused(tmp_path):
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
    with pytest.raises(InputError, match="nothing was written"):
        export_onnx(student, tmp_path / "refused", tolerance=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
