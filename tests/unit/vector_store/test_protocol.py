"""Qdrant's messages without its client: the same ones, whoever imports them and when."""

import subprocess
import sys

USERS = (
    "vector_store.store, vector_store.retriever, vector_store.verification, vector_store.server.process, "
    "vector_store.server.servicers, vector_store.server.interceptor, vector_store.server.index_build"
)
HTTP = {"qdrant_client", "qdrant_client.http", "starlette", "uvicorn", "httpx"}
ALONE = f"import sys, {USERS}; print(sorted({HTTP} & set(sys.modules)))"


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_store_its_server_and_its_users_do_not_load_qdrants_http_client_nor_an_http_server():
    assert said(ALONE) == "[]"


def test_the_client_imported_after_the_messages_has_the_same_ones():
    assert said("from vector_store.protocol import api\nimport qdrant_client.grpc as g\nprint(g is api)") == "True"
    assert said("import qdrant_client.grpc as g\nfrom vector_store.protocol import api\nprint(g is api)") == "True"
    code = "from vector_store.protocol import api\nfrom qdrant_client import QdrantClient, grpc\nprint(grpc is api)"
    assert said(code) == "True"
