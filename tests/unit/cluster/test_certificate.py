"""The store's client accepts the certificate that the documentation generates, for the names of the nodes."""

import os
import shutil
import subprocess
import sys
from concurrent import futures

import grpc
import pytest

from tests.conftest import REPOSITORY

ASK = """
import sys
from qdrant_client import grpc as api
from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError
try:
    with connect(StoreConfig(), sys.argv[1]) as client:
        client.call(client.collections.List, api.ListCollectionsRequest(), 3.0)
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_client_trusts_the_generated_certificate_and_no_other(tmp_path):
    script = REPOSITORY / "cluster" / "qdrant-certificate.sh"
    for folder in ("made", "other"):
        subprocess.run([script, tmp_path / folder], check=True, capture_output=True)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
    ask = ["openssl", "x509", "-in", tmp_path / "made/tls.crt", "-noout", "-ext", "subjectAltName"]
    shown = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert "DNS:qdrant-2.qdrant-headless," in shown
    assert "DNS:qdrant.refbert.svc.cluster.local," in shown

    server = grpc.server(futures.ThreadPoolExecutor(2))  # no call is implemented: what counts is that one arrives
    pair = ((tmp_path / "made/tls.key").read_bytes(), (tmp_path / "made/tls.crt").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:

        def answer(folder):
            roots = {
                "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / folder / "ca.crt"),
                "PYTHONPATH": str(REPOSITORY),
            }
            asked = [sys.executable, "-c", ASK, f"https://localhost:{port}"]
            return subprocess.run(asked, env=os.environ | roots, capture_output=True, text=True, check=True).stdout

        assert "UNIMPLEMENTED" in answer("made")
        assert "did not answer" in answer("other")
    finally:
        server.stop(None)
