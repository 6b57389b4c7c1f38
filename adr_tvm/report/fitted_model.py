"""A fitted cost model on the terminal: measured beside predicted times, and the machine's speeds that follow."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from adr_tvm.progress import printable
from adr_tvm.report.formats import milliseconds, significant
from adr_tvm.report.text_table import Heading, print_table, results_console

if TYPE_CHECKING:
    from adr_tvm.planner.cost_file import FittedKernel, FittedModel

_TABLE_BYTES = {"float32": 4, "bfloat16": 2, "int16": 2, "int8": 1}
_FLOPS = {"dense flops": "dense", "product flops": "centroid products"}


def print_fitted(fitted: FittedModel, path: Path) -> None:
    """Print a row for each kernel, the speeds, and one summary line."""
    console = results_console()
    rows = [
        [k.name, milliseconds(k.measured * 1e3), milliseconds(k.predicted * 1e3), f"{_error(k):+.0%}"]
        for k in fitted.kernels
    ]
    headings = [Heading("kernel", numeric=False), Heading("measured ms"), Heading("predicted ms"), Heading("error")]
    print_table(console, headings, rows, [None] * len(rows))
    for line in speeds(fitted):
        console.print(printable(line), soft_wrap=True)
    errors = [abs(_error(each)) for each in fitted.kernels]
    plural = "" if fitted.threads == 1 else "s"
    text = f"{fitted.cpu}, {fitted.threads} thread{plural}: median error {statistics.median(errors):.0%}"
    console.print(printable(f"{text}, largest {max(errors):.0%}; wrote {path}"), style="bold", soft_wrap=True)


def _error(kernel: FittedKernel) -> float:
    return kernel.predicted / kernel.measured - 1


def speeds(fitted: FittedModel) -> list[str]:
    """What the coefficients mean on all threads, a sentence each; what takes no time is left out."""
    lines = []
    for name, title in _FLOPS.items():
        if seconds := fitted.seconds.get(name):
            lines.append(f"{title}: {significant(fitted.threads / seconds / 1e9)} GFLOP/s")
    for table, size in _TABLE_BYTES.items():
        if seconds := fitted.seconds.get(f"adds {table}"):
            adds = fitted.threads / seconds / 1e9
            lines.append(f"gather-adds, {table} tables: {significant(adds)} G/s, {significant(size * adds)} GB/s")
    if seconds := fitted.seconds.get("vectors"):
        lines.append(f"vectors numbered: {significant(fitted.threads / seconds / 1e6)} M/s")
    return lines
