"""Whether Ray is still there: asked of its head's port, since Ray itself would wait a minute for an answer."""

import socket
import time
import types
from concurrent.futures import Future

import pytest
import ray

from jobs.run.session import ray_has_gone, wait_while_ray_answers


@pytest.fixture
def head(monkeypatch):
    """The port of the Ray that this process is joined to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(gcs_address=address))
        yield listening


def test_a_ray_is_gone_when_its_head_accepts_no_connection(head, monkeypatch):
    assert not ray_has_gone()
    head.close()
    assert ray_has_gone()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert not ray_has_gone()


def test_what_needs_ray_is_waited_for_while_ray_is_there_and_its_failure_is_raised(head):
    done: Future[None] = Future()
    done.set_exception(OSError("no space"))
    with pytest.raises(OSError, match="no space"):
        wait_while_ray_answers(done, 60)
    wait_while_ray_answers(Future(), 0.1)
    head.close()
    started_s = time.monotonic()
    wait_while_ray_answers(Future(), 60)
    assert time.monotonic() - started_s < 10
