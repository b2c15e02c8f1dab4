#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0
#
# Guess: a model whose __init__ sets a bare parameter, `self.gate = nn.Parameter(torch.zeros(3))`, has zeros there after
# `from_pretrained` of a checkpoint that lacks it, as `Model(config)` has.
# Found: `from_pretrained` builds the model on the meta device, so what __init__ computes is lost, and a missing parameter gets
# memory that nothing has written. Only what `_init_weights` sets is set. The load report names the key as missing, and says
# "newly initialized". Here torch fills fresh memory with NaN, so that the outcome does not depend on what lay there before.
# Output seen on 2026-11-28: `built:  [0.0, 0.0, 0.0]`, then `loaded: [nan, nan, nan]`.
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "transformers==5.23.0" "torch==2.13.*" numpy
cat > gate.py <<'PY'
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class Config(PretrainedConfig):
    model_type = "gated"

    def __init__(self, gated=False, **kwargs):
        self.gated = gated
        super().__init__(**kwargs)


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(2, 2)
        if config.gated:
            self.gate = nn.Parameter(torch.zeros(3))
        self.post_init()


Model(Config()).save_pretrained("saved")
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True
print("built: ", Model(Config(gated=True)).gate.tolist())
loaded = Model.from_pretrained("saved", gated=True).gate
print("loaded:", loaded.tolist())
raise SystemExit(0 if loaded.isnan().all() else 1)
PY
venv/bin/python gate.py
