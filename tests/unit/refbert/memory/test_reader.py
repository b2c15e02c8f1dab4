"""The three-line API's promises: order and company change nothing, references do, labels are the head's."""

import shutil
import sys
import zlib

import numpy as np
import pytest
import torch

import refbert
from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.config import ReferenceConfig
from refbert.errors import InputError, UnavailableError
from refbert.teacher import load_tokenizer
from vector_store.schema import Manifest

DIM = 16
TEXTS = ["a good phone", "bad", "the film was much too long and it says nothing at all", "good", "no", "Is it? It is."]


@pytest.fixture(scope="module", params=["encoder", "classifier", "number"])
def folder(request, tiny_teacher_path, tmp_path_factory):
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "dim": DIM}
    labels = {"classifier": {"id2label": {0: "no", 1: "yes", 2: "maybe"}}, "number": {"num_labels": 1}}
    config = RefBertConfig(initializer_range=0.2, **shape, **labels.get(request.param, {}))
    model = RefBertModel(config) if request.param == "encoder" else RefBertForSequenceClassification(config)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    load_tokenizer(tiny_teacher_path).save_pretrained(folder)
    return folder


def look_up(texts):
    """States that are a function of the text alone; a text that starts with n has no reference."""
    lengths = [0 if str(text).startswith("n") else 1 + len(str(text)) % 3 for text in texts]
    ids, mask = np.zeros((len(texts), 3), np.int64), np.zeros((len(texts), 3), bool)
    states = np.zeros((len(texts), 3, DIM), np.float16)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        random = np.random.default_rng(zlib.crc32(str(text).encode()))
        ids[row, :length], mask[row, :length] = random.integers(1, 99, length), True
        states[row, :length] = random.standard_normal((length, DIM))
    return ids, states, mask


@pytest.mark.parametrize("references", [None, look_up], ids=["null", "read"])
def test_batch_results_equal_single_results_in_order(folder, references):
    together = refbert.load(folder, references, batch=4)
    alone = np.concatenate([together.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together.encode(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    assert together.encode([]).shape == (0, DIM)


def test_references_change_the_answer_of_texts_that_have_one(folder):
    read, null = refbert.load(folder, look_up).encode(TEXTS), refbert.load(folder).encode(TEXTS)
    for text, one, other in zip(TEXTS, read, null, strict=True):
        assert np.allclose(one, other, atol=1e-5) == text.startswith("n")


@torch.inference_mode()
def test_predictions_are_the_heads_best_label_and_its_score(folder):
    student = refbert.load(folder, look_up, batch=2)
    if not isinstance(student.model, RefBertForSequenceClassification):
        with pytest.raises(InputError, match="has no head"):
            student.predict(TEXTS)
        return
    pairs = [("a good phone", "it is good"), ("no", "bad")]
    for text, found in zip([*TEXTS, *pairs], student.predict([*TEXTS, *pairs]), strict=True):
        ids, states, mask = (torch.from_numpy(array) for array in look_up([text]))
        inputs = student.tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
        model = RefBertForSequenceClassification.from_pretrained(folder).eval()
        logits = model(**inputs, reference_ids=ids, reference_states=states, reference_mask=mask).logits[0]
        scores = logits if len(logits) == 1 else logits.softmax(-1)
        assert found.label == model.config.id2label[int(scores.argmax())]
        assert found.score == pytest.approx(float(scores.max()), abs=1e-5)


def test_bad_input_says_what_to_do(folder, tmp_path):
    student = refbert.load(folder, lambda texts: look_up(texts[:1]))
    with pytest.raises(InputError, match="a row for each"):
        student.encode(TEXTS)
    with pytest.raises(InputError, match=r"write \[text\]"):
        student.encode("a text")
    with pytest.raises(InputError, match="holds no student"):
        refbert.load(tmp_path)


def refusal(*arguments, **options):
    """The one line that `load` refuses with."""
    with pytest.raises((InputError, UnavailableError)) as refused:
        refbert.load(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def reading(folder, tmp_path):
    """Write a copy of the student that says other things of its memory; each keyword goes into its config."""
    manifest = Manifest(
        encoder="t", fingerprint="f", tokenizer="t", layer=2, text_tokens=5, tokens=5, encoder_dim=DIM, dim=DIM,
        bm25_k1=1.2, bm25_b=0.75, bm25_average_tokens=24,
    )  # fmt: skip
    complete = {"collection": "c", "references": ReferenceConfig(criterion="keywords").model_dump(mode="json")}

    def write(**changes):
        copy = shutil.copytree(folder, tmp_path / "student", dirs_exist_ok=True)
        config = RefBertConfig.from_pretrained(folder)
        config.update({"memory": manifest.model_dump(mode="json"), **complete, **changes})
        config.save_pretrained(copy)
        return copy

    return write


def test_texts_are_cut_where_the_teachers_were_which_the_folder_says(folder, reading):
    long = "it is a film that is much too long"
    by_memory, by_itself = (refbert.load(reading(**says)) for says in ({}, {"memory": None, "text_tokens": 5}))
    assert refbert.load(folder).tokenize([long]).input_ids.shape == (1, 11)
    for student in (by_memory, by_itself, refbert.load(folder, tokens=5)):
        assert student.tokenize([long]).input_ids.shape == (1, 5)


def test_references_that_cannot_be_read_are_refused_in_one_line(folder, reading, tmp_path, monkeypatch):
    options = ReferenceConfig(criterion="keywords").model_dump(mode="json")
    assert "without a memory" in refusal(folder, tmp_path)
    assert "an earlier release wrote it" in refusal(reading(references=None, collection=None), tmp_path)
    assert "angle: Extra inputs" in refusal(reading(references={**options, "angle": 3}), tmp_path)
    assert "read no references" in refusal(reading(references={**options, "criterion": "none"}), tmp_path)
    assert "read no references" in refusal(reading(reference_mode="none"), tmp_path)
    assert "format 2, this release reads 3" in refusal(reading(memory={"format_version": 2, "angle": 3}), tmp_path)
    assert "neither a server's URL" in refusal(folder, {"criterion": "keywords"})
    monkeypatch.setitem(sys.modules, "vector_store.location", None)  # as where gRPC is not installed
    assert "pip install 'refbert[memory]'" in refusal(reading(), tmp_path)


def test_a_folder_that_is_no_whole_student_is_refused_in_one_line(reading, tiny_teacher_path):
    assert "holds a bert, wanted a refbert student" in refusal(tiny_teacher_path)
    folder = reading()
    (folder / "model.safetensors").write_bytes(b"\0" * 9)
    assert "copy the whole student/ folder" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "copy the whole student/ folder" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "copy the whole student/ folder" in refusal(folder)
