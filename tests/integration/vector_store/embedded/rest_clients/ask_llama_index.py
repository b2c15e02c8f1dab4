"""llama-index's Qdrant store asks a server: python ask_llama_index.py REST_URL KEY. Prints what it found."""

import json
import sys
import uuid
import warnings

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

TEXTS = ["aab", "abb", "ccc", "ddd"]


def vector(text):
    return [float(text.count(letter)) + 0.01 for letter in "abcd"]


warnings.simplefilter("ignore", UserWarning)  # a key without TLS
url, key = sys.argv[1:]
client = QdrantClient(url=url, api_key=key)
store = QdrantVectorStore("llama_index", client=client)
ids = [str(uuid.UUID(int=number)) for number in range(4)]
store.add(
    [
        TextNode(text=text, id_=ids[number], embedding=vector(text), metadata={"n": number, "text": text})
        for number, text in enumerate(TEXTS)
    ]
)


def ask(text, k, operator=None, **more):
    filters = operator and MetadataFilters(filters=[MetadataFilter(operator=operator, **more)])
    query = VectorStoreQuery(query_embedding=vector(text), similarity_top_k=k, filters=filters)
    return [node.text for node in store.query(query).nodes]


found = {
    "nearest": ask("b", 2),
    "equal": ask("b", 4, FilterOperator.EQ, key="n", value=2),
    "at least": sorted(ask("b", 4, FilterOperator.GTE, key="n", value=2)),
    "one of": sorted(ask("b", 4, FilterOperator.IN, key="text", value=["aab", "ccc"])),
    "other than": sorted(ask("b", 4, FilterOperator.NE, key="text", value="aab")),
    "empty": len(ask("b", 4, FilterOperator.IS_EMPTY, key="absent", value=None)),
}
mmr = VectorStoreQuery(query_embedding=vector("ccc"), similarity_top_k=2, mode=VectorStoreQueryMode.MMR)
found["mmr"] = store.query(mmr).nodes[0].text
found["by id"] = [node.text for node in store.get_nodes(node_ids=[ids[3]])]
store.delete_nodes([ids[3]])
found["left"] = client.count("llama_index").count
store.clear()
found["cleared"] = not client.collection_exists("llama_index")
print(json.dumps(found))
