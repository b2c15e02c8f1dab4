"""Small tokenizers of each family that encoders use, trained on a few words: the libraries' own parts, no hub."""

import json
import random
from collections.abc import Callable, Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

TEXT = (
    "the a of and to in it is was not we they you film plot reading light lighter lightest memory remember remembered "
    "understand misunderstanding house houses household can't it's don't well-known state-of-the-art 1984 3.14 e.g. U.S. "
    '(perhaps) "quoted" end. stop! why? naïve café Straße 北京 東京都 привет 🎬 👩‍👩‍👧 #tag @name x=y*2 — … http://a.example/b?c=d'
)
WORDS = TEXT.split()
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 200 words; some of the words are run together to ones that exceed any small budget."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.choice([1, 5, 30, 200]))
        if draw.random() < 0.3:
            words.insert(draw.randrange(len(words)), "".join(draw.choices(WORDS, k=25)))
        texts.append(" ".join(words))
    return texts


def _wrapped(tokenizer: Tokenizer, trim_offsets: bool | None = None) -> PreTrainedTokenizerBase:
    """A transformers tokenizer with <s> and </s> around a text; RoBERTa's own where offsets may be trimmed."""
    ids = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = (
        processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ids)
        if trim_offsets is None
        else processors.RobertaProcessing(*ids, trim_offsets=trim_offsets, add_prefix_space=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def _byte_level(trim_offsets: bool) -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences(40),
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet),
    )
    return _wrapped(tokenizer, trim_offsets)


def _metaspace(split: bool) -> PreTrainedTokenizerBase:
    """BPE over words with a visible space; `split=False` lets tokens span words, as Llama's do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if not split else "always", split=split)
    tokenizer.train_from_iterator(
        sentences(40), trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    return _wrapped(tokenizer)


def _whitespace_split() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        sentences(40), trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    return _wrapped(tokenizer)


def _pieces(texts: Iterable[str], special: list[str]) -> list[tuple[str, float]]:
    """A Unigram vocabulary with scores, special tokens first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = next(token for token in special if "unk" in token.lower())
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, show_progress=False, unk_token=unknown)
    )
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def _wordpiece() -> PreTrainedTokenizerBase:
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer()
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained.train_from_iterator(
        sentences(40), trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    return BertTokenizer(vocab=trained.get_vocab())


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "WordPiece (BERT)": _wordpiece,
    "byte-level, trimmed (RoBERTa)": lambda: _byte_level(True),
    "byte-level, untrimmed (ModernBERT, DeBERTa)": lambda: _byte_level(False),
    "Metaspace": lambda: _metaspace(True),
    "Metaspace across words": lambda: _metaspace(False),
    "WhitespaceSplit": _whitespace_split,
    "Unigram (XLM-R)": lambda: XLMRobertaTokenizer(vocab=_pieces(sentences(40), ["<s>", "<pad>", "</s>", "<unk>"])),
    "Unigram (DeBERTa v3)": lambda: DebertaV2Tokenizer(
        vocab=_pieces(sentences(40), ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]), unk_id=1
    ),
    "Unigram (T5)": lambda: T5Tokenizer(vocab=_pieces(sentences(40), ["<pad>", "</s>", "<unk>"]), extra_ids=0),
}
"""Tokenizers by family; the encoder in brackets is one that has it."""
