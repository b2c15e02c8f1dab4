"""The socket of a directory's server: its owner's alone, the same after a restart, and never that of a copy."""

import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from vector_store.server.address import (
    LONGEST_PATH,
    NOWHERE,
    read_address,
    remove_socket,
    served_socket,
    socket_path,
    write_address,
)

ADDRESS = {"url": "http://127.0.0.1:4711", "instance": "a", "pid": 1}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A directory whose last server had a socket, and the socket's path."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = tmp_path / "store"
    store.mkdir()
    path = socket_path(store)
    write_address(store, ADDRESS | {"socket": str(path)})
    return store, path


def test_the_sockets_folder_is_its_owners_alone_and_the_next_server_takes_the_same(served):
    store, path = served
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Path(served_socket(store).removeprefix("unix:")).parent.samefile(path.parent)
    assert socket_path(store) == path


def test_a_copy_of_a_store_has_not_the_originals_socket(served, tmp_path):
    store, path = served
    shutil.copytree(store, tmp_path / "copy")
    assert served_socket(tmp_path / "copy") == NOWHERE, "nor the original's port"
    assert socket_path(tmp_path / "copy") != path


@pytest.mark.parametrize("what", ["open to others", "a link", "gone"])
def test_a_folder_that_others_may_have_made_is_not_used(served, tmp_path, what):
    store, path = served
    if what == "open to others":
        path.parent.chmod(0o711)
    else:
        path.parent.rmdir()
    if what == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.parent.symlink_to(tmp_path / "elsewhere")
    assert served_socket(store) == NOWHERE, "not the port either, which may be another user's by now"
    assert socket_path(store).parent != path.parent


def test_a_folder_that_another_user_makes_once_it_is_gone_is_not_reached(served):
    store, path = served
    found = Path(served_socket(store).removeprefix("unix:"))
    path.parent.rmdir()
    path.parent.mkdir()
    path.touch()
    assert not found.exists()


def test_a_server_that_could_make_no_socket_is_asked_at_its_port_and_nobody_where_no_server_said_where_it_listens(
    tmp_path,
):
    assert served_socket(tmp_path) == NOWHERE
    write_address(tmp_path, ADDRESS)
    assert served_socket(tmp_path) is None
    (tmp_path / "address.json").write_text(
        '{"url": "http://127.0.0.1:1", "instance": "a", "socket": 3, "directory": "b"}'
    )
    assert read_address(tmp_path)["url"]
    assert served_socket(tmp_path) == NOWHERE


def test_a_socket_is_short_enough_where_the_folder_for_temporary_files_is_not(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * LONGEST_PATH)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    path = socket_path(tmp_path)
    try:
        assert len(str(path)) <= LONGEST_PATH
    finally:
        remove_socket(path)
    assert not path.parent.exists()
