"""Single layers without reuse against ONNX Runtime, and against what the machine can do at best.

    python -m benchmarks.dense_layers --data DIR [--network NAME ...] [--threads N ...] [--json FILE]

Every distinct convolution and matrix product of a network is made a model of its own, with its weights and the tensor
that it gets inside the network, and both engines run it. Inside a network, tensors stay in the layout that the kernels
like (NHWC here, blocked channels in ONNX Runtime); alone, both engines also convert from NCHW and back. "kernel" is our
kernel without that, as it runs inside the network; it is what is held against the roof:

- % of peak: of the multiply-adds that the machine does from registers;
- % of roof: of the larger of that and reading weights, input and output once from the level of the memory that they
  fit in (`benchmarks/ceilings.py`).

"n" says how often the network holds such a layer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from adr_tvm.progress import progress
from benchmarks.activations import OnnxLayer, distinct, onnx_layers, weight_bytes
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.command import Command, Settings
from benchmarks.networks import NAMES, Network, network
from benchmarks.paired import Ratio, geometric_mean, paired_ratio, rounds_for, take_turns
from benchmarks.processes import in_process

USUAL = ("squeezenet-b1", "resnet20-b1", "alexnet", "vgg19", "resnet50")


@dataclass(frozen=True)
class Row:
    """One layer at one number of threads; times are medians in milliseconds.

    Attributes:
        network, layer, shape: what it is.
        count: layers of this kind in the network.
        threads: of either engine.
        gflop: operations of a run, in 10^9.
        bytes: of weights, input and output.
        ours_ms, onnxruntime_ms: of the layer as a model.
        kernel_ms: of our kernel alone; None where the layer is not a single kernel.
        ratio: ours / ONNX Runtime.
        kernel_ratio: kernel / ONNX Runtime.
        peak, roof: shares of what the machine can do at best, of the kernel (else of the model).
        error: max |a - b| / max |b|.
        rounds: of the comparison.
    """

    network: str
    layer: str
    shape: str
    count: int
    threads: int
    gflop: float
    bytes: int
    ours_ms: float
    kernel_ms: float | None
    onnxruntime_ms: float
    ratio: Ratio
    kernel_ratio: Ratio | None
    peak: float
    roof: float
    error: float
    rounds: int

    @property
    def best_ms(self) -> float:
        """Of the kernel, else of the model."""
        return self.ours_ms if self.kernel_ms is None else self.kernel_ms


def measure(which: Network, pattern: str, threads: int, seconds: float) -> list[Row]:
    """Time all layers of a network, in this process.

    Args:
        pattern: part of the layer's name; empty: all.
    """
    ceilings = measure_ceilings(threads, 1.0)
    layers = distinct([layer for layer in onnx_layers(which.path, which.x) if pattern in layer.node.name])
    rows = []
    title = f"{which.name}, threads: {threads}"
    with tempfile.TemporaryDirectory(prefix="adr-layers-") as folder, progress(title, len(layers)) as step:
        for layer, count in layers:
            rows.append(_measure_layer(which.name, layer, count, Path(folder), ceilings, seconds))
            step.advance(1, layer.node.name)
    return rows


def _measure_layer(name: str, layer: OnnxLayer, count: int, folder: Path, ceilings: Ceilings, seconds: float) -> Row:
    path = folder / "layer.onnx"
    onnx.save(layer.model(), path)
    onnxruntime, expected = _onnxruntime(path, layer.x, ceilings.threads)
    engines, found = _ours(path, layer.x)
    engines["onnxruntime"] = onnxruntime
    rounds = rounds_for(engines, seconds)
    times = take_turns(engines, rounds)
    medians = {engine: float(np.median(times[engine])) for engine in engines}
    operations = layer.operations(expected)
    size = weight_bytes(layer.weights) + layer.x.nbytes + expected.nbytes
    best = medians.get("kernel", medians["ours"]) / 1e3
    return Row(
        network=name,
        layer=layer.node.name,
        shape=layer.shape_text(expected),
        count=count,
        threads=ceilings.threads,
        gflop=operations / 1e9,
        bytes=size,
        ours_ms=medians["ours"],
        kernel_ms=medians.get("kernel"),
        onnxruntime_ms=medians["onnxruntime"],
        ratio=paired_ratio(times["ours"], times["onnxruntime"]),
        kernel_ratio=paired_ratio(times["kernel"], times["onnxruntime"]) if "kernel" in times else None,
        peak=operations / 1e9 / ceilings.gflops / best,
        roof=ceilings.roof(operations, size) / best,
        error=float(np.abs(found - expected).max() / np.abs(expected).max()),
        rounds=rounds,
    )


def _onnxruntime(path: Path, x: np.ndarray, threads: int) -> tuple[Callable[[], object], np.ndarray]:
    """A run that neither copies the input nor the output, and the output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return lambda: session.run_with_iobinding(binding), binding.copy_outputs_to_cpu()[0]


def _ours(path: Path, x: np.ndarray) -> tuple[dict[str, Callable[[], object]], np.ndarray]:
    """Runs of the layer as a model and, where it is one, of its kernel alone; and the model's output."""
    import tvm
    from tvm import relax

    from adr_tvm._tvm import static_shape
    from adr_tvm.build import build_module
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.ops import DENSE_OPS, GROUPED_CONV2D
    from adr_tvm.options import CompileOptions
    from adr_tvm.passes.mark_candidates import find_candidates
    from adr_tvm.planner.layer_kernel import LayerKernel

    loaded = LoadedNetwork(path, CompileOptions())
    machine = relax.VirtualMachine(build_module(loaded.mod, loaded.target), tvm.cpu())
    main, tensor = machine["main"], tvm.runtime.tensor(x)
    engines: dict[str, Callable[[], object]] = {"ours": lambda: main(tensor)}
    for candidate in find_candidates(loaded.mod["main"], "main", loaded.rules):
        if candidate.call.op.name in (*DENSE_OPS, GROUPED_CONV2D):
            shape = static_shape(candidate.call.args[0])
            inner = tvm.runtime.tensor(channels_last(x).reshape(shape) if np.prod(shape) == x.size else np.ones(shape))
            engines["kernel"] = partial(LayerKernel(candidate.call, loaded.target), inner)
    return engines, main(tensor).numpy()


def channels_last(x: np.ndarray) -> np.ndarray:
    """[B, C, H, W] as [B, H, W, C]; other tensors as they are."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


def run(settings: Settings) -> list[Row]:
    """All rows."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="adr-layers-") as folder:
        for name in settings.chosen or USUAL:
            which = network(name, settings.data, Path(folder))
            for threads in settings.threads:
                rows += in_process(measure, threads, which, settings.options.layer, threads, settings.seconds)
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """Rows by network and number of threads, and after each the sum over all layers of the network."""
    cells = []
    for key in dict.fromkeys((row.network, row.threads) for row in rows):
        part = [row for row in rows if (row.network, row.threads) == key]
        cells += [_cells(row) for row in part]
        cells.append(_total(part))
    return cells


def _cells(row: Row) -> list[str]:
    return [
        row.network,
        row.layer,
        row.shape,
        str(row.count),
        str(row.threads),
        f"{row.ours_ms:.3g}",
        "-" if row.kernel_ms is None else f"{row.kernel_ms:.3g}",
        f"{row.onnxruntime_ms:.3g}",
        str(row.ratio),
        "-" if row.kernel_ratio is None else f"{row.kernel_ratio.median:.2f}",
        f"{row.gflop / row.best_ms * 1e3:.0f}",
        f"{100 * row.peak:.0f}",
        f"{100 * row.roof:.0f}",
        f"{row.error:.0e}",
    ]


def _total(rows: list[Row]) -> list[str]:
    """The network's layers one after the other; ratios as geometric means over layers."""

    def total(time: Callable[[Row], Any]) -> float:
        return sum(row.count * time(row) for row in rows)

    best = total(lambda row: row.best_ms)
    kernels = [row.kernel_ratio.median for row in rows if row.kernel_ratio is not None]
    return [
        rows[0].network,
        "all layers; ratios: geometric mean",
        "",
        str(sum(row.count for row in rows)),
        str(rows[0].threads),
        f"{total(lambda row: row.ours_ms):.3g}",
        f"{best:.3g}",
        f"{total(lambda row: row.onnxruntime_ms):.3g}",
        f"{geometric_mean([row.ratio.median for row in rows]):.2f}",
        f"{geometric_mean(kernels):.2f}" if kernels else "-",
        f"{total(lambda row: row.gflop) / best * 1e3:.0f}",
        f"{100 * total(lambda row: row.peak * row.best_ms) / best:.0f}",
        f"{100 * total(lambda row: row.roof * row.best_ms) / best:.0f}",
        "",
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", metavar="TEXT", default="", help="only layers whose name holds TEXT")


HEADINGS = (
    "network", "layer", "shape", "n", "threads", "ours ms", "kernel ms", "ORT ms", "ours / ORT [95 %]",
    "kernel / ORT", "GFLOP/s", "% of peak", "% of roof", "error",
)  # fmt: skip
COMMAND = Command(
    name="dense_layers",
    description=__doc__,
    headings=HEADINGS,
    choices=NAMES,
    seconds=1.0,
    run=run,
    table=table,
    add_options=_options,
)

if __name__ == "__main__":
    COMMAND.main()
