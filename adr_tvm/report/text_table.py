"""A table on stdout: drawn on a terminal, elsewhere plain text, aligned, unwrapped and without colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adr_tvm.progress import printable

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Heading:
    """A column.

    Attributes:
        title: its heading.
        numeric: aligned to the right.
    """

    title: str
    numeric: bool = True


def results_console() -> Console:
    """Where results go: stdout, names and numbers taken as they are."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def print_table(
    console: Console,
    headings: Sequence[Heading],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str | None],
) -> None:
    """Print rows of cells, one cell for each heading.

    Args:
        styles: of each row; used on a terminal only.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for line in _plain_lines(headings, rows):
            print(line)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        table.add_column(heading.title, justify="right" if heading.numeric else "left", overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*(Text(cell) for cell in row), style=style)
    console.print(table)


def _plain_lines(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> list[str]:
    from rich.cells import cell_len

    table = [[each.title for each in headings], *rows]
    widths = [max(cell_len(row[index]) for row in table) for index in range(len(headings))]
    lines = []
    for row in table:
        padded = []
        for cell, width, heading in zip(row, widths, headings, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if heading.numeric else cell + space)
        lines.append("  ".join(padded).rstrip())
    return lines
