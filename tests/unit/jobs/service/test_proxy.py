"""The middleware in Ray's proxy: a request that nobody has begun to answer is told when to try again."""

import subprocess
import sys

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from jobs.service.errors import NotReady, error_body, headers_of, kind_of
from jobs.service.proxy import LOST, LostReplica, middlewares


def test_a_request_that_was_lost_is_503_as_the_service_would_say_it():
    async def lost(scope, receive, send):
        assert scope["type"] == "http"

    answer = TestClient(LostReplica(lost)).get("/", headers={"x-request-id": "mine"})
    error = NotReady(LOST)
    assert answer.status_code == kind_of(error).status == 503
    assert answer.json() == error_body(str(error), kind_of(error).type, "mine")
    assert headers_of(error).items() <= {("Retry-After", answer.headers["retry-after"])}


def test_an_answer_passes_as_it_is():
    async def answer(request):
        return PlainTextResponse("here", 500)

    app = Starlette(routes=[Route("/", answer)], middleware=middlewares())
    found = TestClient(app).get("/")
    assert (found.status_code, found.text) == (500, "here")


def test_the_proxy_imports_no_models():
    code = "import sys, jobs.service.proxy; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
