"""The result on the terminal: a table of the layers, the notes and one summary line, on stdout.

Where stdout is no terminal the table is plain text, aligned, unwrapped and without colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adr_tvm.formats import (
    MISSING,
    factor,
    milliseconds,
    multiply_adds,
    number,
    percent,
    setting_text,
    summary_line,
)
from adr_tvm.progress import printable
from adr_tvm.results import LayerResult, NetworkResult

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 140


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[LayerResult], str]
    numeric: bool = True
    wide_only: bool = False


_COLUMNS = (
    _Column("layer", lambda layer: layer.layer, numeric=False),
    _Column("op", lambda layer: layer.op, numeric=False, wide_only=True),
    _Column("geometry", lambda layer: layer.geometry, numeric=False, wide_only=True),
    _Column("decision", lambda layer: layer.decision, numeric=False, wide_only=True),
    _Column("setting", lambda layer: setting_text(layer.setting), numeric=False),
    _Column("MACs", lambda layer: multiply_adds(layer.macs_dense), wide_only=True),
    _Column("with reuse", lambda layer: multiply_adds(layer.macs_reuse), wide_only=True),
    _Column("dense ms", lambda layer: milliseconds(layer.time_dense_ms)),
    _Column("reuse ms", lambda layer: milliseconds(layer.time_reuse_ms)),
    _Column("speedup", lambda layer: factor(layer.speedup)),
    _Column("r_c", lambda layer: percent(layer.r_c)),
    _Column("NMSE", lambda layer: number(layer.nmse_layer), wide_only=True),
    _Column("at output", lambda layer: number(layer.output_error)),
    _Column("reason", lambda layer: layer.reason, numeric=False),
)


def print_result(result: NetworkResult) -> None:
    """Print the table of layers, the notes and the summary line; columns with nothing known are left out."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if result.layers and console.is_terminal:
        columns, rows = _cells(
            result, [each for each in _COLUMNS if console.width >= WIDE or not each.wide_only]
        )
        _print_rich(console, result, columns, rows)
    elif result.layers:
        for line in _plain_lines(*_cells(result, list(_COLUMNS))):
            print(line)
    for note in result.notes:
        console.print(f"note: {printable(note)}", soft_wrap=True)
    console.print(printable(summary_line(result)), style="bold", soft_wrap=True)


def _cells(result: NetworkResult, columns: list[_Column]) -> tuple[list[_Column], list[list[str]]]:
    cells = {each.title: [printable(each.cell(layer)) for layer in result.layers] for each in columns}
    known = [each for each in columns if any(cell != MISSING for cell in cells[each.title])]
    return known, [list(row) for row in zip(*(cells[each.title] for each in known), strict=True)]


def _plain_lines(columns: list[_Column], rows: list[list[str]]) -> list[str]:
    from rich.cells import cell_len

    table = [[each.title for each in columns], *rows]
    widths = [max(cell_len(row[index]) for row in table) for index in range(len(columns))]
    lines = []
    for row in table:
        padded = []
        for cell, width, column in zip(row, widths, columns, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if column.numeric else cell + space)
        lines.append("  ".join(padded).rstrip())
    return lines


def _print_rich(
    console: Console, result: NetworkResult, columns: list[_Column], rows: list[list[str]]
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for layer, row in zip(result.layers, rows, strict=True):
        table.add_row(*(Text(cell) for cell in row), style="green" if layer.decision == "reuse" else None)
    console.print(table)
