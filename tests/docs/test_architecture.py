"""docs/architecture.md is true: every Python file has one line there, and nothing is named that does not exist."""

import ast
import re
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/architecture.md").read_text()
PRESENT, BEFORE = PAGE.split("## Names of before")
ROOMS = ("refbert", "vector_store", "jobs", "cluster")
GENERATED = re.compile(r"__init__\.py|_pb2(_grpc)?\.py")


def mapped() -> list[str]:
    """The files that the map names: a heading is a room, the first cell of a row its file."""
    files = []
    for section in re.split(r"^### ", PRESENT.partition("## Files")[2], flags=re.MULTILINE)[1:]:
        room = section.splitlines()[0]
        files += [room + file for file in re.findall(r"^\| `(\w+\.py)` \|", section, flags=re.MULTILINE)]
    return files


def test_every_python_file_of_the_rooms_is_named_exactly_once():
    found = (file.relative_to(REPOSITORY) for room in ROOMS for file in (REPOSITORY / room).rglob("*.py"))
    assert Counter(mapped()) == Counter(str(file) for file in found if not GENERATED.search(file.name))


def test_every_path_that_is_named_exists():
    folders = "|".join((*ROOMS, "docker", "tests", "benchmarks", "docs"))
    paths = set(re.findall(rf"(?<![\w/])(?:{folders})/[\w./-]*", PRESENT))
    assert len(paths) > 30
    assert not {path for path in paths if not (REPOSITORY / path).exists()}


def test_names_of_before_lead_to_files_that_exist():
    now = [row.split("|")[2] for row in BEFORE.splitlines() if row.startswith("| ")]
    paths = re.findall(r"`(\w+/[\w/.]*)`", " ".join(now))
    assert len(paths) > 15
    assert not {path for path in paths if not (REPOSITORY / path).exists()}


def test_the_ways_name_functions_that_their_files_define():
    named = re.findall(r"`([\w/]+\.py)` `(\w+)`", PRESENT)
    assert len(named) > 20
    for path, name in named:
        defined = {getattr(node, "name", None) for node in ast.walk(ast.parse((REPOSITORY / path).read_text()))}
        assert name in defined, f"{path} has no {name}"
