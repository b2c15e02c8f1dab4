#!/usr/bin/env bash
# qdrant-edge-py 0.9.0
#
# Guess: once points are deleted, the shard is flushed and optimized, and is closed and opened again, the folder holds nothing of
# them: segments are written anew without them, and a log is only for what is not in a segment yet.
# Found: segments are clean. The write-ahead log has every deleted payload in plain text: it is cut by whole files of 32 MB, of which
# the open one and the one before it stay whatever is flushed, and no option of EdgeConfig says another size. Where a text must be
# gone from the disk, what is left has to be written into a new shard.
# Output seen on 2026-11-30, 2,000 points written, flushed, deleted, flushed and optimized, with two openings:
#   points: 0; files with the deleted text: wal/open-1 (2000 times)
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "qdrant-edge-py==0.9.0"
cat > ask.py <<'PY'
from pathlib import Path

import qdrant_edge as edge

TEXT, POINTS = "kumquat-7731-marmalade", 2000
folder = Path("shard")
folder.mkdir()
params = edge.EdgeVectorParams(size=4, distance=edge.Distance.Dot)
shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={"": params}))
points = [edge.Point(n, [float(n % 7), 1.0, 2.0, 3.0], {"text": f"{TEXT} {n}"}) for n in range(POINTS)]
shard.update(edge.UpdateOperation.upsert_points(points))
shard.flush()
shard.update(edge.UpdateOperation.delete_points(list(range(POINTS))))
for _ in range(2):
    shard.flush()
    shard.optimize()
    shard.flush()
    shard.close()
    shard = edge.EdgeShard.load(str(folder))
left = shard.info().points_count
shard.close()
files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
found = {path.relative_to(folder): path.read_bytes().count(TEXT.encode()) for path in files}
found = {path: times for path, times in found.items() if times}
print(f"points: {left}; files with the deleted text:", ", ".join(f"{path} ({times} times)" for path, times in found.items()))
raise SystemExit(not (left == 0 and found and all(path.parts[0] == "wal" for path in found)))
PY
venv/bin/python ask.py
