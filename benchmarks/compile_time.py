"""Time that compiling takes, phase by phase.

    python -m benchmarks.compile_time --data DIR [--network NAME ...] [--plan N] [--json FILE]

A process for each network. *Import* is that of the compiler's modules in a fresh Python. *Front end* checks and imports
the model and brings it into canonical form, *kernels* lowers it (most of that is parsing TVMScript), *memory* plans
memory and writes the entries, *LLVM* makes machine code, *link* writes the library. *Sum* leaves the import out. As a
side figure, *ORT* is the time that ONNX Runtime takes to make a session of the same file, and *load* that of a
finished bundle.

With ``--plan N``, *plan* is the time of a whole ``adr-compile`` run with N calibration images: search, measurements,
verification and the build.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adr_tvm.options import CompileOptions
from benchmarks.command import Command, Settings
from benchmarks.dense import compile_dense
from benchmarks.networks import JUDGED, NAMES, Network, network, samples
from benchmarks.processes import in_process

IMPORT = (
    "import time; t = time.perf_counter(); import adr_tvm.build, adr_tvm.loaded_network; print(time.perf_counter() - t)"
)


@dataclass(frozen=True)
class Row:
    """One network; seconds. ``plan`` is None where it was not asked for."""

    network: str
    kernels_parsed: int
    imports: float
    front_end: float
    kernels: float
    memory: float
    llvm: float
    link: float
    load: float
    onnxruntime: float
    plan: float | None = None

    @property
    def sum(self) -> float:
        """From the ONNX file to the library."""
        return self.front_end + self.kernels + self.memory + self.llvm + self.link


def measure(which: Network, folder: Path) -> Row:
    """All phases but planning, in this process."""
    import onnxruntime
    import tvm

    from adr_tvm.build import compile_lowered
    from adr_tvm.deploy.bundle import write_library
    from adr_tvm.deploy.runtime import load
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.passes import pipeline

    options = CompileOptions(input_shapes={which.input_name: which.x.shape})
    loaded, front_end = timed(lambda: LoadedNetwork(which.path, options))
    target = loaded.target
    lowered, kernels = timed(lambda: pipeline.run(pipeline.lower(target), loaded.mod, target))
    finished, memory = timed(lambda: pipeline.run(pipeline.finish(), lowered, target))
    library, llvm = timed(lambda: compile_lowered(finished, target))
    _, link = timed(lambda: write_library(library, folder))
    bundle = compile_dense(which, folder / "bundle")
    _, loading = timed(lambda: load(bundle))
    _, session = timed(lambda: onnxruntime.InferenceSession(str(which.path), providers=["CPUExecutionProvider"]))
    parsed = sum(isinstance(func, tvm.tirx.PrimFunc) for _, func in lowered.functions_items())
    return Row(which.name, parsed, _import_time(), front_end, kernels, memory, llvm, link, loading, session)


def plan_time(which: Network, images: np.ndarray, folder: Path) -> float:
    """Seconds of a whole run with calibration images, in this process."""
    from adr_tvm.compiler import compile_model

    np.save(folder / "images.npy", images)
    options = CompileOptions(input_shapes={which.input_name: which.x.shape})
    return timed(lambda: compile_model(which.path, folder / "planned", options, folder / "images.npy"))[1]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returns, and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _import_time() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def run(settings: Settings) -> list[Row]:
    """All rows."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="adr-compile-time-") as folder:
        for name in settings.chosen or JUDGED:
            which, threads = network(name, settings.data, Path(folder)), max(settings.threads)
            row = in_process(measure, threads, which, Path(folder))
            count = getattr(settings.options, "plan", None)
            if count is not None:
                images = samples(name, settings.data, count)
                row = Row(**asdict(row) | {"plan": in_process(plan_time, threads, which, images, Path(folder))})
            rows.append(row)
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each network."""
    return [
        [
            row.network,
            str(row.kernels_parsed),
            *(
                f"{value:.2f}"
                for value in (
                    row.imports, row.front_end, row.kernels, row.memory, row.llvm, row.link, row.sum, row.load,
                    row.onnxruntime,
                )
            ),
            "" if row.plan is None else f"{row.plan:.1f}",
        ]
        for row in rows
    ]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--plan``."""
    parser.add_argument("--plan", metavar="N", type=int, help="plan too, with N calibration images")


COMMAND = Command(
    name="compile_time",
    description=__doc__,
    headings=[
        "network", "functions", "import s", "front end", "kernels", "memory", "LLVM", "link", "sum", "load", "ORT",
        "plan",
    ],
    choices=NAMES,
    run=run,
    table=table,
    add_options=add_options,
)  # fmt: skip

if __name__ == "__main__":
    COMMAND.main()
