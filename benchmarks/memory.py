"""Memory of whole networks without reuse against ONNX Runtime.

    python -m benchmarks.memory --data DIR [--network NAME ...] [--threads N ...] [--json FILE]

One process for each engine and number of threads. The *baseline* is the process's resident memory (VmRSS) when the
engine's library and this benchmark are imported and the input lies in memory, before the model is loaded; the kernel's
record of the peak (VmHWM) starts anew there. *Loaded* is the resident memory once the model is ready to run, *peak*
the record after some runs, both less the baseline: weights, working memory, the pages of code that were touched, and
whatever loading needed for a while. The process's own pages are everything; nothing is shared between the engines.

Each network is compiled once for the shape of its input; ONNX Runtime gets the same file. The last line is the
geometric mean of the ratios of peaks.
"""

from __future__ import annotations

import gc
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import Command, Settings
from benchmarks.dense import compile_dense
from benchmarks.networks import JUDGED, NAMES, Network, network
from benchmarks.paired import geometric_mean
from benchmarks.processes import in_process

RUNS = 5
MEBIBYTE = 1024.0  # KiB
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"


@dataclass(frozen=True)
class Usage:
    """MiB above the baseline."""

    loaded: float
    peak: float


@dataclass(frozen=True)
class Row:
    """One network at one number of threads; ``ratio`` is that of the peaks."""

    network: str
    threads: int
    ours: Usage
    onnxruntime: Usage
    ratio: float


def resident() -> tuple[float, float]:
    """This process's resident memory and its peak, in MiB."""
    text = _STATUS.read_text()
    now, peak = (int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) / MEBIBYTE for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now, peak


def usage(load: Callable[[], Callable[[], object]]) -> Usage:
    """What loading a network and running it takes in this process.

    Args:
        load: returns a function that runs the network.
    """
    gc.collect()
    _CLEAR.write_text(_CLEAR_PEAK)
    baseline = resident()[0]
    run = load()
    loaded = resident()[0]
    for _ in range(RUNS):
        run()
    return Usage(loaded - baseline, resident()[1] - baseline)


def measure_ours(which: Network, bundle: Path, threads: int) -> Usage:
    """A bundle, in this process."""
    import tvm.relax  # noqa: F401  what ``load`` imports

    import adr_tvm.deploy.runtime

    def load() -> Callable[[], object]:
        model = adr_tvm.deploy.runtime.load(bundle, threads)
        return lambda: model(which.x)

    return usage(load)


def measure_onnxruntime(which: Network, threads: int) -> Usage:
    """ONNX Runtime, in this process."""
    import onnxruntime

    def load() -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(str(which.path), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {which.input_name: which.x})

    return usage(load)


def run(settings: Settings) -> list[Row]:
    """All rows."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="adr-memory-") as folder:
        for name in settings.chosen or JUDGED:
            which = network(name, settings.data, Path(folder))
            bundle = compile_dense(which, Path(folder) / "bundle")
            for threads in settings.threads:
                ours = in_process(measure_ours, threads, which, bundle, threads)
                other = in_process(measure_onnxruntime, threads, which, threads)
                rows.append(Row(name, threads, ours, other, ours.peak / other.peak))
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """Rows, then a geometric mean for each number of threads."""
    cells = [
        [
            row.network,
            str(row.threads),
            *(f"{value:.1f}" for each in (row.ours, row.onnxruntime) for value in (each.loaded, each.peak)),
            f"{row.ratio:.2f}",
        ]
        for row in rows
    ]
    for threads in sorted({row.threads for row in rows}):
        mean = geometric_mean([row.ratio for row in rows if row.threads == threads])
        cells.append(["geometric mean", str(threads), "", "", "", "", f"{mean:.2f}"])
    return cells


COMMAND = Command(
    name="memory",
    description=__doc__,
    headings=["network", "threads", "ours loaded MiB", "ours peak", "ORT loaded", "ORT peak", "ratio of peaks"],
    choices=NAMES,
    run=run,
    table=table,
)

if __name__ == "__main__":
    COMMAND.main()
