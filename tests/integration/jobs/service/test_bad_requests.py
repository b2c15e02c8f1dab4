"""Whatever a caller sends, it gets a one-line error, and the service goes on."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from jobs.service import batch_queue

LONG = "word " * 200_000  # 1 MB

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": []}, 422, "got 0 texts"),
        ({"input": ""}, 422, "text 0 is empty"),
        ({"input": ["a", " \n\t"]}, 422, "text 1 is empty"),
        ({"input": ["x"] * 2049}, 422, "got 2049 texts, wanted 1 to 2048"),
        ({"input": 5}, 422, "wanted a text, a list of texts"),
        ({"input": None}, 422, "wanted a text"),
        ({"input": True}, 422, "wanted a text"),
        ({"input": {"a": 1}}, 422, "wanted a text"),
        ({"input": [True, False]}, 422, "wanted a text"),
        ({"input": [1.5]}, 422, "wanted a text"),
        ({"input": [None]}, 422, "wanted a text"),
        ({"input": [[]]}, 422, "wanted a text"),
        ({"input": [[["a"]]]}, 422, "wanted a text"),
        ({"input": [["a", "b", "c"]]}, 422, "wanted a text"),
        ({"input": [["a", 5]]}, 422, "wanted a text"),
        ({"input": [["a", " "]]}, 422, "is empty"),
        ({"input": [[9906, 1917]]}, 422, "check_embedding_ctx_length=False"),
        ({"input": {"token_ids": [-1]}}, 422, "token id outside"),
        ({"input": [{"token_ids": [30522]}]}, 422, "token id outside"),
        ({"input": {"token_ids": [10**30]}}, 422, "token id outside"),
        ({}, 422, "input: is missing"),
        ([], 422, "valid dictionary"),
        ("x", 422, "valid dictionary"),
        ({"input": "x", "nope": 1}, 422, "nope: is not known"),
        ({"input": "x", "explain": "perhaps"}, 422, "explain: "),
        ({"input": "x", "dimensions": 7}, 422, "cannot be cut to 7"),
        ({"input": "x", "encoding_format": "hex"}, 422, "encoding_format: "),
        ({"input": "a\0b"}, 422, "null byte"),
        ({"input": LONG}, 422, "has 1000000 characters, wanted 20000 at most"),
        ({"input": {"token_ids": list(range(30_000))}}, 422, "token ids"),
    ],
    ids=lambda value: json.dumps(value)[:30] if isinstance(value, dict | list) else None,
)
def test_a_bad_request_is_refused_in_one_line(client, body, status, message):
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 600
    assert error["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b'{"input": "\\ud800"}', 422),
        (b'{"input": "\\udc00\\ud800"}', 422),
        (b'{"input": "\xff"}', 400),
        (b"[" * 100_000, 400),
        (b'{"input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"input": 1' + b"0" * 10_000 + b"}", 400),
        (b"\0" * 1000, 422),
        (b"x" * (16 * 2**20 + 1), 413),
    ],
    ids=[
        "nothing",
        "half",
        "lone surrogate",
        "turned surrogates",
        "no UTF-8",
        "open",
        "deep",
        "huge number",
        "nulls",
        "huge",
    ],
)
def test_a_body_that_is_not_json_is_refused(client, body, status):
    answer = client.post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_other_media_types_paths_and_methods_are_refused(client):
    form = client.post("/v1/embeddings", data={"input": "x"})
    assert form.status_code == 422
    for method, path, status in (("GET", "/v1/embeddings", 405), ("POST", "/v1/nope", 404), ("DELETE", "/", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"]
    assert client.get("/healthz", headers={"x-timeout-ms": "soon"}).status_code == 422


def test_the_service_still_answers_after_bad_requests(client):
    assert client.post("/v1/embeddings", json={"input": "still there?"}).status_code == 200


def test_a_slow_body_is_a_408_and_a_body_over_the_limit_a_413(open_app, serving):
    async def ask(app, *bodies, pause_s=0.0):
        sent = []

        async def receive():
            if not waiting:
                await asyncio.sleep(60)
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

        async def send(message):
            sent.append(message)

        waiting = list(bodies)
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/embeddings",
            "headers": [(b"content-type", b"application/json")],
        }
        await app(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"]

    with open_app(serving(serve__deadline_s=0.3, serve__max_request_bytes=1000)) as app:
        started_s = time.monotonic()
        status, message = asyncio.run(ask(app, *[b" "] * 100, pause_s=0.05))
        assert (status, time.monotonic() - started_s < 2) == (408, True)
        assert "did not arrive" in message
        assert asyncio.run(ask(app, *[b" " * 300] * 4))[0] == 413
        app.service.student.memory.close()


def test_a_slow_client_gets_a_408_while_others_are_answered(listen, serving):
    with (
        listen(serving(serve__deadline_s=1.0)) as address,
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as slow,
    ):
        head = (
            "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        )
        slow.sendall(head.encode())
        for _ in range(4):
            slow.sendall(b" ")
            assert httpx.post(f"{address}/v1/embeddings", json={"input": "quick"}).status_code == 200
        slow.settimeout(10)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_the_health_check_fails_for_a_stuck_queue_and_one_that_has_ended(connect, serving, monkeypatch):
    with connect(serving()) as client, ThreadPoolExecutor(1) as pool:
        queue = client.app.service.queue
        queue.check()
        free = blocked(client, monkeypatch)
        waiting = pool.submit(client.post, "/v1/embeddings", json={"input": "x"})
        monkeypatch.setattr(batch_queue, "STUCK_S", 0.1)
        time.sleep(0.4)
        with pytest.raises(RuntimeError, match="has not ended"):
            queue.check()
        free.set()
        assert waiting.result(30).status_code == 200
        queue.check()
    with pytest.raises(RuntimeError, match="has ended"):
        queue.check()


def blocked(client, monkeypatch):
    """Block the student until the returned event is set."""
    free, student = threading.Event(), client.app.service.student
    forward_now = student.forward

    def forward_later(batch):
        free.wait(30)
        return forward_now(batch)

    monkeypatch.setattr(student, "forward", forward_later)
    return free


def test_a_full_queue_is_a_429_with_retry_after_until_it_has_room(connect, serving, monkeypatch):
    config = serving(serve__max_queued_texts=8, serve__max_texts=8, serve__max_batch=4)
    with connect(config) as client, ThreadPoolExecutor(16) as pool:
        free = blocked(client, monkeypatch)
        ask = lambda count: client.post("/v1/embeddings", json={"input": ["x"] * count})  # noqa: E731
        waiting = [pool.submit(ask, 4) for _ in range(2)]
        deadline = time.monotonic() + 10
        while client.app.service.queue._queued and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        waiting += [pool.submit(ask, 8)]
        time.sleep(0.3)
        refused = ask(1)
        free.set()
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert [answer.result(30).status_code for answer in waiting] == [200] * 3
        assert ask(8).status_code == 200
        text = client.get("/metrics").text
        assert 'refbert_errors_total{kind="Overloaded"} 1.0' in text
        assert "refbert_queued_texts 0.0" in text


def test_a_request_after_its_deadline_is_a_504_and_is_not_computed(connect, serving, monkeypatch):
    with connect(serving(serve__deadline_s=5.0)) as client:
        free = blocked(client, monkeypatch)
        started_s = time.monotonic()
        answer = client.post("/v1/embeddings", json={"input": "x"}, headers={"X-Timeout-Ms": "200"})
        late = [client.post("/v1/embeddings", json={"input": "y"}, headers={"X-Timeout-Ms": "100"}) for _ in range(3)]
        assert time.monotonic() - started_s < 3
        free.set()
        assert {one.status_code for one in (answer, *late)} == {504}
        assert client.post("/v1/embeddings", json={"input": "z"}).status_code == 200
        texts = next(
            line for line in client.get("/metrics").text.splitlines() if line.startswith("refbert_batch_texts_sum")
        )
        assert float(texts.split()[1]) <= 3  # those two that a thread had taken, and the last


def test_requests_before_a_student_is_loaded_are_503(connect, serving, monkeypatch):
    with connect(serving()) as client:
        service = client.app.service
        loaded, service.students = service.students, {}
        for answer in (
            client.get("/readyz"),
            client.post("/v1/embeddings", json={"input": "x"}),
            client.get("/v1/models"),
        ):
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
        service.students = loaded
        assert client.get("/readyz").status_code == 200
