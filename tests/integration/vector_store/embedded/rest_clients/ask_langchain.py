"""langchain-qdrant asks a server: python ask_langchain.py REST_URL KEY, in an environment that has it. Prints what it found."""

import json
import sys
import warnings

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector
from qdrant_client import models

TEXTS = ["aab", "abb", "ccc"]


class Letters(Embeddings):
    """A text's vector: how often it has each letter."""

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        return [float(text.count(letter)) + 0.01 for letter in "abcd"]


class Words(SparseEmbeddings):
    """A text's sparse vector: which letters it has."""

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        return SparseVector(indices=sorted({ord(letter) for letter in text}), values=[1.0] * len(set(text)))


def texts(documents):
    return [document.page_content for document in documents]


warnings.simplefilter("ignore", UserWarning)  # a key without TLS
url, key = sys.argv[1:]
server = {"url": url, "api_key": key}
found = {}
numbers = [{"n": number} for number in range(3)]
store = QdrantVectorStore.from_texts(TEXTS, Letters(), metadatas=numbers, collection_name="langchain", **server)
found["nearest"] = [(document.page_content, document.metadata["n"]) for document in store.similarity_search("b", k=2)]
found["scores"] = [round(score, 3) for _, score in store.similarity_search_with_score("ccc", k=1)]
added = store.add_documents([Document(page_content="ddd", metadata={"n": 9})])
found["by id"] = texts(store.get_by_ids(added))
nine = models.Filter(must=[models.FieldCondition(key="metadata.n", match=models.MatchValue(value=9))])
found["filtered"] = texts(store.similarity_search("a", k=4, filter=nine))
store.delete(added)
same = QdrantVectorStore.from_existing_collection(collection_name="langchain", embedding=Letters(), **server)
found["retriever"] = texts(same.as_retriever(search_kwargs={"k": 4}).invoke("cb"))
hybrid = QdrantVectorStore.from_texts(
    TEXTS, Letters(), sparse_embedding=Words(), retrieval_mode=RetrievalMode.HYBRID, collection_name="hybrid", **server
)
found["hybrid"] = texts(hybrid.similarity_search("c", k=1))
found["mmr"] = texts(store.max_marginal_relevance_search("a", k=2, fetch_k=3))
print(json.dumps(found))
