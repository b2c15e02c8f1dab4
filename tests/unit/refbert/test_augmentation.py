"""Copies of texts with words replaced by similar ones, on a real vocabulary."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from refbert.augmentation import Augmenter
from refbert.config import AugmentConfig, TeacherConfig
from refbert.teacher import Teacher

TEXT = "The film's plot is good, but unbelievably long."
PAIR = ("A man plays the guitar.", "Nobody sings 2 songs")


@pytest.fixture(scope="module")
def augmenter(teacher):
    return Augmenter(teacher, AugmentConfig(copies=4, candidates=8))


def words_of(text: str) -> list[str]:
    return text.lower().replace(",", " ,").replace(".", " .").replace("'", " ' ").split()


def test_copies_replace_whole_words_by_their_candidates_and_change_nothing_else(augmenter):
    (copies,) = augmenter.copies([TEXT], seed=0)
    assert 0 < len(set(copies)) == len(copies) <= 4
    assert TEXT not in copies
    ids = augmenter.tokenizer.get_vocab()
    replaced = 0
    for copy in copies:
        assert len(words_of(copy)) == len(words_of(TEXT))
        for was, now in zip(words_of(TEXT), words_of(copy), strict=True):
            if was != now:
                replaced += 1
                assert ids[now] in augmenter.candidates(ids[was])
        assert "unbelievably" in copy, "a word of several tokens stays"
    assert replaced


def test_candidates_are_the_nearest_whole_words_by_centred_cosine(augmenter, teacher):
    ids = teacher.tokenizer.get_vocab()
    vectors = teacher.static_vectors() - teacher.static_vectors().mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-vectors @ vectors[ids["good"]])
    wanted = [token for token in order if augmenter.words[token] and token != ids["good"]][:8]
    near = augmenter.candidates(ids["good"])
    assert set(near) == set(wanted)
    assert {"great", "better"} & {teacher.tokenizer.convert_ids_to_tokens(int(token)) for token in near}
    assert not any(augmenter.words[ids[token]] for token in ("##ing", "[CLS]", "[MASK]", "!", "a", "1990"))


def test_both_texts_of_a_pair_are_augmented_and_a_seed_repeats_its_copies(augmenter):
    first, again = (list(augmenter.copies([TEXT, PAIR], seed=3)) for _ in range(2))
    assert first == again
    assert first != list(augmenter.copies([TEXT, PAIR], seed=4))
    assert all(isinstance(copy, tuple) and "2" in copy[1] for copy in first[1])
    assert {copy[0] for copy in first[1]} - {PAIR[0]}
    assert {copy[1] for copy in first[1]} - {PAIR[1]}


def test_a_text_without_words_has_no_copies(augmenter):
    assert list(augmenter.copies(["1990 !", ""], seed=0)) == [[], []]


def test_the_share_of_replaced_words_is_the_configs(teacher):
    words = ["good", "bad", "film", "music", "story", "light", "river", "house"]
    text = " ".join(words * 50)
    for share in (0.1, 0.4, 1.0):
        made = Augmenter(teacher, AugmentConfig(copies=1, replaced=share))
        ((copy,),) = made.copies([text], seed=0)
        changed = np.mean([was != now for was, now in zip(text.split(), copy.split(), strict=True)])
        assert changed == pytest.approx(share, abs=0.08)


def test_copies_keep_their_spaces_with_a_byte_level_vocabulary():
    """RoBERTa's kind, where a token holds the space before its word."""
    corpus = ["the good film was long and the bad film was short"] * 20
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<unk>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", unk_token="<unk>")
    shape = RobertaConfig(vocab_size=len(tokenizer), hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    torch.manual_seed(0)
    teacher = Teacher(RobertaModel(shape), tokenizer, TeacherConfig(), "byte-level")
    made = Augmenter(teacher, AugmentConfig(copies=5, replaced=1.0, candidates=3))
    ((*copies,),) = made.copies(["the good film was long"], seed=0)
    assert copies
    for copy in copies:
        assert copy.startswith("the "), "a first word without a space before it is another token, which is no word here"
        assert len(copy.split()) == 5
        assert all(len(tokenizer(f" {word}")["input_ids"]) == 1 for word in copy.split()[1:])
