"""The command `refbert` answers as the library does, in one line where it cannot, and its help does not wait for torch."""

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import refbert
import vector_store
from refbert import RefBertConfig, RefBertModel
from refbert.command import app
from refbert.folder import save_student
from refbert.teacher import load_tokenizer
from vector_store.arguments import HELP

REPOSITORY = Path(__file__).resolve().parents[3]
SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "dim": 16}
TEXTS = ["a text", "Zwei Wörter"]

IMPORTED = """
import sys
sys.argv = ["refbert", *sys.argv[1:]]
from refbert.command import main
try:
    main()
except SystemExit:
    heavy = {"torch", "transformers", "qdrant_client", "grpc", "numpy", "tokenizers"} & sys.modules.keys()
    print(sorted(heavy), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def student(tiny_teacher_path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("commanded") / "student"
    torch.manual_seed(0)
    save_student(folder, RefBertModel(RefBertConfig(**SHAPE)), load_tokenizer(tiny_teacher_path), text_tokens=16)
    return folder


def run(*words, lines=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=lines)


def test_encode_prints_the_vectors_of_texts_and_of_lines_of_standard_input(student, tmp_path):
    wanted = refbert.load(student).encode(TEXTS)
    for done in (run("encode", student, *TEXTS), run("encode", student, lines="\n".join(TEXTS) + "\n")):
        assert done.exit_code == 0, done.output
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["text"] for row in rows] == TEXTS
        np.testing.assert_allclose([row["embedding"] for row in rows], wanted, atol=1e-6)
    done = run("encode", student, *TEXTS, "--output", tmp_path / "vectors.npy")
    assert done.stdout == ""
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), wanted, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]
    cut = json.loads(run("encode", student, "one two three", "--tokens", "3").stdout)["embedding"]
    np.testing.assert_allclose(cut, refbert.load(student).encode(["one"])[0], atol=1e-6)


def test_explain_prints_what_was_read(student):
    done = run("explain", student, "a text")
    assert done.exit_code == 0, done.output
    explained = json.loads(done.stdout)
    assert explained["text"] == "a text"
    assert [reference["rung"] for reference in explained["references"]] == ["null"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("encode", "NOWHERE", "a text"), "holds no student"),
        (
            ("encode", "STUDENT", "a text", "--dimensions", "4"),
            "adapted to none (`python jobs/adapt.py`, or `refbert adopt`)",
        ),
        (
            ("encode", "STUDENT", "a text", "--dimensions", "17"),
            "have 16 numbers and cannot be cut to 17: give 1 to 16",
        ),
        (("encode", "STUDENT"), "there is no text to encode"),
        (("encode", "STUDENT", "a text", "--output", "vectors.csv"), "is no .npy"),
        (("encode", "STUDENT", "a text", "--output", "/nowhere/vectors.npy"), "No such file"),
        (("encode", "STUDENT", "a text", "--references", "http://127.0.0.1:9"), "was trained without a memory"),
        (("explain", "STUDENT", " "), "there is no text to explain"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(student, tmp_path, words, message):
    names = {"STUDENT": student, "NOWHERE": tmp_path / "nowhere"}
    done = run(*(names.get(word, word) for word in words))
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [("adopt", "student", "docs", "--url", "http://127.0.0.1:9"), ("store", "info", "here")]
)
def test_without_the_memorys_packages_one_line_names_the_extra(words):
    code = "import sys\nsys.modules['grpc'] = None\nfrom refbert.command import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.endswith("needs grpc, which is not installed: pip install 'refbert[memory]'")


def test_a_reader_that_stops_early_is_no_error(student):
    code = "from refbert.command import main\nmain()"
    lines = "".join(f"text {number}\n" for number in range(400))  # their vectors are more than a pipe holds
    words = ["encode", str(student), "--batch", "400"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=REPOSITORY, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(lines)
        process.stdin.close()
        assert json.loads(process.stdout.readline())["text"] == "text 0"
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, "")


def test_the_version_is_that_of_the_package():
    assert run("--version").stdout == f"refbert {metadata.version('refbert')}\n"
    assert refbert.__version__ == metadata.version("refbert")


def test_store_has_the_verbs_of_the_module_under_the_commands_own_name(tmp_path):
    done = run("store", "info", tmp_path)
    assert done.exit_code == 2
    assert "there is no store in" in done.stderr
    shown = run("store", "info", "--help").stdout
    assert "usage: refbert store info" in shown
    assert "  refbert store info ./store" in shown
    assert "python -m vector_store" not in shown
    assert all(verb in run("store").stdout for verb in HELP)


def test_a_shell_completes_the_verbs_of_a_store():
    given = {"_REFBERT_COMPLETE": "complete_bash", "COMP_WORDS": "refbert store re", "COMP_CWORD": "2"}
    done = CliRunner().invoke(app, [], env=given, prog_name="refbert")
    assert done.stdout.split() == [verb for verb in HELP if verb.startswith("re")] == ["readmit", "restore"]


@pytest.mark.parametrize("words", [["--help"], ["encode", "--help"], ["adopt", "--help"], ["store", "--help"]])
def test_help_waits_for_no_heavy_import(words):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert "refbert" in done.stdout.lower()
    assert done.stderr.strip() == "[]"


def test_the_wheel_has_the_command_and_says_that_it_is_typed():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["refbert"].partition(":")
    assert callable(getattr(sys.modules[module], function))
    for package in (refbert, vector_store):
        assert (Path(package.__file__).parent / "py.typed").exists()
        assert project["tool"]["setuptools"]["package-data"][package.__name__] == ["py.typed"]
