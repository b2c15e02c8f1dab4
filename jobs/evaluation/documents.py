"""Fill in Markdown documents from Jinja templates, and show tables on the terminal. Their content is the callers'."""

from pathlib import Path
from typing import Any, NamedTuple

import rich.table
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console

TEMPLATES = Path(__file__).parent / "templates"

Rows = list[tuple[str, ...]]


class Table(NamedTuple):
    """A table of formatted cells."""

    title: str
    columns: tuple[str, ...]
    rows: Rows

    def __rich__(self) -> rich.table.Table:
        """The table as rich prints it."""
        table = rich.table.Table(*self.columns, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        return table


def render(template: Path, /, **values: Any) -> str:
    """Return the template filled in; `tables.md.j2` and the templates beside it are there to import.

    Raises jinja2.UndefinedError where it uses a value that is not given.
    """
    loader = FileSystemLoader([template.parent, TEMPLATES])
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template(template.name).render(values)


def show(*parts: Table | str) -> None:
    """Print tables and lines on the terminal. A text may hold brackets: they are no markup."""
    console = Console(width=110, highlight=False, markup=False)
    for part in parts:
        console.print(part)
