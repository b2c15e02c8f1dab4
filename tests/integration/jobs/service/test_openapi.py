"""The API matches its OpenAPI page, also for generated requests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_openapi_page_documents_limits_errors_and_keys(client):
    page = client.get("/openapi.json").json()
    assert "/v1/classify" not in page["paths"]  # this student has no head
    embedding = page["components"]["schemas"]["EmbeddingRequest"]["properties"]["input"]["anyOf"]
    assert embedding[0]["maxLength"] == 20_000
    assert embedding[1]["maxItems"] == 2048
    for path in ("embeddings", "similarity", "rerank", "explain"):
        operation = page["paths"][f"/v1/{path}"]["post"]
        assert {"401", "408", "413", "422", "429", "503", "504"} <= operation["responses"].keys()
        assert operation["security"] == [{"key": []}, {}]
        refused = operation["responses"]["422"]["content"]["application/json"]["schema"]
        assert refused == {"$ref": "#/components/schemas/ErrorResponse"}
    assert "HTTPValidationError" not in page["components"]["schemas"]
    for name in ("AttendedReference", "ExplainedReference"):
        reference = page["components"]["schemas"][name]["properties"]
        assert reference["step"]["deprecated"]
        assert "deprecated" not in reference["rung"]


def test_the_api_viewer_needs_no_other_host(client):
    page = client.get("/docs").text
    files = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert {file.rsplit(".", 1)[1] for file in files} >= {"js", "css"}
    for file in files:
        assert file.startswith("/")
        assert client.get(file).status_code == 200, file


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("has_head", [False, True])
def test_schemathesis_finds_no_violation_of_the_openapi_page(listen, serving, classifier, has_head, tmp_path):
    with listen(serving(), classifier if has_head else None) as address:
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"{address}/openapi.json", "--checks", "all",
            "--max-examples", "40", "--seed", "1", "--generation-database", "none",
        ]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stdout[-20_000:]
