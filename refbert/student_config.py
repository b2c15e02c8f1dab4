"""The student's configuration: shape and pooling, how and where it reads a reference, and which memory it was trained with."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig


class RefBertConfig(PretrainedConfig):
    """Shape of a student.

    Defaults are TinyBERT-4's: 4 layers of 312, FFN 1200, 12 heads. `dim` is the teacher's hidden size, `reference_dim` the
    width of stored states: the same, unless the memory keeps a projection of them.

    - `token_embeddings`: `learned`, or `words`: the teacher's token embeddings in 8 bits, frozen, which also find references
      (`WordEmbedding`); `embedding_size` is their width then, by default `dim`.
    - `embedding_size`: width of the token embeddings where it is not `hidden_size`: a table (vocabulary, embedding_size) and
      a projection without bias (ALBERT, sec. 3.1). With 128, 5.6 M parameters fewer of BERT's vocabulary.
    - `reference_layers`: `first` (the paper), `all`, or a list of layer numbers. Each reading layer costs two
      dim -> hidden projections where keys come from states, one where they come from embeddings.
    - `reference_mode`: `concat` (own keys and values, then the reference's), `replace` (the reference's only: the paper taken
      literally), `none` (vanilla TinyBERT, without any reference parameters).
    - `reference_readout`: also copy from the reference's states after the last layer, in the teacher's own space (`ReadOut`);
      ours. Two projections of `readout_width`, whatever the teacher's width.
    - `reference_gate`: scale what is read by a gate that starts at zero (`Attention`, `ReadOut`). A pretrained encoder then
      starts unchanged. For `concat`.
    - `reference_keys`: `states`, or `embedding`: the student's own embedding of the reference's token ids, through the
      layer's own key projection. Values always come from the states.
    - `pooling`: the student's vector is the mean of its projected states (`mean`) or the first one (`cls`), as its teacher's.
    - `text_tokens`: how many tokens of a text its teacher read, special tokens included: texts are cut there.
    - `memory`, `collection`, `references`: the manifest of the memory that the student was distilled with, its
      collection's name, and the look-up's options (`refbert.config.ReferenceConfig`); None for a student that reads none.
    - `answers`: how a classifier's answers are mixed with its teacher's of near texts (`refbert.answers.Mixing`); None where
      they are not.
    - `special_token_ids`: of the tokenizer's tokens those that are no words, for `refbert.words.WordVectors`.
    """

    model_type = "refbert"
    keys_to_ignore_at_inference = ["projected_states", "sentence_embedding"]  # noqa: RUF012 - Trainer predicts logits alone

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 312,
        token_embeddings: str = "learned",
        embedding_size: int | None = None,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 12,
        intermediate_size: int = 1200,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        pad_token_id: int = 0,
        dim: int = 768,
        reference_dim: int | None = None,
        reference_layers: str | Sequence[int] = "all",
        reference_mode: str = "concat",
        reference_keys: str = "states",
        reference_readout: bool = False,
        reference_gate: bool = False,
        readout_heads: int = 4,
        readout_width: int = 128,
        pooling: str = "mean",
        text_tokens: int | None = None,
        memory: dict[str, Any] | None = None,
        collection: str | None = None,
        references: dict[str, Any] | None = None,
        answers: dict[str, Any] | None = None,
        special_token_ids: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.token_embeddings = token_embeddings
        self.embedding_size = embedding_size or (dim if token_embeddings == "words" else None)
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.dim = dim
        self.reference_dim = dim if reference_dim is None else reference_dim
        self.reference_layers = reference_layers if isinstance(reference_layers, str) else list(reference_layers)
        self.reference_mode = reference_mode
        self.reference_keys = reference_keys
        self.reference_readout = reference_readout
        self.reference_gate = reference_gate
        self.readout_heads = readout_heads
        self.readout_width = readout_width
        self.pooling = pooling
        self.text_tokens = text_tokens
        self.memory = memory
        self.collection = collection
        self.references = references
        self.answers = answers
        self.special_token_ids = None if special_token_ids is None else list(special_token_ids)
        super().__init__(**kwargs)
        self.pad_token_id = pad_token_id  # which transformers 4 would set to None

    @property
    def reads_any(self) -> bool:
        """Whether the student reads a reference, in any layer or by the read-out."""
        return any(map(self.reads_reference, range(self.num_hidden_layers))) or self.reads_out

    @property
    def reads_out(self) -> bool:
        """Whether the student has a read-out."""
        return self.reference_readout and self.reference_mode != "none"

    def reads_reference(self, layer: int) -> bool:
        """Whether this layer's attention sees the reference."""
        if self.reference_mode == "none":
            return False
        if self.reference_layers == "all":
            return True
        return layer == 0 if self.reference_layers == "first" else layer in self.reference_layers
