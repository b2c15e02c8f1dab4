"""bfloat16 is used where it was asked for and the processor has instructions for it."""

import pytest
import torch

from refbert import precision
from refbert.config import TeacherConfig
from refbert.precision import autocasts, has_fast_bf16
from refbert.teacher import load_teacher

EMULATES = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}


@pytest.fixture
def on_cpu(monkeypatch):
    """Returns a function that makes this machine's CPU one with the given capabilities."""

    def become(**found):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: EMULATES | found)
        precision._cpu_has_fast_bf16.cache_clear()
        precision._say_once.cache_clear()

    yield become
    monkeypatch.undo()
    precision._cpu_has_fast_bf16.cache_clear()


@pytest.mark.parametrize(
    ("found", "is_fast"),
    [({}, False), ({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"architecture": "aarch64"}, True)],
)
def test_a_cpu_without_bfloat16_instructions_computes_in_float32(on_cpu, found, is_fast):
    on_cpu(**found)
    assert (has_fast_bf16("cpu"), autocasts("autocast", "cpu")) == (is_fast, is_fast)
    assert not autocasts("fp32", "cpu")
    assert has_fast_bf16("cuda")


def test_autocast_without_effect_is_logged_once(on_cpu, caplog):
    caplog.set_level("INFO")
    on_cpu()
    for _ in range(3):
        autocasts("autocast", "cpu")
    assert [record.message for record in caplog.records] == [
        "precision=autocast: this CPU has neither AVX512-BF16 nor AMX, so matrix products stay in float32"
    ]


def test_a_bf16_teacher_has_the_same_fingerprint_where_it_computes_in_float32(on_cpu, tiny_teacher_path):
    config = TeacherConfig(model=tiny_teacher_path, precision="bf16")
    on_cpu(amx_bf16=True)
    fast = load_teacher(config)
    on_cpu()
    slow = load_teacher(config)
    assert (fast.model.dtype, slow.model.dtype) == (torch.bfloat16, torch.float32)
    assert fast.fingerprint == slow.fingerprint
    assert fast.fingerprint != load_teacher(TeacherConfig(model=tiny_teacher_path)).fingerprint
