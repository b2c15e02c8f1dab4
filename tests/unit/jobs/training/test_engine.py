"""Layers computed again or compiled: the same losses and gradients, or one line; and what is hidden from an import."""

import importlib
import io
import sys
from contextlib import redirect_stdout

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from jobs.sections import TrainConfig
from jobs.training.engine import COMPILED, fit_layers, hidden
from refbert.config import LossConfig
from refbert.distillation import Distiller
from refbert.errors import UnavailableError
from refbert.student import RefBertModel
from refbert.student_config import RefBertConfig


def distiller() -> Distiller:
    torch.manual_seed(0)
    shape = RefBertConfig(
        vocab_size=99, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, dim=16,
    )  # fmt: skip
    return Distiller(RefBertModel(shape).train(), LossConfig())


def gradients(made: Distiller, tokens: int) -> dict[str, torch.Tensor]:
    """Of a loss over all that a forward with dropout gives, by parameter name."""
    torch.manual_seed(1)
    ids = torch.randint(1, 99, (3, tokens))
    mask = torch.ones_like(ids)
    output = made.student(
        input_ids=ids, attention_mask=mask, reference_ids=ids, reference_states=torch.randn(3, tokens, 16),
        reference_mask=mask, output_attentions=True, output_qkv=True,
    )  # fmt: skip
    made.zero_grad()
    scores = torch.stack([scores.exp().mean() for scores in output.attention_scores]).sum()
    (output.projected_states.square().mean() + scores + output.qkv[1].square().mean()).backward()
    return {name: x.grad.clone() for name, x in made.named_parameters() if x.grad is not None}


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"activation_checkpointing": True}, 0.0),
        pytest.param({"compile": True}, 1e-5, marks=pytest.mark.long),
        pytest.param({"compile": True, "activation_checkpointing": True}, 1e-5, marks=pytest.mark.long),
    ],
)
def test_activation_checkpointing_and_compilation_keep_the_gradients(options, tolerance):
    plain, fitted = distiller(), distiller()
    if options.get("compile"):  # a compiled dropout draws other numbers
        for made in (plain, fitted):
            made.student.eval()
    fit_layers(fitted, TrainConfig(**options))
    for tokens in (5, 9, 7):
        wanted, got = gradients(plain, tokens), gradients(fitted, tokens)
        assert got.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(got[name], gradient, rtol=tolerance, atol=tolerance)


def test_compiled_code_is_kept_and_found_in_the_users_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("REFBERT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)  # any program: nothing is compiled before the first forward
    monkeypatch.setenv(COMPILED, default_cache_dir())  # as torch sets it when it is imported
    fit_layers(distiller(), TrainConfig(compile=True))
    assert cache_dir() == str(tmp_path / "torchinductor")
    monkeypatch.setenv(COMPILED, str(tmp_path / "mine"))
    fit_layers(distiller(), TrainConfig(compile=True))
    assert cache_dir() == str(tmp_path / "mine")


def test_compiling_without_a_compiler_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UnavailableError, match=r"needs a C\+\+ compiler .* install g\+\+"):
        fit_layers(distiller(), TrainConfig(compile=True))


def test_a_hidden_module_is_as_if_not_installed_and_back_afterwards(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with hidden("this"), pytest.raises(ImportError):
        importlib.import_module("this")
    with redirect_stdout(io.StringIO()):
        imported = importlib.import_module("this")
    with hidden("this"):
        assert importlib.import_module("this") is imported
