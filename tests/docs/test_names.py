"""Links between documents lead somewhere, options that they name exist, and the index of docs/ lists every one."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from jobs.config import RunConfig
from jobs.sections import ServeConfig

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [*REPOSITORY.glob("*.md"), *sorted((REPOSITORY / "docs").rglob("*.md"))]


def anchors(file: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(file):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", file.read_text()):
        if not target.startswith(("http:", "https:")):
            found = (file.parent / target).resolve() if target else file
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), f"{target} has no #{anchor}"


def test_the_index_lists_every_document():
    listed = set(re.findall(r"\]\(([^)]+\.md)\)", (REPOSITORY / "docs/README.md").read_text()))
    documents = {str(file.relative_to(REPOSITORY / "docs")) for file in (REPOSITORY / "docs").rglob("*.md")}
    assert documents - {"README.md"} <= listed


def options(section: type[BaseModel]) -> set[str]:
    """The options of a section and, with dots, of the sections in it."""
    names = set(section.model_fields)
    for name, field in section.model_fields.items():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                names |= {f"{name}.{option}" for option in options(inner)}
    return names


def test_the_table_of_the_services_options_is_complete():
    rows = re.findall(r"^\| `.+\|$", (REPOSITORY / "docs/serving.md").read_text(), flags=re.MULTILINE)
    assert not set(ServeConfig.model_fields) - {name for row in rows for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(
    "file", [file for file in DOCUMENTS if file.name not in ("log.md", "CHANGELOG.md")], ids=lambda file: file.name
)
def test_options_that_documents_name_exist(file):
    sections = "|".join(name for name, field in RunConfig.model_fields.items() if isinstance(field.annotation, type))
    named = re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*)?`", file.read_text())
    assert not {name for name in named if not name.endswith((".py", ".yaml"))} - options(RunConfig)
