"""langchain-qdrant writes a collection `docs`: python write_langchain.py REST_URL KEY < {"texts": [...], "vectors": [...]}."""

import json
import sys
import warnings

from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore


class Given(Embeddings):
    """The vectors that were given with the texts; of the text that langchain asks for the width, any."""

    def __init__(self, vectors):
        self.vectors = vectors

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        return next(iter(self.vectors.values())) if text == "dummy_text" else self.vectors[text]


warnings.simplefilter("ignore", UserWarning)  # a key without TLS
url, key = sys.argv[1:]
given = json.load(sys.stdin)
known = Given(dict(zip(given["texts"], given["vectors"], strict=True)))
metadatas = [{"n": number} for number in range(len(given["texts"]))]
QdrantVectorStore.from_texts(given["texts"], known, metadatas=metadatas, collection_name="docs", url=url, api_key=key)
