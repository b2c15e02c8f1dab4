"""Rows of a load: counts that add up, and a file of the rejected ones that begins anew with each load."""

import json

import pytest

from refbert.memory.accounting import letter, row_account


def test_rejected_rows_are_in_the_file_behind_those_that_could_not_be_read(tmp_path, caplog):
    unread, rejected = tmp_path / "unread.jsonl", tmp_path / "run" / "rejected.jsonl"
    unread.write_text(letter("not JSON", source="a", row=3))
    for _ in range(2):  # a second load does not append to the file of the first
        with row_account(("read", "written", "rejected"), rejected, unread) as account:
            account.add({"read": 1, "rejected": 1})
            account.add({"read": 2, "written": 1, "rejected": 1}, letter("too long", text="ä"))
        assert str(account) == "read 3, written 1, rejected 2"
        rows = [json.loads(line) for line in rejected.read_text(encoding="utf-8").splitlines()]
        assert rows == [{"source": "a", "row": 3, "reason": "not JSON"}, {"text": "ä", "reason": "too long"}]
    assert caplog.messages == [f"2 rows rejected, with their reasons in {rejected}"] * 2


def test_a_load_that_ends_early_leaves_its_rejected_rows_in_the_file(tmp_path):
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="the store is gone"),
        row_account(("read", "rejected"), tmp_path / "rejected.jsonl") as account,
    ):
        account.add({"read": 1, "rejected": 1}, letter("no text", id="7"))
        raise RuntimeError("the store is gone")
    assert json.loads((tmp_path / "rejected.jsonl").read_text()) == {"id": "7", "reason": "no text"}
