"""Which devices are taken to be fast in bfloat16: all but x86 CPUs without instructions for it.

`autocasts` decides by that whether `precision=autocast` means bfloat16; nothing is cast here.
"""

import logging
from functools import cache

import torch

log = logging.getLogger(__name__)


def has_fast_bf16(device: str | torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself.

    An x86 CPU without AVX512-BF16 or AMX emulates it: 1.3 GFLOP/s against 136 in float32, on two cores with AVX2
    (docs/log.md, 2026-11-25). Of other processors nothing is known, so the answer is yes.
    """
    return torch.device(device).type != "cpu" or _cpu_has_fast_bf16()


def autocasts(precision: str, device: str | torch.device) -> bool:
    """Whether matrix products are in bfloat16: `autocast` was asked for, and the device has fast bfloat16."""
    if precision != "autocast":
        return False
    if not has_fast_bf16(device):
        _say_once()
        return False
    return True


@cache
def _cpu_has_fast_bf16() -> bool:
    found = torch.cpu.get_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bf16") or found.get("amx_bf16"))


@cache
def _say_once() -> None:
    log.info("precision=autocast: this CPU has neither AVX512-BF16 nor AMX, so matrix products stay in float32")
