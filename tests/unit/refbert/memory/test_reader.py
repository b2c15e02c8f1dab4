"""The three-line API's promises: order and company change nothing, references do, labels are the head's."""

import zlib

import numpy as np
import pytest
import torch

import refbert
from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.errors import InputError
from refbert.teacher import load_tokenizer

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
