"""Instructions that a 64-bit Arm core executes for one run of a network: dense, and with reuse, by phase and by layer.

Counts are exact and the same on every machine, unlike times; they say nothing of memory and of what runs side by side.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.errors import DataError, UsageError
from adr_tvm.frontend.onnx_limits import Limits
from adr_tvm.frontend.onnx_load import load_proto
from adr_tvm.jsonfile import write_json
from adr_tvm.options import CompileOptions
from adr_tvm.plan import ReusePlan
from adr_tvm.report.text_table import Heading, print_table, results_console
from benchmarks.emulation.count import COMPILER, Emulator
from benchmarks.emulation.phases import PHASES
from benchmarks.networks import NAMES, input_names, network
from benchmarks.no_data import NoData
from benchmarks.validation.data_folder import DataFolder

RUNTIME = Path(__file__).parents[1] / ".aarch64"


@dataclass(frozen=True)
class Row:
    """The network, or one of its layers.

    Attributes:
        layer: name; empty for the network.
        entry: ``dense`` or ``reuse``.
        instructions: of one run.
        phases: by phase.
    """

    layer: str
    entry: str
    instructions: int
    phases: Mapping[str, int]


@dataclass(frozen=True)
class Sizes:
    """Bytes of an entry.

    Attributes:
        entry: ``dense`` or ``reuse``.
        code: of the library without weights; both entries are in one where a plan reuses.
        weights: constants, packed for the kernels.
        memory: the most that is allocated at once during a run, without weights and inputs.
    """

    entry: str
    code: int
    weights: int
    memory: int


def measure(
    path: Path,
    arrays: Sequence[np.ndarray],
    plan: ReusePlan | None,
    options: CompileOptions,
    runtime: Path,
    layers: bool,
) -> tuple[list[Row], list[Sizes]]:
    """Compile a network under a plan and count.

    Args:
        path: the ONNX file.
        arrays: inputs.
        plan: None: every layer that may reuses losslessly.
        layers: count each layer as well, in further runs.

    Raises:
        ModelError, DataError, MissingDependencyError: see ``compile_model`` and ``Emulator``.
    """
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.passes import pipeline

    loaded = LoadedNetwork(path, options)
    plan = _lossless(loaded) if plan is None else plan
    rows, sizes = [], []
    with tempfile.TemporaryDirectory() as folder:
        emulator = Emulator(Path(folder), runtime)
        for entry, mod in (("dense", loaded.mod), ("reuse", pipeline.run(_rewrite(plan), loaded.mod, loaded.target))):
            library, size = _library(mod, loaded, Path(folder) / f"{entry}.so")
            counts = emulator.count(library, "main", arrays)
            rows.append(Row("", entry, counts.total, counts.phases))
            sizes.append(Sizes(entry, *size, counts.memory))
            if layers:
                rows += _layers(emulator, mod, loaded, arrays, entry, Path(folder))
    return rows, sizes


def _rewrite(plan: ReusePlan) -> list[Any]:
    from adr_tvm.passes.adaptive_deep_reuse import AdaptiveDeepReuse

    return [AdaptiveDeepReuse(plan, function="main")]


def _lossless(loaded: Any) -> ReusePlan:
    """Every layer that may reuses losslessly."""
    from adr_tvm.plan import LayerPlan
    from adr_tvm.planner.lossless import lossless_findings
    from adr_tvm.planner.options import SearchOptions

    chosen = lossless_findings(loaded.mod, loaded.rules, SearchOptions(lossless=True)).chosen
    layers = {layer: LayerPlan(layer, "reuse", m.short.setting, "lossless") for layer, m in chosen.items()}
    return ReusePlan(loaded.checked.sha256, loaded.options.entry.name, 0, "none", None, layers)


def _library(mod: tvm.IRModule, loaded: Any, path: Path) -> tuple[Path, tuple[int, int]]:
    """(a library with its weights, sizes of code and weights)."""
    from tvm.support import cc

    from adr_tvm.build import build_module

    built = build_module(mod, loaded.target, precision=loaded.options.precision)
    link = cc.cross_compiler(COMPILER)
    built.export_library(str(path), fcompile=link)
    code, weights = built.without_weights()
    bare = path.with_suffix(".bare.so")
    code.export_library(str(bare), fcompile=link)
    return path, (bare.stat().st_size, int(weights.nbytes))


def _layers(
    emulator: Emulator, mod: tvm.IRModule, loaded: Any, arrays: Sequence[np.ndarray], entry: str, folder: Path
) -> list[Row]:
    """Each convolution and matrix product, between marks."""
    from adr_tvm.passes import pipeline
    from adr_tvm.passes.stamp_layers import ENTRY, StampLayers
    from adr_tvm.schedules.stamp import mark_behind

    names = [layer.layer for layer in loaded.layers]
    stamped = pipeline.run([StampLayers(names, mark_behind)], mod, loaded.target)
    library, _ = _library(stamped, loaded, folder / f"{entry}-layers.so")
    sections = emulator.count(library, ENTRY, arrays).sections
    # Marks number from 1; between the two of a layer lies what it executes.
    found = [(name, sections.get(2 * i + 1, {})) for i, name in enumerate(names)]
    return [Row(name, entry, sum(phases.values()), phases) for name, phases in found]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("network", metavar="NETWORK", help=f"an ONNX file, or one of {', '.join(NAMES)}")
    parser.add_argument("--data", metavar="DIR", type=Path, help="folder with the models and data")
    parser.add_argument("--input", metavar="FILE.npy", type=Path, action="append", help="of an ONNX file, one for each")
    parser.add_argument("--plan", metavar="PATH", help="of adr-compile (default: every layer reuses losslessly)")
    parser.add_argument("--target", metavar="NAME", default="rpi4", help="of adr-compile (default: rpi4)")
    parser.add_argument("--dtype", metavar="NAME", default="float32", help="of adr-compile: float32 or fp16")
    parser.add_argument("--runtime-dir", metavar="DIR", type=Path, default=RUNTIME, help="default: .aarch64")
    parser.add_argument("--layers", action="store_true", help="count each layer too; takes two more runs")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every number to FILE")
    add_verbosity(parser)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as work:
        path, arrays = _network(arguments, Path(work))
        plan = None if arguments.plan is None else ReusePlan.load(arguments.plan)
        names = input_names(load_proto(path, Limits())[0].graph)
        shapes = {name: x.shape for name, x in zip(names, arrays, strict=False)} if arguments.input else {}
        options = CompileOptions(target=arguments.target, dtype=arguments.dtype, input_shapes=shapes)
        if not options.entry.foreign:
            raise UsageError("--target is this machine; the emulator runs 64-bit Arm")
        rows, sizes = measure(path, arrays, plan, options, arguments.runtime_dir, arguments.layers)
    _print(rows, sizes)
    if arguments.json is not None:
        content = {"network": arguments.network, "target": arguments.target, "plan": arguments.plan}
        write_json(arguments.json, {**content, "rows": [*map(asdict, rows)], "sizes": [*map(asdict, sizes)]})


def _network(arguments: argparse.Namespace, work: Path) -> tuple[Path, list[np.ndarray]]:
    if arguments.network in NAMES:
        data = NoData() if arguments.data is None else DataFolder(arguments.data)
        found = network(arguments.network, data, work)
        return found.path, [found.x]
    if not arguments.input:
        raise UsageError("an ONNX file needs its inputs: --input FILE.npy for each")
    try:
        return Path(arguments.network), [np.load(path, allow_pickle=False) for path in arguments.input]
    except (OSError, ValueError) as error:
        raise DataError(f"--input cannot be read: {error}") from error


def _print(rows: Sequence[Row], sizes: Sequence[Sizes]) -> None:
    dense = {row.layer: row for row in rows if row.entry == "dense"}
    titles = ["layer", "entry", "million instructions", "of dense", *PHASES]
    cells = []
    for name in dense:
        for row in (row for row in rows if row.layer == name):
            share = row.instructions / dense[name].instructions if dense[name].instructions else 1.0
            counts = [_millions(row.phases.get(phase, 0)) for phase in PHASES]
            cells.append([name or "network", row.entry, _millions(row.instructions), f"{100 * share:.1f} %", *counts])
    headings = [Heading(title, numeric=i > 1) for i, title in enumerate(titles)]
    print_table(results_console(), headings, cells, [None] * len(cells))
    headings = [Heading(title, numeric=i > 0) for i, title in enumerate(["entry", "code", "weights", "working memory"])]
    table = [[s.entry, *(f"{n / 1024:.0f} KiB" for n in (s.code, s.weights, s.memory))] for s in sizes]
    print_table(results_console(), headings, table, [None] * len(table))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}" if count else "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_cli(_run, _parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
