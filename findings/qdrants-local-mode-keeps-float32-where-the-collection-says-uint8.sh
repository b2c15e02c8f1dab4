#!/usr/bin/env bash
# qdrant-client 1.20.0 in local mode, qdrant-edge-py 0.9.0
#
# Guess: a collection made with datatype=UINT8 or FLOAT16 holds such numbers wherever it is made. A test of recall or of scores in
# local mode (QdrantClient(":memory:")) then says what the engine will give.
# Found: local mode takes `datatype` and keeps float32. The engine rounds to float16, and for uint8 cuts off fractions and
# what is above 255. So embeddings between 0 and 1 by mistake in a uint8 collection score well in local mode, and 0 in the engine.
# Output seen on 2026-11-30, of the vector (.1, 300.125, .7, 3.9) and the query (1, 0, 0, 0) by dot product:
#   float16: local [0.1, 300.125, 0.7, 3.9] score 0.1, engine [0.099976, 300.0, 0.700195, 3.900391] score 0.099976
#   uint8: local [0.1, 300.125, 0.7, 3.9] score 0.1, engine [0.0, 255.0, 0.0, 3.0] score 0.0
# Ends with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "qdrant-client==1.20.0" "qdrant-edge-py==0.9.0"
cat > ask.py <<'PY'
from typing import NamedTuple

import qdrant_edge as edge
from qdrant_client import QdrantClient, models

VECTOR, QUERY = [0.1, 300.125, 0.7, 3.9], [1.0, 0.0, 0.0, 0.0]


class Held(NamedTuple):
    vector: list[float]
    score: float


def rounded(vector: list[float], score: float) -> Held:
    return Held([round(value, 6) for value in vector], round(score, 6))


def local(datatype: models.Datatype) -> Held:
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=4, distance=models.Distance.DOT, datatype=datatype)
    client.create_collection("held", vectors_config=params)
    client.upsert("held", [models.PointStruct(id=1, vector=VECTOR)])
    (record,) = client.retrieve("held", [1], with_vectors=True)
    return rounded(record.vector, client.query_points("held", query=QUERY).points[0].score)


def engine(datatype: edge.VectorStorageDatatype) -> Held:
    params = edge.EdgeVectorParams(size=4, distance=edge.Distance.Dot, datatype=datatype)
    shard = edge.EdgeShard.create(str(datatype), edge.EdgeConfig(vectors={"": params}))
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(1, VECTOR, {})]))
    (record,) = shard.retrieve([1], False, True)
    search = edge.SearchRequest(
        query=edge.Query.Nearest(QUERY), limit=1, offset=0, with_payload=False, with_vector=False
    )
    return rounded(record.vector, shard.search(search)[0].score)


def differ(name: str, here: Held, there: Held) -> bool:
    print(f"{name}: local {here.vector} score {here.score}, engine {there.vector} score {there.score}")
    return here == rounded(VECTOR, VECTOR[0]) != there


half = differ("float16", local(models.Datatype.FLOAT16), engine(edge.VectorStorageDatatype.Float16))
byte = differ("uint8", local(models.Datatype.UINT8), engine(edge.VectorStorageDatatype.Uint8))
raise SystemExit(not (half and byte))
PY
venv/bin/python ask.py
