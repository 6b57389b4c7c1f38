"""The result on the terminal: a table of the layers, the notes and one summary line, on stdout.

Where stdout is no terminal the table is plain text, aligned, unwrapped and without colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adr_tvm.progress import printable
from adr_tvm.report.formats import (
    MISSING,
    factor,
    milliseconds,
    multiply_adds,
    number,
    percent,
    setting_text,
    summary_line,
)
from adr_tvm.report.results import NetworkResult
from adr_tvm.report.text_table import Heading, print_table, results_console

if TYPE_CHECKING:
    from rich.console import Console

    from adr_tvm.layers import Layer

WIDE = 140


@dataclass(frozen=True)
class _Column(Heading):
    cell: Callable[[Any], str] = field(kw_only=True)
    wide_only: bool = False


_COLUMNS = (
    _Column("layer", numeric=False, cell=lambda layer: layer.layer),
    _Column("op", numeric=False, cell=lambda layer: layer.op, wide_only=True),
    _Column("geometry", numeric=False, cell=lambda layer: layer.geometry, wide_only=True),
    _Column("decision", numeric=False, cell=lambda layer: layer.decision, wide_only=True),
    _Column("setting", numeric=False, cell=lambda layer: setting_text(layer.setting)),
    _Column("MACs", cell=lambda layer: multiply_adds(layer.macs_dense), wide_only=True),
    _Column("with reuse", cell=lambda layer: multiply_adds(layer.macs_reuse), wide_only=True),
    _Column("dense ms", cell=lambda layer: milliseconds(layer.time_dense_ms)),
    _Column("reuse ms", cell=lambda layer: milliseconds(layer.time_reuse_ms)),
    _Column("speedup", cell=lambda layer: factor(layer.speedup)),
    _Column("tuned", cell=lambda layer: factor(layer.tuned_speedup)),
    _Column("r_c", cell=lambda layer: percent(layer.r_c)),
    _Column("NMSE", cell=lambda layer: number(layer.nmse_layer), wide_only=True),
    _Column("at output", cell=lambda layer: number(layer.output_error)),
    _Column("reason", numeric=False, cell=lambda layer: layer.reason),
)


_CANDIDATE_COLUMNS = (
    _Column("layer", numeric=False, cell=lambda layer: layer.layer),
    _Column("op", numeric=False, cell=lambda layer: layer.op),
    _Column("geometry", numeric=False, cell=lambda layer: layer.geometry),
    _Column("MACs", cell=lambda layer: multiply_adds(layer.macs)),
    _Column("candidate", numeric=False, cell=lambda layer: f"no: {layer.reason}" if layer.reason else "yes"),
)


def print_result(result: NetworkResult) -> None:
    """Print the table of layers, the notes and the summary line; columns with nothing known are left out."""
    console = results_console()
    _print_layers(console, _COLUMNS, result.layers, [layer.decision == "reuse" for layer in result.layers])
    for note in result.notes:
        console.print(f"note: {printable(note)}", soft_wrap=True)
    console.print(printable(summary_line(result)), style="bold", soft_wrap=True)


def print_candidates(model: str, layers: Sequence[Layer]) -> None:
    """Print which layers of a model may be rewritten and why the others may not, and one summary line."""
    console, candidates = results_console(), [layer for layer in layers if not layer.reason]
    _print_layers(console, _CANDIDATE_COLUMNS, layers, [not layer.reason for layer in layers])
    total, covered = (sum(layer.macs for layer in some) for some in (layers, candidates))
    share = f", {percent(covered / total)} of {multiply_adds(total)} MACs" if total else ""
    text = f"{model}: {len(candidates)} of {len(layers)} layer{'' if len(layers) == 1 else 's'}"
    is_are = "is a candidate" if len(candidates) == 1 else "are candidates"
    console.print(printable(f"{text} {is_are}{share}"), style="bold", soft_wrap=True)


def _print_layers(console: Console, columns: Sequence[_Column], layers: Sequence[Any], green: Sequence[bool]) -> None:
    if not layers:
        return
    if console.is_terminal:
        columns = [each for each in columns if console.width >= WIDE or not each.wide_only]
    cells = {each.title: [printable(each.cell(layer)) for layer in layers] for each in columns}
    known = [each for each in columns if any(cell != MISSING for cell in cells[each.title])]
    rows = [list(row) for row in zip(*(cells[each.title] for each in known), strict=True)]
    print_table(console, known, rows, ["green" if coloured else None for coloured in green])
