"""Links between documents lead somewhere, and the index of docs/ lists every one."""

import re
from pathlib import Path

import pytest

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
