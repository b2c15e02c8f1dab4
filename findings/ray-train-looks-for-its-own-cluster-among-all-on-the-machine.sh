#!/usr/bin/env bash
# ray 2.60.0
#
# Guess: two programs on one machine, each with a local Ray of its own (`ray.init(address="local")`), do not know of each
# other; what runs inside one cluster asks that cluster.
# Found: Ray Train's PlacementGroupCleaner, an actor that frees a placement group when its controller has died, asks the state
# API without an address. That looks for running Rays among the machine's processes, finds two, and raises ConnectionError
# inside the actor: its traceback is in the training's output, and nothing is watched from then on. The training itself goes on
# and ends well. With one Ray on the machine nothing of the kind is said.
# Output seen on 2026-11-29: `alone: trained, 0 tracebacks`, then `beside another: trained, 1 tracebacks` and the line
# `ConnectionError: Found multiple active Ray instances`.
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "ray[train]==2.60.0" numpy
cat > beside.py <<'PY'
import time

import ray

ray.init(address="local", num_cpus=1, include_dashboard=False)
print("up", flush=True)
time.sleep(600)
PY
cat > train.py <<'PY'
import time

import ray
from ray.train import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

ray.init(address="local", num_cpus=2)
DataParallelTrainer(lambda: time.sleep(25), scaling_config=ScalingConfig(num_workers=1)).fit()
print("trained")
PY
export RAY_TRAIN_V2_ENABLED=1
said() {
    echo "$1: $(grep -c '^trained' "$2" | sed 's/^1$/trained/'), $(grep -c 'Found multiple active Ray instances' "$2" || true) tracebacks"
}
venv/bin/python train.py > alone.txt 2>&1
said alone alone.txt
venv/bin/python beside.py > beside.txt 2>&1 &
beside=$!
trap 'kill $beside; rm -rf "$folder"' EXIT
until grep -q up beside.txt; do sleep 1; done
venv/bin/python train.py > both.txt 2>&1
said "beside another" both.txt
grep -o 'ConnectionError: Found multiple active Ray instances' both.txt | head -1
grep -q '^trained' alone.txt
grep -q '^trained' both.txt
! grep -q 'Found multiple active Ray instances' alone.txt && grep -q 'Found multiple active Ray instances' both.txt
