"""Teachers of every family: they load, encode and teach, or one line says why not. docs/teachers.md has the same table."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from refbert.batch import Batch
from refbert.config import LossConfig, ReferenceConfig, StudentConfig, TeacherConfig
from refbert.distillation import Distiller, Targets, new_student
from refbert.errors import InputError
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import reference_texts
from refbert.optimisation import adamw
from refbert.passages import normalise, split_passages
from refbert.teacher import load_teacher, load_tokenizer, segment_inputs, tokenize, tokenizer_hash
from refbert.tokenizer import word_spans
from tests.unit.refbert.teacher_families import FAMILIES, TEXTS, make_model, make_teacher, make_tokenizer
from tests.unit.refbert.tokenizer_families import sentences

TABLE = Path(__file__).parents[3] / "docs" / "teachers.md"
STEPS = 20


def documented() -> dict[str, list[str]]:
    """The other cells of each row of the table, by family."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows if cells[0].strip() in FAMILIES}


def test_the_documented_families_are_those_that_are_tested():
    assert list(documented()) == list(FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Two would wait for each other longer than such small models compute."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return {name: make_teacher(name, tmp_path_factory.mktemp("family")) for name in FAMILIES}


def losses_of_training(teacher, tokens: int) -> list[float]:
    """Distil a tiny student for a few steps, on texts and a pair."""
    student = new_student(StudentConfig(**SHAPE), teacher, seed=0, reference_dim=teacher.dim)
    distiller = Distiller(student.train(), LossConfig(relation_heads=4))
    optimizer, losses = adamw(distiller, 5e-3, 0.01), []
    ids, mask, segments = tokenize(teacher.tokenizer, [*TEXTS, (TEXTS[0], TEXTS[1])], tokens)
    encoding = teacher.encode(ids, mask, token_type_ids=segments)
    nothing = torch.zeros(len(ids), 0, dtype=torch.long)
    batch = Batch(ids, mask, nothing, torch.zeros(len(ids), 0, teacher.dim), nothing, token_type_ids=segments)
    for _ in range(STEPS):
        loss, _ = distiller(batch, Targets((encoding.states.clone(),), mask))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_of_each_family_encodes_up_to_its_last_position_and_teaches(folders, name):
    config = TeacherConfig(model=folders[name], tokens=24)
    teacher = load_teacher(config)
    texts = [*TEXTS, "\u200b", "a", (TEXTS[0], TEXTS[1])]
    encoded = teacher.encode_texts(texts)
    for text, (ids, states) in zip(texts, encoded, strict=True):
        assert 1 <= len(ids) == len(states) <= 24
        assert np.isfinite(states).all()
        ((_, alone),) = teacher.encode_texts([text])
        np.testing.assert_allclose(states, alone, atol=5e-3)  # company and padding change nothing
    losses = losses_of_training(teacher, 24)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    kind, positions, trained = documented()[name][:3]
    assert kind in json.loads((Path(folders[name]) / "tokenizer.json").read_text())["model"]["type"] or "byte" in kind
    assert trained == f"{STEPS} steps"
    if positions == "no limit":
        load_teacher(config.model_copy(update={"tokens": 512}))
        return
    load_teacher(config.model_copy(update={"tokens": int(positions)}))
    with pytest.raises(InputError, match=rf"teacher.tokens=\d+ exceeds the {positions} positions of") as refused:
        load_teacher(config.model_copy(update={"tokens": int(positions) + 1}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_passages_of_each_family_give_the_text_back_and_fit_its_budget(folders, name):
    """Tokenized alone, as the teacher will: a passage that exceeds the budget would lose its end."""
    tokenizer, budget = load_tokenizer(folders[name]), 16
    room = budget - tokenizer.num_special_tokens_to_add()
    lossless = fits = True
    for text in map(normalise, [*sentences(25), " ".join(TEXTS)]):
        passages = split_passages(text, room, partial(word_spans, tokenizer))
        words_fit = max(len(word_spans(tokenizer, word)) for word in text.split(" ")) <= room
        lossless &= "".join(passages).replace(" ", "") == text.replace(" ", "")
        lossless &= not words_fit or " ".join(passages) == text
        fits &= max(len(tokenizer(passage)["input_ids"]) for passage in passages) <= budget
    splits, exact = documented()[name][3:5]
    assert (splits, exact) == ("yes" if lossless else "no", "yes" if fits else "no")


@pytest.mark.parametrize("name", ["ALBERT", "ELECTRA"])
def test_of_a_factorised_table_words_are_as_wide_as_its_embeddings(folders, name):
    teacher = load_teacher(TeacherConfig(model=folders[name], tokens=24))
    assert teacher.embedding_dim < teacher.dim
    student = new_student(StudentConfig(**SHAPE), teacher, seed=0)
    assert student.config.embedding_size == teacher.embedding_dim
    asked = ReferenceConfig(criterion="dense", dense_index=True)
    manifest = manifest_of(teacher, asked)
    texts = reference_texts(teacher, manifest, asked)
    ids, _ = teacher.encode_texts(["a film"])[0]
    assert len(texts.query("a film", ids, None).sentence) == manifest.words_dim == teacher.embedding_dim
    with pytest.raises(InputError, match=f"words_dim={teacher.dim} exceeds the teacher's {teacher.embedding_dim}"):
        manifest_of(teacher, asked.model_copy(update={"words_dim": teacher.dim}))
    wide = StudentConfig(**SHAPE, embedding_size=teacher.dim)
    with pytest.raises(InputError, match=f"embedding_size={teacher.dim} exceeds the teacher's {teacher.embedding_dim}"):
        new_student(wide, teacher, seed=0)


def test_a_tokenizer_without_a_pad_token_pads_with_another_special_token_and_keeps_its_hash(folders):
    plain = AutoTokenizer.from_pretrained(folders["GPT-2"])
    assert plain.pad_token_id is None
    tokenizer = load_tokenizer(folders["GPT-2"])
    assert tokenizer.pad_token_id == plain.convert_tokens_to_ids(plain.eos_token)
    assert tokenizer_hash(tokenizer) == tokenizer_hash(plain)
    ids, mask, _ = tokenize(tokenizer, [TEXTS[0], "a"], 24)
    assert ids[1].tolist() == [*plain("a")["input_ids"], *[tokenizer.pad_token_id] * (ids.shape[1] - 1)]
    assert mask.sum(1).tolist() == [len(plain(TEXTS[0])["input_ids"][:24]), 1]


@pytest.mark.parametrize("texts", [[""], ["", "\u200b"], ["", TEXTS[0]]])
def test_texts_without_any_token_have_finite_states_and_change_no_other(folders, texts):
    """A tokenizer without special tokens makes nothing of them, and attention over nothing is NaN."""
    teacher = load_teacher(TeacherConfig(model=folders["GPT-2"], tokens=24))
    ids, mask, _ = tokenize(teacher.tokenizer, texts, 24)
    assert ids.dtype == mask.dtype == torch.int64
    assert mask.sum(1).min() == 1
    assert teacher.encode(ids, mask).states[mask.bool()].isfinite().all()


def test_a_tokenizer_without_any_special_token_is_refused_in_one_line(folders, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders["GPT-2"])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(InputError, match="has no special token to pad texts with; name one as pad_token"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_larger_than_the_embeddings_is_refused_at_load(tmp_path):
    family = FAMILIES["BERT"]
    tokenizer = make_tokenizer(family)
    tokenizer.add_tokens(["brandnew"])
    make_model(family, tokenizer, vocab_size=len(tokenizer) - 1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"token 'brandnew' with id \d+, and the model embeds \d+ tokens"):
        load_teacher(TeacherConfig(model=str(tmp_path), tokens=16))


def test_weights_that_the_checkpoint_lacks_or_that_are_not_finite_are_refused(tmp_path):
    family = FAMILIES["BERT"]
    tokenizer = make_tokenizer(family)
    make_model(family, tokenizer, num_hidden_layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shape = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": 2}))
    with pytest.raises(InputError, match=r"lacks \d+ weights \(encoder.layer.1.* which would be random"):
        load_teacher(TeacherConfig(model=str(tmp_path), tokens=16))
    model = make_model(family, tokenizer)
    next(model.parameters()).data[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot teach: 1 tensors hold NaN or infinite values"):
        load_teacher(TeacherConfig(model=str(tmp_path), tokens=16))


def test_an_encoder_decoder_with_a_head_is_refused_in_one_line(tmp_path):
    path = make_teacher("BART", tmp_path, AutoModelForSequenceClassification)
    with pytest.raises(InputError, match="is an encoder-decoder, whose head reads its decoder"):
        load_teacher(TeacherConfig(model=path, tokens=16, head="classification"))


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "DistilBERT", "DeBERTa-v3", "ModernBERT"])
def test_a_model_gets_segments_only_where_it_has_two(name):
    """Also from a tokenizer that makes them for every pair, as BERT's does."""
    family = FAMILIES[name]
    model = make_model(family, make_tokenizer(family), AutoModelForSequenceClassification)
    segments = torch.tensor([[0, 0, 1, 1]])
    inputs = segment_inputs(model, segments)
    assert list(inputs) == (["token_type_ids"] if name == "BERT" else [])
    assert model(input_ids=torch.tensor([[5, 6, 7, 8]]), **inputs).logits.isfinite().all()
