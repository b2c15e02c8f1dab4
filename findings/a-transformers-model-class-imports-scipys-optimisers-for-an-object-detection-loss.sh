#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, scipy 1.17.1
#
# Guess: `from transformers import PreTrainedModel`, which every text encoder of one's own derives from, imports torch and the
# library's own base class; what only vision models, generation or several machines need is imported when it is used.
# Found: modeling_utils imports the table of all models' losses, and that the object detectors' ones, which take
# linear_sum_assignment from scipy.optimize wherever scipy happens to be installed: linear programming and root finding come
# with it. The class also brings continuous batching of generation (and with it torch._dynamo) and DTensor (and with it sympy).
# The class costs more processor time than torch itself. In an environment without scipy the same class is there without it.
# Output seen on 2026-11-29: `with scipy: class over torch 1.8; scipy.optimize 1, loss_for_object_detection 1, torch._dynamo 1,
# torch.distributed.tensor 1`, then `without: class over torch 1.9; scipy.optimize 0, ...`, the rest as with it. In another
# environment `python -X importtime` gave scipy.optimize 1.4 of the 4.6 s that the class takes.
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "torch==2.13.*" "transformers==5.23.0" "numpy<3"
cat > ask.py <<'PY'
import sys
import time

begun = time.process_time()
import torch

with_torch = time.process_time()
import transformers

transformers.PreTrainedModel
with_class = time.process_time()
names = ("scipy.optimize", "transformers.loss.loss_for_object_detection", "torch._dynamo", "torch.distributed.tensor")
found = ", ".join(f"{name.removeprefix('transformers.loss.')} {int(name in sys.modules)}" for name in names)
print(f"class over torch {(with_class - with_torch) / (with_torch - begun):.1f}; {found}")
PY
venv/bin/python ask.py > /dev/null # compiles
without=$(venv/bin/python ask.py)
venv/bin/pip install --quiet "scipy==1.17.1"
venv/bin/python ask.py > /dev/null
with=$(venv/bin/python ask.py)
echo "with scipy: $with"
echo "without: $without"
[[ $with == *"scipy.optimize 1, loss_for_object_detection 1, torch._dynamo 1"* ]]
[[ $without == *"scipy.optimize 0, loss_for_object_detection 1, torch._dynamo 1"* ]]
