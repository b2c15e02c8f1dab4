"""The student as other libraries use an encoder: pooling its states gives its answer, corrected where the student was adapted.

`AutoModel` loads this model, with this package or, from the copy of the code in a student's folder, without the package
(`refbert.remote_code`). The model looks up no references; a student that `refbert.load` opens with its memory does.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.numpy import save_file
from torch import Tensor
from transformers.utils import cached_file

from refbert.correction import Correction
from refbert.correction_files import CORRECTION, WEIGHTS, WORD_TABLE, correction_in, load_word_table
from refbert.errors import InputError
from refbert.student import RefBertModel, RefBertOutput, standard_call
from refbert.student_layers import WordEmbedding
from refbert.word_table import WordTable
from refbert.words import WordVectors

WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Options of `from_pretrained` that say where a file is, on the Hub or on disk."""


class RefBertSentenceModel(RefBertModel):
    """The encoder, whose `last_hidden_state` (batch, tokens, dim) is in the teacher's space.

    Its masked mean is the sentence's vector (the first state where the config's `pooling` is `cls`), so pooling, which most
    libraries apply, gives what `refbert.load(...).encode` gives without a memory; `sentence_embedding` (batch, dim) is that
    vector. Of an adapted student both are corrected: every token's state is moved by what corrects the vector.
    """

    _keys_to_ignore_on_load_unexpected = [r"classifier\."]  # noqa: RUF012 - a student's with a head

    # Not modules: what corrects is in files of its own, no part of the weights, and stays in float32.
    _correcting: tuple[Correction, WordVectors] | None = None
    _table: WordTable | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Load the encoder of a student's folder, or of a repository on the Hub, and what corrects its answers.

        Raises InputError where the correction is another student's.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        where = {name: options[name] for name in WHERE if name in options}
        # A file that is on the Hub is in the folder of the others once it was asked for.
        found = {
            name: cached_file(pretrained_model_name_or_path, name, _raise_exceptions_for_missing_entries=False, **where)
            for name in (WEIGHTS, WORD_TABLE, CORRECTION)
        }
        if correction := found[CORRECTION]:
            model.correct_as_in(Path(correction).parent)
        return loaded

    def correct_as_in(self, folder: Path) -> None:
        """Correct answers by what a student's folder holds. Raises InputError where that is another student's."""
        if self.config.special_token_ids is None:
            raise InputError(
                f"the config of {folder} does not name special_token_ids: an earlier release wrote it; run "
                "`python jobs/export.py` once"
            )
        correction, words = correction_in(folder, self.config.special_token_ids)
        if correction and words:
            self._correcting = correction, words
            if not isinstance(self.get_input_embeddings(), WordEmbedding):
                self._table = load_word_table(folder)

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Save the encoder, and what corrects its answers. A reader refuses that beside weights that changed."""
        super().save_pretrained(save_directory, *args, **options)
        if self._correcting:
            (Path(save_directory) / CORRECTION).write_bytes(self._correcting[0].to_bytes())
        if self._table:
            save_file(self._table._asdict(), Path(save_directory) / WORD_TABLE)

    @standard_call
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        reference_ids: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_qkv: bool = False,
        output_projected_states: bool = True,
        return_dict: bool | None = None,
    ) -> RefBertOutput:
        """Encode (batch, tokens) ids. Everything but the two vectors is as in `RefBertModel.forward`.

        Raises ValueError for references of an adapted student, which is not corrected by states.
        """
        if self._correcting and reference_states is not None:
            raise ValueError(
                "an adapted student reads vectors, not reference_states; open its memory with refbert.load"
            )
        output = super().forward(
            input_ids, attention_mask, token_type_ids, reference_ids, reference_states, reference_mask, return_dict=True,
            output_hidden_states=output_hidden_states, output_attentions=output_attentions, output_qkv=output_qkv,
            output_projected_states=output_projected_states,
        )  # fmt: skip
        own = cast(Tensor, output.sentence_embedding)
        states = output.projected_states
        vector = self._corrected(own, input_ids, attention_mask)
        if states is not None and self._correcting:
            states = states + (vector - own)[:, None]
        return RefBertOutput(**{**output, "last_hidden_state": states, "sentence_embedding": vector})

    def _corrected(self, vectors: Tensor, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        if self._correcting is None:
            return vectors
        correction, words = self._correcting
        correction.part.to(vectors.device)
        mine = words.to(vectors.device)(input_ids, torch.ones_like(input_ids) if mask is None else mask)
        return correction.answer(vectors.float(), mine).vector
