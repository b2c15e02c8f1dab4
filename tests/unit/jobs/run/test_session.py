"""How long Ray is waited for as it starts, and whether it is there: asked of its head, as Ray itself would wait a minute."""

import inspect
import os
import re
import socket
import stat
import time
import types
from concurrent.futures import Future
from itertools import pairwise

import pytest
import ray

from jobs.run import session
from jobs.run.mutual_tls import tls_environment
from jobs.run.session import ASK_AGAIN_S, make_token_private, ray_has_gone, wait_for_slow_nodes, wait_while_ray_answers
from refbert.errors import UnavailableError


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


def test_a_node_is_asked_for_until_it_has_registered_and_not_without_a_pause(monkeypatch):
    asked = []

    def get_node(gcs_address, node_id):
        asked.append(time.monotonic())
        if len(asked) < 4:
            raise RuntimeError("no such node")
        return {"node_id": node_id}

    monkeypatch.setattr(ray._private.services, "get_node", get_node)
    wait_for_slow_nodes()
    wait_for_slow_nodes()  # a second session of the process
    assert ray._private.services.get_node("gcs", "node") == {"node_id": "node"}
    assert len(asked) == 4
    assert all(later - earlier >= ASK_AGAIN_S for earlier, later in pairwise(asked))
    monkeypatch.setattr(session, "NODE_START_S", 0.0)
    asked.clear()
    with pytest.raises(RuntimeError, match="no such node"):
        ray._private.services.get_node("gcs", "node")


def test_ray_still_asks_for_its_own_node_where_we_have_it_wait():
    """A Ray that asks in another way would give up after its own limit, unseen until a machine is busy."""
    assert "ray._private.services.get_node(" in inspect.getsource(ray._private.node.Node.__init__)


@pytest.fixture
def token(tmp_path, monkeypatch):
    """Where the token of this user's Rays is, in a home without one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in session.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / session.TOKEN


def test_rays_token_is_made_for_its_user_alone_and_one_that_ray_made_becomes_so(token, caplog):
    make_token_private()
    made = token.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", made)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert os.listdir(token.parent) == [token.name]
    token.chmod(0o644)
    caplog.set_level("INFO")
    make_token_private()
    assert token.read_text() == made
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "readable by other users" in caplog.text


def test_a_token_of_the_environment_is_left_as_it_is(token, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/elsewhere")
    make_token_private()
    assert not token.parent.exists()


def test_a_home_that_cannot_have_a_token_is_said_and_no_error(token, caplog):
    token.parent.write_text("a file")
    make_token_private()
    assert "cannot make" in caplog.text


def test_a_head_that_accepts_and_says_nothing_is_not_taken_for_one_without_a_key(tmp_path, monkeypatch):
    """Ray would go on in the clear, and show its token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(session, "SILENCE_S", 0.3)
    tls_environment()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=r"says nothing for 0\.3 s"):
            session._wants_our_key(address)
    assert not session._wants_our_key(address)  # nobody listens
    for other in ("auto", "ray://127.0.0.1:10001", "127.0.0.1:six", "192.0.2.1:6379"):
        assert not session._wants_our_key(other)


def test_a_port_where_another_user_listens_is_no_head_of_ours(monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        session._require_no_stranger(address)
        monkeypatch.setattr(os, "getuid", lambda: 10_000)
        with pytest.raises(UnavailableError, match="another user of this machine"):
            session._require_no_stranger(address)
        session._require_no_stranger(f"192.0.2.1:{server.getsockname()[1]}")  # another machine's port of this number
