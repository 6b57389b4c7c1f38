"""Gradients of convolutions and dense layers on one thread, against the machine's peak and against PyTorch.

    python -m benchmarks.conv_gradients [--layer NAME ...] [--json FILE]

The layers are those of CifarNet, AlexNet, VGG-19 and ResNet50 at batch sizes that take some tens of milliseconds. Each
kernel (for dX with the packing of its weights) takes turns with ``aten::convolution_backward`` on channels-last tensors
(dense layers: ``mm``); times are CPU time of the thread. Operations count products with padding, which our dW leaves
out; so a share of the peak may exceed 100 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adr_tvm.errors import UsageError
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.report.formats import geometry_text
from benchmarks.ceilings import measure_ceilings
from benchmarks.command import Command, Settings
from benchmarks.paired import Ratio, paired_ratio
from benchmarks.processes import in_process

SAME1, SAME2 = (1, 1, 1, 1), (2, 2, 2, 2)
LAYERS = {
    "cifarnet-conv1": (ConvGeometry(32, 32, 3, 5, 5, 64, padding=SAME2), 128),
    "cifarnet-conv2": (ConvGeometry(16, 16, 64, 5, 5, 64, padding=SAME2), 64),
    "alexnet-conv1": (ConvGeometry(227, 227, 3, 11, 11, 96, strides=(4, 4)), 8),
    "alexnet-conv2": (ConvGeometry(27, 27, 96, 5, 5, 256, padding=SAME2), 8),
    "alexnet-conv3": (ConvGeometry(13, 13, 384, 3, 3, 384, padding=SAME1), 16),
    "alexnet-fc6": (dense_geometry(1, 9216, 4096), 32),
    "vgg-conv1_1": (ConvGeometry(224, 224, 3, 3, 3, 64, padding=SAME1), 4),
    "vgg-conv2_2": (ConvGeometry(112, 112, 128, 3, 3, 128, padding=SAME1), 2),
    "vgg-conv5": (ConvGeometry(14, 14, 512, 3, 3, 512, padding=SAME1), 8),
    "resnet-3x3/2": (ConvGeometry(56, 56, 128, 3, 3, 128, strides=(2, 2), padding=SAME1), 8),
    "resnet-1x1": (ConvGeometry(56, 56, 64, 1, 1, 256), 8),
    "resnet-7x7": (ConvGeometry(7, 7, 512, 3, 3, 512, padding=SAME1), 16),
}


@dataclass(frozen=True)
class Row:
    """One gradient of one layer.

    Attributes:
        layer, shape, gradient: what it is.
        batch: images.
        gflops: ours.
        peak: share of the machine's multiply-adds.
        ratio: time of ours by PyTorch's.
        error: max |a - b| / max |b|.
    """

    layer: str
    shape: str
    gradient: str
    batch: int
    gflops: float
    peak: float
    ratio: Ratio
    error: float


def measure(names: list[str], seconds: float) -> list[Row]:
    """Rows of the named layers, in this process."""
    try:
        import torch
    except ImportError as error:
        raise UsageError("this benchmark needs PyTorch: pip install torch") from error
    torch.set_num_threads(1)
    rows = []
    for name in names:
        geometry, batch = LAYERS[name]
        peak = measure_ceilings(1, 0.3).gflops
        for gradient in ("dW", "dX"):
            if gradient == "dX" and geometry.C == 3:
                continue  # the network's input
            ours, found = _ours(geometry, batch, gradient)
            theirs, wanted = _torch(geometry, batch, gradient)
            pairs = _turns(ours, theirs, seconds)
            error = np.abs(found() - wanted()).max() / np.abs(wanted()).max()
            operations = 2e-9 * batch * geometry.macs
            rate = operations / float(np.median([a for a, _ in pairs]))
            ratio = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
            shape = geometry_text(geometry)
            rows.append(Row(name, shape, gradient, batch, rate, rate / peak, ratio, float(error)))
    return rows


def _turns(ours: Callable[[], object], theirs: Callable[[], object], seconds: float) -> list[tuple[float, float]]:
    """CPU seconds of both, in turn; an odd number of rounds."""
    pairs: list[tuple[float, float]] = []
    begin = time.thread_time()
    ours()
    theirs()
    while len(pairs) < 5 or time.thread_time() - begin < seconds or len(pairs) % 2 == 0:
        times = []
        for run in (ours, theirs):
            start = time.thread_time()
            run()
            times.append(time.thread_time() - start)
        pairs.append((times[0], times[1]))
    return pairs


def _data(geometry: ConvGeometry, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    g, rng = geometry, np.random.default_rng(0)
    shapes = (batch, g.H, g.W, g.C), (g.KH, g.KW, g.C, g.M), (batch, g.OH, g.OW, g.M)
    x, w, dz = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return x, w, dz


def _ours(geometry: ConvGeometry, batch: int, gradient: str) -> tuple[Callable[[], object], Callable[[], np.ndarray]]:
    """The kernels of a gradient one after the other, as the compiler lowers it, and what they leave."""
    import tvm
    from tvm import relax, tirx

    from adr_tvm._tvm import calls, cpu_target, static_shape, tensor_type
    from adr_tvm.gradients import register_all
    from adr_tvm.gradients.conv2d import conv2d_input_grad, conv2d_weight_grad
    from adr_tvm.tuning.trial import compiled

    register_all()
    g, target = geometry, cpu_target()
    common: dict[str, Any] = {"strides": g.strides, "padding": g.padding, "dilation": g.dilation}
    x, w, dz = _data(geometry, batch)
    arrays = (x, dz) if gradient == "dW" else (dz, w)
    variables = [relax.Var(name, tensor_type(a.shape)) for name, a in zip("ab", arrays, strict=True)]
    if gradient == "dW":
        call = conv2d_weight_grad(*variables, kernel=(g.KH, g.KW), **common)
    else:
        call = conv2d_input_grad(*variables, input=(g.H, g.W), **common)
    bb = relax.BlockBuilder()
    with bb.function("main", variables):
        bb.emit_func_output(bb.emit(call))
    with target:
        mod = relax.transform.LegalizeOps()(bb.get())
    values = {hash(v): tvm.runtime.tensor(a) for v, a in zip(mod["main"].params, arrays, strict=True)}
    functions = {gv.name_hint: compiled(f, target) for gv, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    steps = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if value in calls(mod["main"], "relax.call_tir"):
                out = tvm.runtime.tensor(np.full(static_shape(value), np.nan, np.float32))
                steps.append((functions[value.args[0].name_hint], [values[hash(a)] for a in value.args[1].fields], out))
            else:
                out = values[hash(value)]
            values[hash(binding.var)] = out
    assert steps, "the gradient is at least one kernel"

    def run() -> None:
        for function, inputs, out in steps:
            function(*inputs, out)

    return run, lambda: steps[-1][2].numpy()


def _torch(geometry: ConvGeometry, batch: int, gradient: str) -> tuple[Callable[[], object], Callable[[], np.ndarray]]:
    """PyTorch's way, and what it returns in our layout."""
    import torch

    g = geometry
    x, w, dz = _data(geometry, batch)
    if g.H == g.W == 1:
        rows, weights, grads = (torch.tensor(a.reshape(-1, a.shape[-1])) for a in (x, w, dz))
        dense = (lambda: rows.t() @ grads) if gradient == "dW" else (lambda: grads @ weights.t())
        shape = w.shape if gradient == "dW" else x.shape
        return dense, lambda: dense().numpy().reshape(shape)
    top, left, bottom, right = g.padding
    assert (top, left) == (bottom, right), "PyTorch pads both sides alike"
    xt, dt = (torch.tensor(a).permute(0, 3, 1, 2) for a in (x, dz))
    wt = torch.tensor(w).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    want = [gradient == "dX", gradient == "dW", False]

    def run() -> Any:
        return torch.ops.aten.convolution_backward(
            dt, xt, wt, [0], list(g.strides), [top, left], list(g.dilation), False, [0, 0], 1, want
        )

    if gradient == "dW":
        return run, lambda: run()[1].permute(2, 3, 1, 0).numpy()
    return run, lambda: run()[0].permute(0, 2, 3, 1).numpy()


def run(settings: Settings) -> list[Row]:
    """All rows; one thread, whatever is asked for."""
    return in_process(measure, 1, list(settings.chosen or LAYERS), settings.seconds)


def table(rows: list[Row]) -> list[list[str]]:
    """A row for each gradient."""
    return [
        [
            row.layer,
            f"{row.batch} x {row.shape}",
            row.gradient,
            f"{row.gflops:.0f}",
            f"{100 * row.peak:.0f}",
            str(row.ratio),
            f"{row.error:.0e}",
        ]
        for row in rows
    ]


COMMAND = Command(
    name="conv_gradients",
    description=__doc__,
    headings=["layer", "shape", "gradient", "GFLOP/s", "% of peak", "ours / PyTorch [95 %]", "error"],
    run=run,
    table=table,
    choices=list(LAYERS),
    choice="layer",
    seconds=1.5,
)

if __name__ == "__main__":
    COMMAND.main()
