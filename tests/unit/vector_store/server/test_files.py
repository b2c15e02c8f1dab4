"""Bytes of folders that change meanwhile."""

import os

from vector_store.server.files import folder_bytes


def test_bytes_are_counted_while_folders_are_removed(tmp_path, monkeypatch):
    shard, gone = tmp_path / "shard", tmp_path / "shard" / "gone"
    for segment in ("gone", "kept"):
        (shard / segment).mkdir(parents=True)
        (shard / segment / "vectors").write_bytes(b"x" * 100_000)
    kept, scandir = folder_bytes(shard / "kept"), os.scandir

    def removes_one(path):
        if os.fspath(path) == str(gone):
            gone.rename(tmp_path / "elsewhere")
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", removes_one)
        found = folder_bytes(shard)
    assert not gone.exists()
    assert found >= kept >= 100_000
