"""A student that has learned nothing: what adapting corrects most."""

import torch

from refbert.folder import save_student
from refbert.student import RefBertModel
from refbert.student_config import RefBertConfig


def save_untaught_student(folder, teacher):
    """Write one that reads no references, without a word table, into its folder."""
    torch.manual_seed(0)
    shape = RefBertConfig(
        vocab_size=len(teacher.tokenizer), dim=teacher.dim, pooling=teacher.pooling, reference_mode="none",
        hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
    )  # fmt: skip
    save_student(folder, RefBertModel(shape), teacher.tokenizer, text_tokens=16)
