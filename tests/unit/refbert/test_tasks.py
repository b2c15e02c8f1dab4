"""Tasks from GLUE's own files, from the Hub, and from custom files."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from refbert.config import TaskConfig
from refbert.errors import InputError, UnavailableError
from refbert.glue import GLUE
from refbert.tasks import load_task

# Header of train.tsv, one of its rows, and what it says: as GLUE's download script leaves them.
FORMS = {
    "CoLA": (None, 'gj04\t0\t*\tThey "drank the pub.', ('They "drank the pub.', None), 0),
    "SST-2": ("sentence\tlabel", "a  charming journey . \t1", ("a charming journey .", None), 1),
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tHe said\t" No .', ("He said", '" No .'), 1),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tAn air plane.\t4.750", ("A plane.", "An air plane."), 4.75,
    ),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "5\t1\t2\tWhy?\tHow?\t0", ("Why?", "How?"), 0),
    "MNLI": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t3\t3n\tfiction\t( a )\t( b )\t(X a)\t(X b)\tIt rains.\tIt is dry.\tneutral\tcontradiction",
        ("It rains.", "It is dry."), 2,
    ),
    "QNLI": ("index\tquestion\tsentence\tlabel", "0\tWho?\tHe did.\tnot_entailment", ("Who?", "He did."), 1),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tIt rains.\tIt is wet.\tentailment", ("It rains.", "It is wet."), 0),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "0\tThe cup fell.\tIt broke.\t1", ("The cup fell.", "It broke."), 1),
}  # fmt: skip


def write(path: Path, *lines: str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines if line is not None), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", GLUE)
def test_each_glue_task_is_read_from_its_tsv_files(name, tmp_path):
    header, row, texts, label = FORMS[name]
    write(tmp_path / name / "train.tsv", header, row, "a row cut off\tby a tab" if name != "SST-2" else "cut off")
    data = load_task(TaskConfig(name=name, path=str(tmp_path)))
    (example,) = data.split("train")
    assert (example.text, example.text_pair) == texts
    assert example.label == label
    assert [bad.row for bad in data.rejected["train"]] == [1]
    assert not data.official
    assert f"train has 1 rows, GLUE's {GLUE[name].splits[0].rows}" in data.note
    assert "1 bad rows in train" in data.note


def test_colas_test_file_is_read_with_a_header_and_without_labels(tmp_path):
    write(tmp_path / "train.tsv", FORMS["CoLA"][1])
    write(tmp_path / "test.tsv", "index\tsentence", "0\tBill left.", "1\t")
    test = load_task(TaskConfig(name="CoLA", path=str(tmp_path))).split("test")
    assert [(example.text, example.label, example.row) for example in test] == [("Bill left.", None, 0), ("", None, 1)]


def test_bad_rows_are_counted_with_their_reason(tmp_path):
    header, row, _, _ = FORMS["RTE"]
    file = write(tmp_path / "train.tsv", header, row, "1\tA.\tB.\tmaybe", "2\t \t\tentailment", "3\tA.\tB.\t-1")
    file.write_bytes(file.read_bytes() + b"4\tcaf\xe9.\tB.\tentailment\n")
    data = load_task(TaskConfig(name="RTE", path=str(tmp_path)))
    assert [example.row for example in data.split("train")] == [0]
    assert [(bad.row, bad.reason) for bad in data.rejected["train"]] == [
        (1, "label 'maybe' is none of entailment, not_entailment"),
        (2, "'sentence1' is empty"),
        (3, "label '-1' is none of entailment, not_entailment"),
        (4, "'sentence1' is not valid UTF-8"),
    ]


def test_mnli_has_two_development_splits_and_its_premises_make_documents(tmp_path):
    rows = [
        {"premise": "It rains.", "hypothesis": h, "label": label} for h, label in (("Wet.", "entailment"), ("Dry.", 2))
    ]
    write(tmp_path / "dev_matched.jsonl", *map(json.dumps, rows))
    write(tmp_path / "dev_mismatched.tsv", *FORMS["MNLI"][:2])
    write(tmp_path / "diagnostic.tsv", "index\tsentence1\tsentence2", "0\tA.\tB.")
    data = load_task(TaskConfig(name="MNLI", path=str(tmp_path)))
    assert data.dev_splits == ("dev_matched", "dev_mismatched")
    assert [example.label for example in data.split("dev_matched")] == [0, 2]
    documents = {example.document for name in data.dev_splits for example in data.split(name)}
    assert len(documents) == 1
    assert data.split("diagnostic")[0].label is None
    assert "no train found" in data.note


def test_mrpc_is_split_by_dev_ids_where_only_its_authors_files_are(tmp_path):
    header, row, _, _ = FORMS["MRPC"]
    write(tmp_path / "msr_paraphrase_train.txt", f"\ufeff{header}", row, "0\t9\t8\tShe left\tShe stayed")
    with pytest.raises(InputError, match=r"dev_ids\.tsv is missing"):
        load_task(TaskConfig(name="MRPC", path=str(tmp_path)))
    write(tmp_path / "dev_ids.tsv", "\ufeff9\t8\r")
    data = load_task(TaskConfig(name="MRPC", path=str(tmp_path)))
    assert [example.text for example in data.split("train")] == ["He said"]
    assert [example.text for example in data.split("dev")] == ["She left"]


def test_a_task_with_glues_numbers_of_rows_is_official(tmp_path):
    for name, rows in (("train", 635), ("dev", 71)):
        write(
            tmp_path / f"{name}.tsv",
            FORMS["WNLI"][0],
            *(f"{row}\tThe cup {row} fell.\tIt broke.\t1" for row in range(rows)),
        )
    data = load_task(TaskConfig(name="WNLI", path=str(tmp_path)))
    assert (data.official, data.note) == (True, "")
    sampled = load_task(TaskConfig(name="WNLI", path=str(tmp_path), max_train=100))
    assert (sampled.official, sampled.note) == (True, "100 of 635 training rows sampled")


def test_missing_files_are_named_in_one_line(tmp_path):
    (tmp_path / "QQP-subset").mkdir()
    with pytest.raises(InputError, match=r"no QQP in .*: looked for train\.tsv .* there is QQP-subset") as error:
        load_task(TaskConfig(name="QQP", path=str(tmp_path)))
    assert "\n" not in str(error.value)
    write(tmp_path / "QQP" / "dev.tsv", *FORMS["QQP"][:2])
    data = load_task(TaskConfig(name="QQP", path=str(tmp_path)))
    with pytest.raises(
        InputError, match=r"QQP has no train in .*looked for train\.tsv .*found only dev; there is QQP-sub"
    ):
        data.split("train")


def test_a_smaller_sample_is_part_of_a_larger_one_whatever_the_order_of_rows(tmp_path):
    rows = [f"text {row}\t{row % 2}" for row in range(50)]
    write(tmp_path / "a" / "train.tsv", "sentence\tlabel", *rows)
    write(tmp_path / "b" / "train.tsv", "sentence\tlabel", *reversed(rows))

    def sampled(folder: str, size: int, seed: int = 0) -> list[str]:
        config = TaskConfig(name="SST-2", path=str(tmp_path / folder), max_train=size, seed=seed)
        return [example.text for example in load_task(config).split("train")]

    assert len(sampled("a", 10)) == 10
    assert set(sampled("a", 10)) < set(sampled("a", 20)) == set(sampled("b", 20))
    assert set(sampled("a", 10)) != set(sampled("a", 10, seed=1))
    assert sampled("a", 10) == sorted(sampled("a", 10), key=lambda text: int(text.split()[1]))
    assert len(sampled("a", 99)) == 50


def test_custom_files_give_the_same_examples_in_every_format(tmp_path):
    rows = [
        {"text": 'He said, "no"\nand left', "text_pair": "A", "label": 10},
        {"text": "B", "text_pair": "C", "label": 9},
    ]
    write(tmp_path / "csv" / "train.csv", "text,text_pair,label", '"He said, ""no""\nand left",A,10', "B,C,9")
    write(tmp_path / "jsonl" / "train.jsonl", *map(json.dumps, rows))
    write(tmp_path / "ndjson" / "train.ndjson", *map(json.dumps, rows))
    write(tmp_path / "parquet" / "train.txt")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "train.parquet")
    kinds = ("csv", "jsonl", "ndjson", "parquet")
    read = [load_task(TaskConfig(name="custom", path=str(tmp_path / kind))) for kind in kinds]
    assert read[0].task.labels == ("9", "10")
    assert [example[:3] for example in read[0].split("train")] == [('He said, "no" and left', "A", 1), ("B", "C", 0)]
    assert all(data.splits == read[0].splits for data in read)
    assert (read[0].official, read[0].note) == (False, "not a task of GLUE; no dev found")


def test_a_custom_task_names_its_splits_columns_and_documents(tmp_path):
    train = write(tmp_path / "a.tsv", "body\tclass\tsource", 'a "quote\tgood\tx', "b\tbad\tx")
    dev = write(
        tmp_path / "b.jsonl", json.dumps({"body": "c", "class": "good", "source": "y"}), '{"body": "d", "class": "odd"}'
    )
    test = write(tmp_path / "c.csv", "body", "e")
    config = TaskConfig(
        name="custom", train=str(train), dev=str(dev), test=str(test), text_field="body", label_field="class",
        document_field="source", metrics=("f1",),
    )  # fmt: skip
    data = load_task(config)
    assert [(example.text, example.label, example.document) for example in data.split("train")] == [
        ('a "quote', 1, "x"),
        ("b", 0, "x"),
    ]
    assert [bad.reason for bad in data.rejected["dev"]] == ["label 'odd' is none of bad, good"]
    assert data.split("test")[0].label is None
    assert data.task.metrics == ("f1",)
    with pytest.raises(InputError, match="has no column 'text', only body, class, source"):
        load_task(config.model_copy(update={"text_field": "text"}))


def test_one_class_has_one_name_in_every_file_and_what_is_no_class_is_a_bad_row(tmp_path):
    write(tmp_path / "train.csv", "text,label", "a,1", "b,0", "c,nan", "d,", "e,inf")
    write(tmp_path / "dev.csv", "text,label", "a,1.0", "b,0.0")
    values = [1, 0.0, "1.0", float("nan"), [1], {}, True]
    write(tmp_path / "test.jsonl", *(json.dumps({"text": "t", "label": value}) for value in values))
    data = load_task(TaskConfig(name="custom", path=str(tmp_path)))
    assert data.task.labels == ("0", "1")
    assert [example.label for example in data.split("dev")] == [1, 0]
    assert [example.label for example in data.split("test")] == [1, 0, 1, None, None, None, None]
    assert [bad.reason for bad in data.rejected["train"]] == [
        "label 'nan' is none of 0, 1", "label '' is none of 0, 1", "label 'inf' is none of 0, 1",
    ]  # fmt: skip
    assert "3 bad rows in train" in data.note


@pytest.mark.parametrize(("labels", "found"), [(["a", "a"], r"1 classes in 'label' \(a\)"), (["", ""], "0 classes")])
def test_a_task_of_one_class_is_refused_in_one_line(tmp_path, labels, found):
    write(tmp_path / "train.csv", "text,label", *(f"text {row},{label}" for row, label in enumerate(labels)))
    with pytest.raises(InputError, match=rf"train\.csv has {found}.*wanted two or more") as error:
        load_task(TaskConfig(name="custom", path=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_rows_that_end_no_reading_nested_json_long_cells_open_quotes_and_a_quoted_tsv(tmp_path):
    deep = '{"text": "x", "label": ' + "[" * 100_000 + "]" * 100_000 + "}"
    good = [json.dumps({"text": f"text {label}", "label": label}) for label in "ab"]
    write(tmp_path / "json" / "train.jsonl", '{"text": "no label"}', deep, *good)
    write(tmp_path / "csv" / "train.csv", "text,label", f"{'x' * 200_000},a", '"open,b', "fine,b")
    write(tmp_path / "tsv" / "train.tsv", '\ufeff"text"\t"label"', '"said ""no"""\t"a"', '"x"\t"b"')
    read = {kind: load_task(TaskConfig(name="custom", path=str(tmp_path / kind))) for kind in ("json", "csv", "tsv")}
    assert [example.text for example in read["json"].split("train")] == ["text a", "text b"]
    assert [bad.reason for bad in read["json"].rejected["train"]] == [
        "label '' is none of a, b", "JSON that is nested too deeply",
    ]  # fmt: skip
    assert [len(example.text) for example in read["csv"].split("train")] == [200_000, 4]
    assert [bad.reason for bad in read["csv"].rejected["train"]] == ["a quote is not closed"]
    assert [example.text for example in read["tsv"].split("train")] == ['said "no"', "x"]


def test_a_custom_task_can_be_a_regression(tmp_path):
    write(tmp_path / "train.csv", "text,label", "a,-1.5", "b,2", "c,high")
    data = load_task(TaskConfig(name="custom", path=str(tmp_path), regression=True))
    assert [example.label for example in data.split("train")] == [-1.5, 2.0]
    assert data.task.metrics == ("pearson", "spearman")
    assert data.rejected["train"][0].reason == "label 'high' is no score"


def test_a_file_without_a_good_row_is_refused(tmp_path):
    write(tmp_path / "train.tsv", "text\tclass", "a\t1")
    with pytest.raises(
        InputError, match=r"train\.tsv has no example of SST-2, but 1 bad rows, the first: no 'sentence'"
    ):
        load_task(TaskConfig(name="SST-2", path=str(tmp_path)))
    broken = write(tmp_path / "dev.parquet", "no parquet")
    with pytest.raises(InputError, match=r"dev\.parquet cannot be read: .*give a parquet file"):
        load_task(TaskConfig(name="custom", dev=str(broken)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "custom"}, "has no files"),
        ({"name": "RTE", "train": "a.csv"}, "train is an option of task custom"),
        ({"name": "RTE", "metrics": ["f1"]}, "metrics is an option of task custom"),
    ],
)
def test_a_custom_task_needs_files_and_a_glue_task_refuses_its_options(options, reason):
    with pytest.raises(ValueError, match=reason):
        TaskConfig.model_validate(options)


def test_a_glue_task_is_read_from_the_hub_by_its_library(tmp_path, monkeypatch):
    """`load_dataset` takes a folder of the data set's name before it asks the Hub: here one in the Hub's form."""
    import datasets

    hub = tmp_path / "nyu-mll" / "glue"
    (hub / "rte").mkdir(parents=True)
    for split, label in (("train", 1), ("validation", 0), ("test", -1)):
        rows = [{"sentence1": f"{split}.", "sentence2": "It is wet.", "label": label, "idx": 0}]
        parquet.write_table(pa.Table.from_pylist(rows), hub / "rte" / f"{split}-00000-of-00001.parquet")
    lines = [f"  - split: {split}\n    path: rte/{split}-*" for split in ("train", "validation", "test")]
    write(hub / "README.md", "---", "configs:", "- config_name: rte", "  data_files:", *lines, "---")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = load_task(TaskConfig(name="RTE"))
    read = {name: [(example.text, example.label) for example in examples] for name, examples in data.splits.items()}
    assert read == {"train": [("train.", 1)], "dev": [("validation.", 0)], "test": [("test.", None)]}


def test_an_unreachable_hub_is_reported_in_one_line(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"GLUE's rte cannot be loaded from the Hub: .*give a folder") as error:
        load_task(TaskConfig(name="RTE"))
    assert "\n" not in str(error.value)


@pytest.mark.skipif("GLUE_DIR" not in os.environ, reason="GLUE_DIR names no folder with GLUE's TSV files")
@pytest.mark.parametrize("name", ["CoLA", "MRPC", "RTE", "STS-B", "WNLI", "SST-2"])
def test_glues_files_have_the_official_numbers_of_rows(name):
    data = load_task(TaskConfig(name=name, path=os.environ["GLUE_DIR"]))
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        part.name: part.rows for part in GLUE[name].splits
    }
    assert (data.official, data.note) == (True, "")
    labels = {example.label for example in data.split("train")}
    assert labels == set(range(2)) if not data.task.regression else (min(labels), max(labels)) == (0.0, 5.0)
