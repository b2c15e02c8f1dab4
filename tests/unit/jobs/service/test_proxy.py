"""The middleware in Ray's proxy: a request without a response gets a 503 and a time to retry."""

import subprocess
import sys

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from jobs.service.errors import NotReady, error_body, headers_of, kind_of
from jobs.service.proxy import LOST, LostReplica, middlewares


def test_a_lost_request_is_a_503_in_the_services_own_form():
    async def lost(scope, receive, send):
        assert scope["type"] == "http"

    answer = TestClient(LostReplica(lost)).get("/", headers={"x-request-id": "mine"})
    error = NotReady(LOST)
    assert answer.status_code == kind_of(error).status == 503
    assert answer.json() == error_body(str(error), kind_of(error).type, "mine")
    assert headers_of(error).items() <= {("Retry-After", answer.headers["retry-after"])}


def test_a_response_passes_unchanged():
    async def answer(request):
        return PlainTextResponse("here", 500)

    app = Starlette(routes=[Route("/", answer)], middleware=middlewares())
    found = TestClient(app).get("/")
    assert (found.status_code, found.text) == (500, "here")


def test_the_proxy_imports_neither_torch_nor_transformers():
    code = "import sys, jobs.service.proxy; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
