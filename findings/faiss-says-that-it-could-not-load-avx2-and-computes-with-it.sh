#!/usr/bin/env bash
# faiss-cpu 1.15.1, numpy 2.4.6, on a processor with AVX2
#
# Guess: a library that logs "Could not load library with AVX2 support", then the ModuleNotFoundError, then that it loaded plain
# faiss, computes without AVX2: reinstall it, or take another build.
# Found: wheels of 1.15 have one module that chooses its instructions when it runs. The loader still looks for the module per
# instruction set that earlier wheels had, says at INFO that it is not there, and loads the one there is, which computes with
# AVX2: SIMDConfig says so, and the same search without it, by SIMDConfig.set_level, takes many times as long.
# Output seen on 2026-11-30: `said: Could not load library with AVX2 support due to: ModuleNotFoundError("No module named
# 'faiss.swigfaiss_avx2'")`, `level AVX2, dispatched at run time True`, `without it the search takes 12.4
# times as long` (beside other work).
# Ends with 0 while this is so, with 1 when it has changed, and with 0 and a line where the processor has no AVX2.
set -euo pipefail
grep -qw avx2 /proc/cpuinfo || { echo "this processor has no AVX2: nothing to see"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "faiss-cpu==1.15.1" "numpy==2.4.6"
cat > ask.py <<'PY'
import logging
import time

said: list[str] = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage().replace("\n", " "))
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.INFO)

import faiss
import numpy as np

config = faiss.SIMDConfig
level = config.get_level_name()
print("said:", next((line for line in said if "Could not load" in line), "nothing"))
print(f"level {level}, dispatched at run time {config.has_dynamic_dispatch()}")

faiss.omp_set_num_threads(1)
vectors = np.random.default_rng(0).standard_normal((20_000, 192), dtype=np.float32)
index = faiss.IndexScalarQuantizer(192, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
index.train(vectors)
index.add(vectors)


def seconds() -> float:
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        index.search(vectors[:8], 10)
        took.append(time.perf_counter() - begun)
    return min(took)


with_it = seconds()
config.set_level(faiss.SIMDLevel_NONE)
slower = seconds() / with_it
print(f"without it the search takes {slower:.1f} times as long")
raise SystemExit(not (level.startswith("AVX") and slower > 1.5 and any("Could not load" in line for line in said)))
PY
venv/bin/python ask.py
