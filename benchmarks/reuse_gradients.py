"""Forward and backward pass of single layers in training: dense against reuse, over L and H.

    python -m benchmarks.reuse_gradients [--layer NAME ...] [--granularity NAME ...] [--L N ...] [--H N ...]

Inputs are made up: random fields that vary slowly over an image, mixed into channels, with noise and a ReLU; `pca`
planes are fitted to the first images. A batch is clustered together. r_c is clusters / vectors. The backward pass is
that of weights and input: dense, two convolutions; reuse, cluster sums for both (`averaged`). "fwd", "bwd" and "step",
both together, are by the dense layer's time. Behind these come the milliseconds of the reuse kernels: clustering,
products and gather (forward); members sorted, sums of dZ and what they are multiplied with, parts summed, gradients
spread over members (backward).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import make_planes
from adr_tvm.hashing.vector_statistics import VectorStatistics
from adr_tvm.hashing.vectors import neuron_vectors
from adr_tvm.progress import progress
from adr_tvm.report.formats import geometry_text, setting_text
from adr_tvm.settings import GRANULARITIES, ReuseSetting
from benchmarks.command import Command, Settings
from benchmarks.paired import Ratio, paired_ratio, rounds_for, take_turns
from benchmarks.processes import in_process

FIELDS, NOISE, SHIFT = 12, 0.3, 0.5
FIT_IMAGES = 16
PHASES = {
    "cluster": ("_cluster",),
    "products": ("_gemm_scatter", "_gemm", "_row_scatter"),
    "lists": ("member_lists",),
    "sums": ("cluster_gradients", "cluster_weight_gradients", "transpose_weights"),
    "parts": ("sum_weight_gradient", "centroid_gradient"),
    "spread": ("spread_gradients",),
}


@dataclass(frozen=True)
class TrainedLayer:
    """A convolution and the images of a step."""

    geometry: ConvGeometry
    batch: int


def _square(size: int, C: int, M: int, window: int, batch: int) -> TrainedLayer:
    return TrainedLayer(ConvGeometry(size, size, C, window, window, M, padding=(window // 2,) * 4), batch)


LAYERS = {
    "cifarnet-conv2": _square(16, 64, 64, 5, 128),
    "alexnet-conv2": _square(27, 96, 256, 5, 16),
    "alexnet-conv3": _square(13, 256, 384, 3, 32),
    "vgg19-conv1_2": _square(224, 64, 64, 3, 2),
    "vgg19-conv2_2": _square(112, 128, 128, 3, 2),
    "vgg19-conv3_2": _square(56, 256, 256, 3, 2),
    "vgg19-conv4_2": _square(28, 512, 512, 3, 4),
    "vgg19-conv5_2": _square(14, 512, 512, 3, 16),
}
SETTINGS = [ReuseSetting("pixel", L, H, scope="batch") for L, H in ((32, 8), (16, 8), (32, 10), (16, 10), (8, 8))]


@dataclass(frozen=True)
class Row:
    """One setting of one layer at one number of threads; times are medians in milliseconds.

    Attributes:
        layer, shape, batch, setting, threads: what ran.
        r_c: clusters / vectors.
        dense_forward_ms, dense_backward_ms, forward_ms, backward_ms: of a pass.
        forward, backward, step: reuse by dense.
        phases: of the kernels, by name.
        rounds: of the comparison.
    """

    layer: str
    shape: str
    batch: int
    setting: ReuseSetting
    threads: int
    r_c: float
    dense_forward_ms: float
    dense_backward_ms: float
    forward_ms: float
    backward_ms: float
    forward: Ratio
    backward: Ratio
    step: Ratio
    phases: dict[str, float]
    rounds: int


def smooth_images(g: ConvGeometry, batch: int, seed: int = 0) -> np.ndarray:
    """float32 [batch, H, W, C]; see the module."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((batch, g.H // 2 + 2, g.W // 2 + 2, FIELDS), np.float32)
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)
    fields = sum(fine[:, y : y + g.H, x : x + g.W] for y in (1, 2) for x in (1, 2)) / np.float32(4)
    mixed = fields @ rng.standard_normal((FIELDS, g.C), np.float32)
    noise = NOISE * rng.standard_normal(mixed.shape, np.float32)
    return np.maximum(mixed + noise - np.float32(SHIFT), 0).astype(np.float32)


def _machine(layer: TrainedLayer, setting: ReuseSetting | None) -> Any:
    """A virtual machine with the entries ``forward`` and ``backward``, whose kernels are called one by one."""
    import tvm
    from tvm import relax

    from adr_tvm import ops
    from adr_tvm._tvm import cpu_target, tensor_type
    from adr_tvm.activation import Activation
    from adr_tvm.build import build_module
    from adr_tvm.gradients import conv2d, register_all, reuse

    register_all()
    g, B = layer.geometry, layer.batch

    def variables(**shapes: Sequence[int]) -> list[relax.Var]:
        return [relax.Var(name, tensor_type(shape)) for name, shape in shapes.items()]

    image, kernel, out = [B, g.H, g.W, g.C], [g.KH, g.KW, g.C, g.M], [B, g.OH, g.OW, g.M]
    x, w, bias = variables(x=image, w=kernel, bias=[g.M])
    call = ops.conv2d(x, w, bias, name="layer", padding=g.padding, activation=Activation.relu())
    bb = relax.BlockBuilder()
    if setting is None:
        with bb.function("forward", [x, w, bias]):
            bb.emit_func_output(bb.emit(call))
        x, w, dz = variables(x=image, w=kernel, dz=out)
        with bb.function("backward", [x, w, dz]):
            dw = bb.emit(conv2d.conv2d_weight_grad(x, dz, kernel=(g.KH, g.KW), padding=g.padding))
            dx = bb.emit(conv2d.conv2d_input_grad(dz, w, input=(g.H, g.W), padding=g.padding))
            bb.emit_func_output(relax.Tuple([dw, dx]))
    else:
        S, L = g.segments(setting), g.vector_length(setting)
        planes, thresholds = variables(planes=[S, L, setting.H], thresholds=[S, setting.H])
        reused = ops.with_reuse(call, setting, planes, thresholds, training=True)
        with bb.function("forward", [x, w, bias, planes, thresholds]):
            bb.emit_func_output(bb.emit(reused))
        w, dz = variables(w=kernel, dz=out)
        saved = [relax.Var(n, t) for n, t in zip(("ids", "centroids"), ops.saved_types(reused), strict=True)]
        with bb.function("backward", [w, dz, *saved]):
            bb.emit_func_output(bb.emit(reuse.reuse_grad(dz, w, *saved, g, setting)))
    target = cpu_target()
    return relax.VirtualMachine(build_module(bb.get(), target, merge=False), tvm.cpu())


def phase_times(machine: Any, entries: Sequence[tuple[str, Sequence[Any]]], runs: int = 7) -> dict[str, float]:
    """Milliseconds of the kernels of a run of all entries, by phase: medians over runs."""
    times: dict[str, list[float]] = {phase: [] for phase in (*PHASES, "other")}
    begun = [0.0]

    def instrument(_func: Any, name: str, before: bool, _result: Any, *_args: Any) -> int:
        if before:
            begun[0] = time.perf_counter()
        else:
            found = [p for p, endings in PHASES.items() if name.rstrip("0123456789_").endswith(endings)]
            times[found[0] if found else "other"][-1] += 1e3 * (time.perf_counter() - begun[0])
        return 0

    machine.set_instrument(instrument)
    for _ in range(runs):
        for found in times.values():
            found.append(0.0)
        for entry, arguments in entries:
            machine[entry](*arguments)
    return {phase: float(np.median(found)) for phase, found in times.items()}


def measure(name: str, settings: Sequence[ReuseSetting], threads: int, seconds: float) -> list[Row]:
    """Time one layer, in this process."""
    with progress(f"{name}, threads: {threads}", len(settings)) as step:
        rows = []
        for setting in settings:
            rows.append(measure_layer(name, LAYERS[name], setting, threads, seconds))
            step.advance(1, setting_text(setting))
    return rows


def measure_layer(name: str, layer: TrainedLayer, setting: ReuseSetting, threads: int, seconds: float) -> Row:
    """One setting of one layer."""
    import tvm

    g, rng = layer.geometry, np.random.default_rng(1)
    x = smooth_images(g, layer.batch)
    statistics = VectorStatistics(g.segments(setting), g.vector_length(setting), 0)
    statistics.update(neuron_vectors(x[:FIT_IMAGES], g, setting))
    hashing = make_planes(setting.hash, setting.H, statistics, 0)
    assert hashing is not None
    w = rng.standard_normal((g.KH, g.KW, g.C, g.M), np.float32) / np.float32(np.sqrt(g.K))
    dz = rng.standard_normal((layer.batch, g.OH, g.OW, g.M), np.float32)
    arrays = (x, w, np.zeros(g.M, np.float32), hashing.planes, hashing.thresholds, dz)
    x_, w_, bias, planes, thresholds, dz_ = (tvm.runtime.tensor(a) for a in arrays)
    dense, reuse = _machine(layer, None), _machine(layer, setting)
    _, stats, *saved = reuse["forward"](x_, w_, bias, planes, thresholds)
    forward, backward = (x_, w_, bias, planes, thresholds), (w_, dz_, *saved)
    engines = {
        "dense forward": partial(dense["forward"], x_, w_, bias),
        "dense backward": partial(dense["backward"], x_, w_, dz_),
        "forward": partial(reuse["forward"], *forward),
        "backward": partial(reuse["backward"], *backward),
    }
    times = take_turns(engines, rounds_for(engines, seconds))
    steps = [[a + b for a, b in zip(times[f], times[d], strict=True)] for f, d in
             (("forward", "backward"), ("dense forward", "dense backward"))]  # fmt: skip
    medians = [float(np.median(times[engine])) for engine in engines]
    return Row(
        name,
        geometry_text(g),
        layer.batch,
        setting,
        threads,
        int(stats.numpy()[:, 0].sum()) / (g.vectors(setting) * layer.batch),
        *medians,
        paired_ratio(times["forward"], times["dense forward"]),
        paired_ratio(times["backward"], times["dense backward"]),
        paired_ratio(*steps),
        phase_times(reuse, [("forward", forward), ("backward", backward)]),
        len(times["forward"]),
    )


def run(settings: Settings) -> list[Row]:
    """All rows."""
    options, rows = settings.options, []
    chosen = SETTINGS
    if options.L or options.H or options.granularity:
        chosen = [
            ReuseSetting(granularity, L, H, scope="batch")
            for granularity in options.granularity or ["pixel"]
            for L in options.L or [16]
            for H in options.H or [8]
        ]
    for name in settings.chosen or ["cifarnet-conv2"]:
        for threads in settings.threads:
            rows += in_process(measure, threads, name, chosen, threads, settings.seconds)
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each."""
    return [
        [
            row.layer,
            str(row.batch),
            setting_text(row.setting),
            str(row.threads),
            f"{100 * row.r_c:.1f} %",
            f"{row.dense_forward_ms:.3g}",
            f"{row.dense_backward_ms:.3g}",
            f"{row.forward_ms:.3g}",
            f"{row.backward_ms:.3g}",
            f"{row.forward.median:.2f}",
            f"{row.backward.median:.2f}",
            str(row.step),
            *(f"{ms:.2g}" for ms in row.phases.values()),
        ]
        for row in rows
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--granularity", nargs="+", choices=GRANULARITIES)
    parser.add_argument("--L", metavar="N", type=int, nargs="+", help="lengths of a neuron vector")
    parser.add_argument("--H", metavar="N", type=int, nargs="+", help="hash bits")


HEADINGS = (
    "layer", "batch", "setting", "threads", "r_c", "dense fwd ms", "bwd ms", "fwd ms", "bwd ms", "fwd", "bwd",
    "step [95 %]", *PHASES, "other",
)  # fmt: skip
COMMAND = Command(
    name="reuse_gradients",
    description=__doc__,
    headings=HEADINGS,
    choices=tuple(LAYERS),
    choice="layer",
    seconds=2.0,
    run=run,
    table=table,
    add_options=_options,
)

if __name__ == "__main__":
    COMMAND.main()
