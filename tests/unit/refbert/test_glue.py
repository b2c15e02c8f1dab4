"""Submission files for GLUE's server."""

import zipfile

import numpy as np
import pytest

from refbert.errors import InputError
from refbert.glue import GLUE, write_submission, zip_submission


def test_submitted_labels_are_glues_label_names(tmp_path):
    rows = GLUE["RTE"].splits[2].rows
    path = write_submission(tmp_path, GLUE["RTE"], "test", np.arange(rows) % 2)
    lines = path.read_text().split("\n")
    assert lines[:3] == ["index\tprediction", "0\tentailment", "1\tnot_entailment"]
    assert lines[-2:] == [f"{rows - 1}\tnot_entailment", ""]
    assert (
        write_submission(tmp_path, GLUE["WNLI"], "test", [1] * 146).read_text().startswith("index\tprediction\n0\t1\n")
    )


def test_submitted_similarities_have_three_decimals_and_are_clipped(tmp_path):
    path = write_submission(tmp_path, GLUE["STS-B"], "test", [-0.2, 2.34567, 5.1, *[1.0] * 1376])
    assert path.name == "STS-B.tsv"
    assert path.read_text().split("\n")[1:4] == ["0\t0.000", "1\t2.346", "2\t5.000"]
    with pytest.raises(InputError, match="STS-B: a prediction is nan"):
        write_submission(tmp_path, GLUE["STS-B"], "test", [float("nan")] * 1379)


@pytest.mark.parametrize(
    ("task", "split", "rows", "reason"),
    [
        ("WNLI", "test", 145, "WNLI.tsv wants 146 rows, found 145"),
        ("MNLI", "test", 9796, "only test_matched, test_mism"),
    ],
)
def test_a_submission_that_the_server_would_refuse_is_not_written(task, split, rows, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        write_submission(tmp_path, GLUE[task], split, [0] * rows)
    assert not list(tmp_path.iterdir())


def test_a_whole_submission_is_eleven_files_at_the_top_of_a_zip(tmp_path):
    parts = [(task, part) for task in GLUE.values() for part in task.splits if part.submission]
    for task, part in parts[:-1]:
        write_submission(tmp_path / "files", task, part.name, [0] * (part.rows or 0))
    with pytest.raises(InputError, match=r"lacks WNLI\.tsv"):
        zip_submission(tmp_path / "files", tmp_path / "glue.zip")
    write_submission(tmp_path / "files", GLUE["WNLI"], "test", [0] * 146)
    path = zip_submission(tmp_path / "files", tmp_path / "glue.zip")
    names = ["AX", "CoLA", "MNLI-m", "MNLI-mm", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI"]
    assert sorted(zipfile.ZipFile(path).namelist()) == [f"{name}.tsv" for name in names]
