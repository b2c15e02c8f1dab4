"""Exported graphs say what the student says, at any batch and length, and none is written that does not."""

import pytest
import torch

from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.errors import InputError
from refbert.export import Graph, differences, export_onnx, open_onnx, read_export

SHAPE = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "dim": 16,
    "initializer_range": 0.2,
}  # fmt: skip


def test_an_encoder_and_its_int8_form_say_what_the_student_says(tmp_path):
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


@pytest.mark.parametrize(("keys", "reads_out"), [("embedding", False), ("states", True)])
def test_a_classifier_that_reads_token_ids_says_what_the_student_says(tmp_path, keys, reads_out):
    torch.manual_seed(0)
    config = RefBertConfig(
        **SHAPE,
        num_labels=3,
        embedding_size=8,
        reference_keys=keys,
        reference_layers="first",
        reference_readout=reads_out,
    )
    student = RefBertForSequenceClassification(config)
    export = export_onnx(student, tmp_path / "onnx")
    assert "reference_ids" in export.inputs
    assert export.outputs == ("logits", "sentence_embedding")
    assert export.int8_difference is None
    assert student.training  # untouched
    assert student.encoder.layers[0].attention.own is None


def test_a_graph_that_differs_is_not_written(tmp_path):
    with pytest.raises(InputError, match="nothing was written"):
        export_onnx(
            RefBertModel(RefBertConfig(**{**SHAPE, "num_hidden_layers": 1})), tmp_path / "onnx", tolerance=1e-12
        )
    assert not list(tmp_path.iterdir())
