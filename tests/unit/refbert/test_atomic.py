"""What is written is there completely or not at all, and what is told by its content is told as ever."""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from refbert.atomic import checksum, digest, first_whole_folder, whole_file, whole_folder, write_whole
from refbert.folder import fingerprint


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def half_written(path) -> None:
    """Write a file, and fail."""
    path.write_text("half")
    path.touch(exist_ok=False)


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, "old")
    with pytest.raises(FileExistsError), whole_file(path) as scratch:
        half_written(scratch)
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.json"]


def test_a_writer_can_append_to_what_a_killed_one_left(tmp_path):
    path, scratch = tmp_path / "plan.npy", tmp_path / "plan.draft"
    scratch.write_text("first, ")
    with whole_file(path, scratch) as given, given.open("a") as file:
        file.write("second")
    assert path.read_text() == "first, second"


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_replaces_the_older_one_whole(tmp_path, durable):
    for name in ("a", "b"):
        with whole_folder(tmp_path / "deep" / "folder", durable=durable) as scratch:
            (scratch / name).touch()
    assert names(tmp_path) == ["deep", "deep/folder", "deep/folder/b"]


def test_a_failed_folder_leaves_the_older_one_and_no_scratch(tmp_path):
    folder = tmp_path / "folder"
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial" / "left by a kill").touch()
    with whole_folder(folder) as scratch:
        assert names(scratch) == []
        (scratch / "a").touch()
    with pytest.raises(FileExistsError), whole_folder(folder) as scratch:
        half_written(scratch / "b")
    assert names(tmp_path) == ["folder", "folder/a"]


def test_an_older_folder_is_deleted_only_once_the_new_one_is_in_its_place(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    with whole_folder(folder) as scratch:
        (scratch / "old").touch()

    def killed(path, **_):
        if Path(path).exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as scratch:
        (scratch / "new").touch()
    monkeypatch.undo()
    assert names(folder) == ["new"]
    with whole_folder(folder):
        pass
    assert names(tmp_path) == ["folder"]


def test_a_writer_puts_back_the_folder_that_a_kill_between_two_renames_left(tmp_path):
    folder = tmp_path / "folder"
    (tmp_path / "folder.before").mkdir()
    (tmp_path / "folder.before" / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(folder):
        raise RuntimeError
    assert names(tmp_path) == ["folder", "folder/old"]


def test_a_folder_that_resumes_finds_what_a_failed_writer_left(tmp_path):
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "folder", resume=True) as scratch:
        half_written(scratch / "a")
    assert names(tmp_path) == ["folder.partial", "folder.partial/a"]
    with whole_folder(tmp_path / "folder", resume=True) as scratch:
        (scratch / "b").touch()
    assert names(tmp_path) == ["folder", "folder/a", "folder/b"]


def test_of_two_writers_of_one_folder_the_first_to_end_wins_and_everyone_may_read_it(tmp_path):
    folder = tmp_path / "corpora" / "key"
    with first_whole_folder(folder) as slow:
        with first_whole_folder(folder) as fast:
            (fast / "fast").touch()
        (slow / "slow").touch()
    with pytest.raises(RuntimeError), first_whole_folder(folder.with_name("other")):
        raise RuntimeError
    assert names(tmp_path) == ["corpora", "corpora/key", "corpora/key/fast"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_a_digest_is_of_the_json_of_its_parts():
    parts = [3, "a", None, ["b", 0.5], {"key": "é"}]
    assert digest(*parts, digits=64) == hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    assert digest(*parts) == digest(*parts, digits=64)[:16]


def test_a_checksum_is_of_bytes_wherever_they_are(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert checksum(tmp_path / "file") == checksum(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_a_students_fingerprint_is_of_all_its_weights_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"more weights")
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    both = hashlib.sha256(b"weights").digest() + hashlib.sha256(b"more weights").digest()
    assert fingerprint(tmp_path) == hashlib.sha256(both).hexdigest()[:12]


def test_files_of_a_folder_are_readable_by_umask_whoever_wrote_them(tmp_path):
    """Safetensors writes for the owner alone, and a service of another user reads a student on shared storage."""
    with whole_folder(tmp_path / "student") as scratch:
        save_file({"weights": np.zeros(3)}, scratch / "model.safetensors")
        (scratch / "inner").mkdir(mode=0o700)
    before = os.umask(0o022)
    try:
        with whole_file(tmp_path / "one.safetensors") as draft:
            save_file({"weights": np.zeros(3)}, draft)
        modes = [
            stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("student/model.safetensors", "student/inner")
        ]
        assert stat.S_IMODE((tmp_path / "one.safetensors").stat().st_mode) == 0o644
    finally:
        os.umask(before)
    assert modes == [0o666 & ~before, 0o777 & ~before]
