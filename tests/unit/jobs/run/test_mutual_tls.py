"""The key by which a user's Rays know each other: made once, for its owner alone, and told from any other."""

import socket
import ssl
import stat
import threading
from contextlib import ExitStack, contextmanager

import pytest

from jobs.run.mutual_tls import CERTIFICATE, FOLDER, KEY, TLS_VARIABLES, asks_for_our_key, tls_environment


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where key and certificate are, in a home without any."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home" / FOLDER


def test_key_and_certificate_are_made_once_and_for_their_owner_alone(folder):
    variables = tls_environment()
    assert variables == dict(
        zip(TLS_VARIABLES, ("1", *(str(folder / name) for name in (CERTIFICATE, KEY, CERTIFICATE))), strict=True)
    )
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / KEY)] == [0o700, 0o600]
    made = (folder / KEY).read_bytes()
    assert tls_environment() == variables
    assert (folder / KEY).read_bytes() == made
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_others_could_read_is_closed_and_said(folder, caplog):
    tls_environment()
    (folder / KEY).chmod(0o644)
    tls_environment()
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600
    assert "was open to other users" in caplog.text


@pytest.mark.parametrize("name", [KEY, CERTIFICATE])
@pytest.mark.parametrize("damage", ["gone", "cut", "another's"])
def test_a_damaged_pair_is_made_anew(folder, tmp_path, monkeypatch, name, damage):
    tls_environment()
    if damage == "gone":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    else:
        monkeypatch.setenv("HOME", str(tmp_path / "other"))
        tls_environment()
        (folder / name).write_bytes((tmp_path / "other" / FOLDER / name).read_bytes())
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tls_environment()
    with listening(folder) as port:
        assert asks_for_our_key("127.0.0.1", port, 5)


def test_a_home_that_cannot_have_them_is_said_and_no_error(folder, caplog):
    folder.parent.write_text("a file")
    assert tls_environment() == {}
    assert "cannot make" in caplog.text


def test_a_server_with_another_key_or_without_any_is_not_ours(folder, tmp_path, monkeypatch):
    with listening(None) as port:
        assert not asks_for_our_key("127.0.0.1", port, 1)  # none was made yet
    tls_environment()
    with listening(None) as port:
        assert not asks_for_our_key("127.0.0.1", port, 1)
    with listening(folder) as port:
        assert asks_for_our_key("127.0.0.1", port, 5)
        monkeypatch.setenv("HOME", str(tmp_path / "other"))
        tls_environment()
        assert not asks_for_our_key("127.0.0.1", port, 5)
    assert not asks_for_our_key("127.0.0.1", port, 1)  # nobody listens any more


@contextmanager
def listening(folder):
    """A server that accepts with a folder's key; without a folder it speaks no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept_all, args=(server, folder), daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def accept_all(server, folder):
    context = None
    if folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    with ExitStack() as held:
        while True:
            try:
                connection = held.enter_context(server.accept()[0])
                if context:
                    held.enter_context(context.wrap_socket(connection, server_side=True))
                else:
                    connection.sendall(b"no TLS here\n")
            except ssl.SSLError:  # a client that does not trust us
                continue
            except OSError:
                return
