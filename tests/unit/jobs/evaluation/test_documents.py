"""Documents from templates: no value may be missing, and texts are quoted as they are."""

import pytest
from jinja2 import UndefinedError

from jobs.evaluation.documents import Table, render, show


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "page.md.j2"
    path.write_text('{% from "tables.md.j2" import section %}\n{{ section(one) }}\n\n> {{ text }}\n')
    return path


def test_texts_are_quoted_as_they_are(template, capsys):
    text, one = "<b> & {{ one }} {% if %}", Table("Rows", ("a", "b"), [("1", "[red]2[/red]")])
    wanted = f"## Rows\n\n| a | b |\n| --- | --- |\n| 1 | [red]2[/red] |\n\n> {text}\n"
    assert render(template, text=text, one=one) == wanted
    show(one, "a [bold]line[/bold]")
    printed = capsys.readouterr().out
    assert "[red]2[/red]" in printed
    assert "a [bold]line[/bold]" in printed


def test_a_value_that_is_not_given_is_an_error(template):
    with pytest.raises(UndefinedError, match="text"):
        render(template, one=Table("Rows", ("a",), []))
