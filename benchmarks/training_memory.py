"""Peak memory of training beside PyTorch's: a process for each engine, which takes three steps.

    python -m benchmarks.training_memory [--network NAME ...] [--stage STAGE ...] [--json FILE]

*base* is the resident memory once the engine is imported, *held* after the third step, *peak* the highest until then,
building and compiling the network included. Images are random. Engines and stages are those of
``benchmarks.training_step``.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.command import Command, Settings
from benchmarks.processes import in_process
from benchmarks.training_step import NAMES, STAGES, cases, compiled_runs, input_size, torch_runs

STEPS = 3


@dataclass(frozen=True)
class Row:
    """One engine on one network, MiB.

    Attributes:
        base: before the network is loaded.
        held: after the last step.
        peak: until then.
    """

    network: str
    batch: int
    engine: str
    base: float
    held: float
    peak: float
    over_torch: float | None = None


def resident() -> float:
    """Peak resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def held() -> float:
    """Resident memory of this process now, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(name: str, engine: str, threads: int) -> Row:
    """Three steps of one engine, in this process."""
    case, rng = cases()[name], np.random.default_rng(0)
    model = case.build()
    x = rng.standard_normal((case.batch, *input_size(case))).astype(np.float32)
    labels = rng.integers(0, 10, case.batch).astype(np.int32)
    if engine == "torch":
        import torch  # noqa: F401

        base = resident()
        step: Any = torch_runs(model, x, labels, threads, compiled=False)["torch"]
    else:
        from adr_tvm.train.compiled_engine import CompiledEngine  # noqa: F401

        base = resident()
        with tempfile.TemporaryDirectory(prefix="adr-training-memory-") as folder:
            path = Path(folder) / f"{name}.onnx"
            onnx.save(model, path)
            step = compiled_runs(path, case.batch, (engine,), x, labels, threads, "float32")[engine]
    for _ in range(STEPS):
        step()
    return Row(name, case.batch, engine, base, held(), resident())


def run(settings: Settings) -> list[Row]:
    """All rows, a process each."""
    rows: list[Row] = []
    threads = max(settings.threads)
    for name in settings.chosen or NAMES:
        found = [
            in_process(measure, threads, name, engine, threads)
            for engine in ("torch", "dense", *(settings.options.stage or STAGES))
        ]
        rows += [Row(r.network, r.batch, r.engine, r.base, r.held, r.peak, r.peak / found[0].peak) for r in found]
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each engine."""
    return [
        [
            row.network,
            str(row.batch),
            row.engine,
            *(f"{mib:.0f}" for mib in (row.base, row.held, row.peak)),
            f"{row.over_torch:.2f}",
        ]
        for row in rows
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--stage``."""
    parser.add_argument("--stage", metavar="STAGE", action="append", help=f"repeatable; default: {' '.join(STAGES)}")


COMMAND = Command(
    name="training_memory",
    description=__doc__,
    headings=["network", "batch", "engine", "base MiB", "held MiB", "peak MiB", "by torch's"],
    choices=NAMES,
    run=run,
    table=table,
    add_options=add_options,
)

if __name__ == "__main__":
    COMMAND.main()
