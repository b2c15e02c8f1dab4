"""Batches at which processes die: counted by job, tried three times, and then the driver's to judge."""

import os

import pytest

from jobs.run.attempts import DEATHS, IN_A_ROW, Attempts, SetAside, watched
from refbert.errors import UnavailableError


def die_at(attempts: Attempts, work: str) -> None:
    """A process that ends amid its work, with no chance to clear up."""
    child = os.fork()
    if child == 0:
        attempt = attempts.at(work)
        attempt.__enter__()
        os._exit(9)
    os.waitpid(child, 0)


def test_deaths_at_a_batch_are_counted_by_job_until_it_is_finished(tmp_path):
    attempts = Attempts.of_run(tmp_path)
    for died in range(DEATHS):
        with attempts.at("other") as of_other:
            assert of_other == 0
        die_at(attempts, "batch")
        with Attempts.of_run(tmp_path).at("another-job's"):
            pass
        assert (tmp_path / "attempts" / "batch").read_text().count(attempts.job) == died + 1
    with attempts.at("batch") as died:
        assert died == DEATHS
    with attempts.at("batch") as died:
        assert died == 0
    attempts.close()
    assert not (tmp_path / "attempts").exists()


def test_a_job_that_is_started_again_tries_every_batch_again(tmp_path):
    die_at(Attempts.of_run(tmp_path), "batch")
    with Attempts.of_run(tmp_path).at("batch") as died:
        assert died == 0


def test_an_exception_is_no_death(tmp_path):
    attempts = Attempts.of_run(tmp_path)
    with pytest.raises(OSError, match="away"), attempts.at("batch"):
        raise OSError("away")
    with attempts.at("batch") as died:
        assert died == 0


def test_an_actor_that_dies_each_time_it_starts_says_so_in_one_line(tmp_path):
    attempts = Attempts.of_run(tmp_path)
    for _ in range(DEATHS - 1):
        die_at(attempts, "start-None")
    with attempts.at_start("an encoder"):  # one that starts after all is not held to what was before
        pass
    for _ in range(DEATHS):
        die_at(attempts, "start-None")
    with (
        pytest.raises(UnavailableError, match="an encoder died 3 times while it started"),
        attempts.at_start("an encoder"),
    ):
        pass


def test_a_reader_that_dies_at_one_piece_names_it_and_earlier_pieces_do_not_count(tmp_path):
    attempts = Attempts.of_run(tmp_path)
    for _ in range(DEATHS):
        pieces = watched("abc", attempts, "file-0", "rows.jsonl")
        assert next(pieces) == "a"
        die_at(attempts, "file-0-1")
    pieces = watched("abc", attempts, "file-0", "rows.jsonl")
    assert next(pieces) == "a"
    with pytest.raises(UnavailableError, match=r"rows\.jsonl: 3 processes died while they read its part 2"):
        next(pieces)
    assert list(watched("abc", Attempts.of_run(tmp_path), "file-0", "rows.jsonl")) == ["a", "b", "c"]


def test_batches_set_aside_are_rows_where_others_succeed_and_the_machine_where_none_does(caplog):
    among_others = SetAside("an encoder", "Lower it", has_finished=False)
    for number in range(2 * IN_A_ROW):
        among_others.add(f"rows {number}")
        among_others.finished()
    among_others.judge()
    assert "rows 0 set aside: 3 processes died at them" in caplog.text

    in_a_row = SetAside("an encoder", "Lower it", has_finished=True)
    for number in range(IN_A_ROW - 1):
        in_a_row.add(f"rows {number}")
    in_a_row.judge()
    with pytest.raises(
        UnavailableError, match=r"at rows 0; rows 1; last, and none between them was finished: .*Lower it, and start"
    ):
        in_a_row.add("last")

    alone = SetAside("an encoder", "Lower it", has_finished=False)
    alone.add("rows 0")
    with pytest.raises(UnavailableError, match="no other batch was finished"):
        alone.judge()
