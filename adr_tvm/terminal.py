"""The result on the terminal: a table of the layers, the notes and one summary line, on stdout.

Where stdout is no terminal the table is plain text, aligned, unwrapped and without colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from adr_tvm.results import NetworkResult

if TYPE_CHECKING:
    from rich.console import Console

    from adr_tvm.layers import Layer

WIDE = 140


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Any], str]
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


_CANDIDATE_COLUMNS = (
    _Column("layer", lambda layer: layer.layer, numeric=False),
    _Column("op", lambda layer: layer.op, numeric=False),
    _Column("geometry", lambda layer: layer.geometry, numeric=False),
    _Column("MACs", lambda layer: multiply_adds(layer.macs)),
    _Column("candidate", lambda layer: f"no: {layer.reason}" if layer.reason else "yes", numeric=False),
)


def print_result(result: NetworkResult) -> None:
    """Print the table of layers, the notes and the summary line; columns with nothing known are left out."""
    console = _stdout()
    _print_table(console, _COLUMNS, result.layers, [layer.decision == "reuse" for layer in result.layers])
    for note in result.notes:
        console.print(f"note: {printable(note)}", soft_wrap=True)
    console.print(printable(summary_line(result)), style="bold", soft_wrap=True)


def print_candidates(model: str, layers: Sequence[Layer]) -> None:
    """Print which layers of a model may be rewritten and why the others may not, and one summary line."""
    console, candidates = _stdout(), [layer for layer in layers if not layer.reason]
    _print_table(console, _CANDIDATE_COLUMNS, layers, [not layer.reason for layer in layers])
    total, covered = (sum(layer.macs for layer in some) for some in (layers, candidates))
    share = f", {percent(covered / total)} of {multiply_adds(total)} MACs" if total else ""
    text = f"{model}: {len(candidates)} of {len(layers)} layer{'' if len(layers) == 1 else 's'}"
    is_are = "is a candidate" if len(candidates) == 1 else "are candidates"
    console.print(printable(f"{text} {is_are}{share}"), style="bold", soft_wrap=True)


def _stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def _print_table(
    console: Console, columns: Sequence[_Column], layers: Sequence[Any], green: Sequence[bool]
) -> None:
    if not layers:
        return
    if console.is_terminal:
        columns = [each for each in columns if console.width >= WIDE or not each.wide_only]
    cells = {each.title: [printable(each.cell(layer)) for layer in layers] for each in columns}
    known = [each for each in columns if any(cell != MISSING for cell in cells[each.title])]
    rows = [list(row) for row in zip(*(cells[each.title] for each in known), strict=True)]
    if console.is_terminal:
        _print_rich(console, known, rows, green)
    else:
        for line in _plain_lines(known, rows):
            print(line)


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
    console: Console, columns: list[_Column], rows: list[list[str]], green: Sequence[bool]
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for row, coloured in zip(rows, green, strict=True):
        table.add_row(*(Text(cell) for cell in row), style="green" if coloured else None)
    console.print(table)
