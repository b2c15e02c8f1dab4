"""API keys: from a variable and a file, rotated without a restart, and required of a public service."""

import os

import pytest

from jobs.sections import ServeConfig
from jobs.service import keys as keys_module
from jobs.service.keys import Keys, is_public, wants_keys
from refbert.errors import InputError

VARIABLE = "REFBERT_TEST_KEYS"


@pytest.fixture(autouse=True)
def check_always(monkeypatch):
    monkeypatch.setattr(keys_module, "CHECK_EVERY_S", 0.0)


def test_a_key_in_the_variable_that_no_header_carries_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "one,ключ\n")
    with pytest.raises(InputError, match="key 2: not printable ASCII"):
        Keys(VARIABLE, None)
    monkeypatch.setenv(VARIABLE, "one\n")
    assert Keys(VARIABLE, None).accept("one")


def test_no_key_is_required_where_none_is_configured():
    keys = Keys(VARIABLE, None)
    assert not keys.are_required
    assert keys.accept(None)


def test_keys_are_read_from_a_variable_and_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "one, two\nthree")
    (tmp_path / "keys").write_text("four\n\n  five \n")
    keys = Keys(VARIABLE, str(tmp_path / "keys"))
    assert all(map(keys.accept, ("one", "two", "three", "four", "five")))
    assert not any(map(keys.accept, (None, "", "six", "one,", "fou", "ONE", "ключ")))


def test_a_changed_key_file_is_read_again_and_a_missing_one_keeps_the_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = Keys(VARIABLE, str(file))
    for content in ("old\nnew", "new"):
        (tmp_path / "next").write_text(content)
        (tmp_path / "next").replace(file)
        assert keys.accept("new")
    assert not keys.accept("old")
    file.unlink()
    assert keys.accept("new")
    file.write_text("")
    assert not keys.accept("new")
    assert keys.are_required


def test_a_revoked_key_ends_though_the_file_keeps_its_time_size_and_inode(tmp_path):
    file = tmp_path / "keys"
    file.write_text("sk-one\n")
    keys, before = Keys(VARIABLE, str(file)), file.stat()
    file.write_text("sk-two\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not keys.accept("sk-one")
    assert keys.accept("sk-two")


def test_a_key_file_may_have_a_byte_order_mark_windows_line_ends_and_comments(tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfone\r\n# of the web team\r\ntwo\r\n\r\n")
    keys = Keys(VARIABLE, str(file))
    assert keys.accept("one")
    assert keys.accept("two")
    assert not any(map(keys.accept, ("\ufeffone", "#", "of", "team", "# of the web team", "")))


@pytest.mark.parametrize(
    "content", ["one\nschl\u00fcssel\n".encode("latin-1"), "one\nключ".encode(), b"one\ntwo three", b"one\nt\0o"]
)
def test_a_line_that_is_no_key_is_refused_by_number_and_never_accepted(tmp_path, content, caplog):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"keys, line 2: not one key of printable ASCII"):
        Keys(VARIABLE, str(file))
    file.write_text("one\nold")
    keys = Keys(VARIABLE, str(file))
    file.write_bytes(content)
    assert keys.accept("one")
    assert not any(map(keys.accept, ("old", "two", "three", "schl\u00fcssel", "ключ", "t\0o")))
    assert "line 2" in caplog.text
    assert "old" not in caplog.text


def test_a_file_in_another_encoding_accepts_nobody(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one")
    keys = Keys(VARIABLE, str(file))
    file.write_text("one", encoding="utf-16")
    assert not keys.accept("one")
    with pytest.raises(InputError, match="saved as UTF-8"):
        Keys(VARIABLE, str(file))


def test_a_key_file_that_is_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Keys(VARIABLE, str(tmp_path / "none"))
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(InputError, match="holds no key"):
        Keys(VARIABLE, str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("options", "public"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "example.org"}, True),
        ({"grpc_port": 9000}, True),
    ],
)
def test_a_public_service_requires_a_key_unless_forced(monkeypatch, options, public):
    config = ServeConfig(api_keys_env=VARIABLE, **options)
    assert is_public(config) is public
    forced = config.model_copy(update={"allow_public_without_key": True})
    assert not wants_keys(forced, is_public=is_public(forced))
    if public:
        with pytest.raises(InputError, match="without a key"):
            wants_keys(config, is_public=is_public(config))
    else:
        assert not wants_keys(config, is_public=False)
    monkeypatch.setenv(VARIABLE, "key")
    for keyed in (config, forced):  # whoever has keys wants them asked for, in every replica
        assert wants_keys(keyed, is_public=is_public(keyed))


def test_a_service_that_ray_serve_deploys_is_told_what_helps_there():
    with pytest.raises(InputError, match=r"args\.overrides") as refused:
        wants_keys(ServeConfig(api_keys_env=VARIABLE), is_public=True, is_deployed=True)
    assert "127.0.0.1" not in str(refused.value)


def test_a_process_that_should_ask_for_keys_and_has_none_refuses(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=f"wants keys, and its replica on .* finds none in .{VARIABLE}"):
        Keys(VARIABLE, None, are_wanted=True)
    monkeypatch.setenv(VARIABLE, "one")
    assert Keys(VARIABLE, None, are_wanted=True).accept("one")
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "keys").write_text("two")
    assert Keys(VARIABLE, str(tmp_path / "keys"), are_wanted=True).accept("two")
