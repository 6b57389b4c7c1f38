"""What the CUDA kernels of some layers use: registers, spills and local memory of a thread, shared memory of a block.

    python -m benchmarks.cuda_resources [--arch SM,...] [--layer NAME ...] [--dtype NAME] [--kernel PATTERN]

Needs no GPU: the numbers are the assembler's. Layers are compiled at batch 32, dense and with reuse of rows (8 bits,
`exact`), pixels and segments (8 bits; in fp32), and the backward passes of those with bits, whose clusters are those of
the batch. Kernels that several layers share are listed with each. With a
disassembler (`benchmarks/sass.py`) the last column tells how many instructions of the inner loop are products: `HMMA`
of tensor cores, else `FFMA`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from adr_tvm.build import build_module, code_objects_of
from adr_tvm.cli.common import Parser, add_verbosity, run_cli
from adr_tvm.cuda.code_objects import Resources
from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.options import CompileOptions
from adr_tvm.precision import Precision
from adr_tvm.report.text_table import Heading, print_table, results_console
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TargetEntry
from benchmarks.layer_module import gradient_module, layer_module
from benchmarks.sass import find_nvdisasm, products_of

BATCH = 32
LAYERS = {
    "ResNet50 conv1": ConvGeometry(224, 224, 3, 7, 7, 64, strides=(2, 2), padding=(3, 3, 3, 3)),
    "ResNet50 1x1": ConvGeometry(56, 56, 64, 1, 1, 256),
    "ResNet50 3x3": ConvGeometry(28, 28, 128, 3, 3, 128, padding=(1, 1, 1, 1)),
    "VGG-19 conv5": ConvGeometry(14, 14, 512, 3, 3, 512, padding=(1, 1, 1, 1)),
    "VGG-19 fc7": dense_geometry(1, 4096, 4096),
}
SETTINGS = (
    None,
    ReuseSetting("row", H=8, hash="gaussian"),
    ReuseSetting("row", L=1, H=1, hash="exact"),
    ReuseSetting("pixel", L=16, H=8, hash="gaussian"),
    ReuseSetting("segment", L=16, H=8, hash="gaussian"),
)
_HEADINGS = (
    Heading("layer", numeric=False),
    Heading("kernel", numeric=False),
    Heading("architecture", numeric=False),
    Heading("registers"),
    Heading("spills, bytes"),
    Heading("local, bytes"),
    Heading("shared, bytes"),
    Heading("products in the loop"),
)


def resources_of(
    geometry: ConvGeometry, setting: ReuseSetting | None, entry: TargetEntry, precision: Precision | None = None
) -> list[Resources]:
    """What the kernels of a layer use on a target's architectures, in the order they are compiled in."""
    g = geometry
    w, bias = np.zeros((g.KH, g.KW, g.C, g.M), np.float32), np.zeros(g.M, np.float32)
    planes = None
    if setting is not None and setting.hash != "exact":
        planes = np.zeros((g.segments(setting), g.vector_length(setting), setting.H), np.float32)
    mod = layer_module(g, BATCH, w, bias, setting, planes)
    with code_objects_of(entry) as used:
        build_module(mod, entry.make(None), precision=precision)
    return list(used)


def gradient_resources_of(geometry: ConvGeometry, setting: ReuseSetting, entry: TargetEntry) -> list[Resources]:
    """The same for the backward pass of a layer that reuses."""
    with code_objects_of(entry) as used:
        build_module(gradient_module(geometry, BATCH, setting), entry.make(None))
    return list(used)


def _products(used: Resources, nvdisasm: str | None) -> str:
    """Products among the instructions of the inner loop, such as "32 of 123"."""
    found = None if nvdisasm is None or not used.code else products_of(used.code, used.kernel, nvdisasm)
    return "" if found is None else f"{found[0]} of {found[1]}"


def rows_of(
    layers: Sequence[str], entry: TargetEntry, precision: Precision | None = None, pattern: str = ""
) -> Iterator[list[str]]:
    """Rows of the table; ``pattern``: a regular expression that their kernels' names hold."""
    nvdisasm = find_nvdisasm()
    for layer in layers:
        for setting in SETTINGS:
            if precision is not None and setting is not None and setting.granularity != "row":
                continue  # fp32 only
            kind = "" if setting is None or setting.granularity != "row" else f" ({setting.hash})"
            found = [(used, kind) for used in resources_of(LAYERS[layer], setting, entry, precision)]
            if precision is None and setting is not None and setting.hash != "exact":
                trained = gradient_resources_of(LAYERS[layer], replace(setting, scope="batch"), entry)
                found += [(used, f" ({setting.granularity})") for used in trained]
            for used, kind in found:
                kernel = used.kernel.removeprefix("adr_").removesuffix("_kernel") + kind
                numbers = (used.registers, used.spills, used.stack, used.shared)
                if re.search(pattern, kernel):
                    yield [layer, kernel, used.architecture, *map(str, numbers), _products(used, nvdisasm)]


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    unknown = [name for name in arguments.layer or () if name not in LAYERS]
    if unknown:
        raise UsageError(f"--layer {unknown[0]!r} is not known; there is {', '.join(LAYERS)}")
    options = CompileOptions(target="cuda", arch=arguments.arch, dtype=arguments.dtype)
    layers = arguments.layer or list(LAYERS)
    rows = list(rows_of(layers, options.entry, options.precision, arguments.kernel))
    print_table(results_console(), _HEADINGS, rows, [None] * len(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.cuda_resources", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", metavar="SM,...", help="architectures (default: all that --target cuda has)")
    parser.add_argument("--layer", metavar="NAME", action="append", help=f"one of {', '.join(LAYERS)} (default: all)")
    parser.add_argument("--dtype", metavar="NAME", default="fp32", help="fp32, tf32, bf16 or fp16 (default: fp32)")
    parser.add_argument("--kernel", metavar="PATTERN", default="", help="only kernels whose name this is found in")
    add_verbosity(parser)
    return run_cli(run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
