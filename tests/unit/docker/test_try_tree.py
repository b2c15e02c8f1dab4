"""`docker/try_tree.py` parses the Dockerfile; building the tree needs root and minutes, and is done by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def try_tree():
    spec = importlib.util.spec_from_file_location("try_tree", REPOSITORY / "docker" / "try_tree.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["try_tree"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["try_tree"]


def test_stages_arguments_and_continued_lines_are_parsed(try_tree):
    text = "\n".join(
        [
            "# a comment",
            "ARG BASE=debian:bookworm-slim",
            "FROM ${BASE} AS one",
            "RUN a \\",
            "# between continued lines",
            "    && b",
            "FROM one",
            "ENV X=1 \\",
            '    Y="2 3"',
        ]
    )
    stages, arguments = try_tree.stages(text)
    assert arguments == {"BASE": "debian:bookworm-slim"}
    assert [(stage.name, stage.base) for stage in stages.values()] == [("one", "${BASE}"), ("1", "one")]
    (run,) = stages["one"].instructions
    assert run.word == "RUN"
    assert run.rest.split() == ["a", "&&", "b"]
    assert stages["1"].instructions == [("ENV", 'X=1 Y="2 3"')]
    assert try_tree.filled("${BASE}/$X", {"BASE": "b", "X": "1"}) == "b/1"


def test_every_instruction_of_the_dockerfile_is_supported(try_tree):
    stages, _ = try_tree.stages((REPOSITORY / "docker" / "Dockerfile").read_text())
    words = {instruction.word for stage in stages.values() for instruction in stage.instructions}
    assert words <= {"ENV", "ARG", "USER", "WORKDIR", "RUN", "COPY"} | try_tree.NO_EFFECT
    assert {"cpu", "gpu"} <= stages.keys()


def test_the_image_contains_the_code_without_a_checkouts_other_files(try_tree):
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    held = {str(path) for path in try_tree.context_files(rules)}
    assert {"jobs/distill.py", "jobs/configs/quickstart.yaml", "pyproject.toml", "docker/healthy.py"} <= held
    assert {Path(name).parts[0] for name in held} == {
        "cluster", "docker", "jobs", "refbert", "vector_store", "LICENSE", "pyproject.toml",
    }  # fmt: skip
    assert not [name for name in held if name.startswith("cluster/check") or "secrets" in name]


def test_local_paths_in_pips_settings_are_mapped_into_the_stage(try_tree, tmp_path):
    index = tmp_path / "simple"
    index.mkdir()
    given = {
        "PIP_EXTRA_INDEX_URL": f"https://example.org/simple file://{index}",
        "PIP_CERT": "/gone",
        "PIP_TIMEOUT": "9",
    }
    settings, seen = try_tree.shown_inside(given)
    assert settings == given | {"PIP_EXTRA_INDEX_URL": f"https://example.org/simple file://{try_tree.HOST}{index}"}
    assert seen == {tmp_path}  # the parent: an index's pages link to files beside it
