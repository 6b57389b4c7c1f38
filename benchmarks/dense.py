"""Whole networks without reuse against ONNX Runtime.

    python -m benchmarks.dense --data DIR [--network NAME ...] [--threads N ...] [--json FILE]

Each network is compiled once for the shapes of its input; ONNX Runtime gets the same file and input. One process for
each number of threads; in it the engines take turns (`benchmarks/paired.py`). The last line is the geometric mean.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adr_tvm.compiler import CompileOptions, compile_model
from adr_tvm.progress import get_log
from benchmarks.command import Command, Settings
from benchmarks.networks import JUDGED, NAMES, Network, network
from benchmarks.paired import Ratio, geometric_mean, paired_ratio, rounds_for, take_turns
from benchmarks.processes import in_process


@dataclass(frozen=True)
class Row:
    """One network at one number of threads; times are medians in milliseconds."""

    network: str
    threads: int
    ours_ms: float
    onnxruntime_ms: float
    ratio: Ratio
    rounds: int
    error: float  # max |a - b| / max |b|


def compile_dense(which: Network, folder: Path) -> Path:
    """The bundle of a network without reuse, for the shape of its input."""
    # A pattern that every name matches: all layers dense, and no time spent on looking for reuse.
    options = CompileOptions(input_shapes={which.input_name: which.x.shape}, skip=["."])
    return compile_model(which.path, folder, options).folder


def measure(which: Network, bundle: Path, threads: int, seconds: float) -> Row:
    """Time both engines in this process."""
    from adr_tvm.bench.onnxruntime_engine import onnxruntime_engine
    from adr_tvm.deploy.runtime import load

    model = load(bundle, threads)
    session = onnxruntime_engine(which.path, [spec.name for spec in model.outputs], threads)
    feed = {which.input_name: which.x}
    expected, found = session(feed)[0], np.asarray(model(which.x))
    engines = {"ours": lambda: model(which.x), "onnxruntime": lambda: session(feed)}
    rounds = rounds_for(engines, seconds)
    times = take_turns(engines, rounds)
    return Row(
        which.name,
        threads,
        float(np.median(times["ours"])),
        float(np.median(times["onnxruntime"])),
        paired_ratio(times["ours"], times["onnxruntime"]),
        rounds,
        float(np.abs(found - expected).max() / np.abs(expected).max()),
    )


def run(settings: Settings) -> list[Row]:
    """All rows."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="adr-dense-") as folder:
        for name in settings.chosen or JUDGED:
            which = network(name, settings.data, Path(folder))
            bundle = compile_dense(which, Path(folder) / "bundle")
            for threads in settings.threads:
                row = in_process(measure, threads, which, bundle, threads, settings.seconds)
                get_log().info("%s, %d threads: %s", name, threads, row.ratio)
                rows.append(row)
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """Rows, then a geometric mean for each number of threads."""
    cells = [
        [
            row.network,
            str(row.threads),
            f"{row.ours_ms:.3g}",
            f"{row.onnxruntime_ms:.3g}",
            str(row.ratio),
            f"{row.error:.0e}",
        ]
        for row in rows
    ]
    for threads in sorted({row.threads for row in rows}):
        mean = geometric_mean([row.ratio.median for row in rows if row.threads == threads])
        cells.append(["geometric mean", str(threads), "", "", f"{mean:.3f}", ""])
    return cells


COMMAND = Command(
    name="dense",
    description=__doc__,
    headings=["network", "threads", "ours ms", "ORT ms", "ours / ORT [95 %]", "error"],
    choices=NAMES,
    choice="network",
    run=run,
    table=table,
)

if __name__ == "__main__":
    COMMAND.main()
