"""A directory's key and identity, without a server."""

import shutil
import stat

import pytest

from vector_store.client import connect
from vector_store.config import StoreConfig
from vector_store.errors import StoreError
from vector_store.server.access import identity, make_key, split, stored_key, with_directory
from vector_store.server.address import read_address


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path):
    assert stored_key(tmp_path) is None
    key = make_key(tmp_path)
    assert make_key(tmp_path) == stored_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"a b" * 20, bytes(43)])
def test_a_damaged_key_is_made_anew(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    assert stored_key(tmp_path) is None
    assert len(make_key(tmp_path)) >= 32


def test_a_key_that_others_could_read_is_made_anew(tmp_path):
    known = make_key(tmp_path)
    (tmp_path / "key").chmod(0o644)
    assert make_key(tmp_path) != known
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_url_names_a_directory_of_any_name(tmp_path):
    directory = tmp_path / "a, b#c%20 é"
    url = with_directory("http://127.0.0.1:4711", directory)
    assert split(url) == ("http://127.0.0.1:4711", directory)
    directory.mkdir()
    make_key(directory)
    with connect(StoreConfig(url=url), url) as client:
        assert client.url == "http://127.0.0.1:4711", "messages name the server, not the directory"


def test_nodes_are_asked_with_the_key_of_their_directories_if_that_is_one_else_with_the_given_one(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("QDRANT_API_KEY", "two\nlines")
    urls = []
    for name in "ab":
        (tmp_path / name).mkdir()
        make_key(tmp_path / name)
        urls.append(with_directory("http://127.0.0.1:4711", tmp_path / name))
    with connect(StoreConfig(), urls[0]):
        pass  # what the environment holds is not looked at
    monkeypatch.delenv("QDRANT_API_KEY")
    with pytest.raises(StoreError, match="have keys of their own"):
        connect(StoreConfig(), ",".join(urls))
    monkeypatch.setenv("QDRANT_API_KEY", "given")
    with connect(StoreConfig(), ",".join(urls)):
        pass
    (tmp_path / "b" / "key").write_text((tmp_path / "a" / "key").read_text())
    with connect(StoreConfig(), ",".join(urls)) as client:
        assert client.url == "http://127.0.0.1:4711,http://127.0.0.1:4711"


def test_a_copy_of_a_directory_is_another_directory_and_a_link_to_it_is_not(tmp_path):
    (tmp_path / "store").mkdir()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    (tmp_path / "link").symlink_to("store")
    assert identity(tmp_path / "copy") != identity(tmp_path / "store")
    assert identity(tmp_path / "link") == identity(tmp_path / "store")
    before = identity(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "moved")
    assert identity(tmp_path / "moved") != before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'"text"',
        b"{}",
        b'{"url": 3, "instance": "a"}',
        b'{"url": "http://x", "instance": "a"}',
    ],
)
def test_a_damaged_address_is_no_address(tmp_path, content):
    (tmp_path / "address.json").write_bytes(content)
    assert read_address(tmp_path) == {}
