#!/usr/bin/env bash
# qdrant-edge-py 0.9.0
#
# Guess: calls into the engine, which is Rust, release Python's lock while they work, as numpy's, pyarrow's and tokenizers' do. So a
# server in Python builds its index by `optimize` in a thread, and goes on answering.
# Found: `optimize` and `flush` hold the lock from beginning to end: no other thread of the process runs, and a server in the same
# process answers nobody, not even a health check. An index belongs into another process, on a copy of the shard's files.
# Output seen on 2026-11-30, 8,000 vectors of 64 numbers on two busy cores:
#   optimize: 15.79 s, in which another thread was not run for 15.79 s
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "qdrant-edge-py==0.9.0" "numpy==2.4.6"
cat > ask.py <<'PY'
import os
import threading
import time

import numpy as np
import qdrant_edge as edge

POINTS, DIM = 8_000, 64
vectors = np.random.default_rng(0).standard_normal((POINTS, DIM)).astype(np.float32).tolist()
params = edge.EdgeVectorParams(size=DIM, distance=edge.Distance.Cosine)
at_once = edge.EdgeOptimizersConfig(indexing_threshold=100)
os.mkdir("shard")
shard = edge.EdgeShard.create("shard", edge.EdgeConfig(vectors={"": params}, optimizers=at_once))
for start in range(0, POINTS, 500):
    points = [edge.Point(number, vectors[number], {}) for number in range(start, start + 500)]
    shard.update(edge.UpdateOperation.upsert_points(points))
pauses, ended = [], threading.Event()


def beat():
    before = time.monotonic()
    while not ended.wait(0.01):
        now = time.monotonic()
        pauses.append(now - before)
        before = now


other = threading.Thread(target=beat)
other.start()
time.sleep(0.2)
started = time.monotonic()
shard.optimize()
took = time.monotonic() - started
time.sleep(0.1)
ended.set()
other.join()
print(f"optimize: {took:.2f} s, in which another thread was not run for {max(pauses):.2f} s")
raise SystemExit(not (took > 0.5 and max(pauses) > 0.9 * took))
PY
venv/bin/python ask.py
