"""Fitting the planner's cost model to this machine: measure a varied set of kernels, then least squares.

Times span four orders of magnitude, so the squares are of relative errors; what other programs disturbed weighs less
(iteratively reweighted, Cauchy weights). Data are made so that vectors repeat as the case asks: positions hold one of
a number of random prototypes. What counts is the clusters that the kernel reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adr_tvm.bench.least_squares import nonnegative_least_squares
from adr_tvm.deploy.processor import processor_name
from adr_tvm.deploy.threads import set_threads
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.planner.cost import TERMS, CostModel, dense_work, reuse_work
from adr_tvm.planner.cost_file import FittedKernel, FittedModel, machine_file
from adr_tvm.progress import progress
from adr_tvm.settings import ReuseSetting
from adr_tvm.timing import fair_orders, warm_up

if TYPE_CHECKING:
    from adr_tvm.planner.layer_kernel import LayerKernel

LEAST_ROUNDS, MOST_ROUNDS = 5, 25
ROUNDS_SECONDS = 20.0  # after which the least rounds are enough
SEED = 0
REWEIGHTED = 10
SPREAD = 0.15  # relative error at which a square counts half


@dataclass(frozen=True)
class Case:
    """A kernel to measure: a layer on some images, dense or with a setting, on data of so many prototypes."""

    geometry: ConvGeometry
    setting: ReuseSetting | None = None
    prototypes: int = 256
    images: int = 1

    @property
    def name(self) -> str:
        """In words, for the table."""
        from adr_tvm.report.formats import geometry_text, setting_text

        batch = "" if self.images == 1 else f"{self.images} x "
        what = "dense" if self.setting is None else f"{setting_text(self.setting)}, {self.prototypes} prototypes"
        return f"{batch}{geometry_text(self.geometry)}: {what}"


def _conv(size: int, C: int, M: int, kernel: int = 3, stride: int = 1) -> ConvGeometry:
    pad = kernel // 2
    return ConvGeometry(size, size, C, kernel, kernel, M, (stride, stride), (pad, pad, pad, pad))


def cases() -> list[Case]:
    """What is measured: every term weighs in some of them, and no two only together."""
    body, deep, flat, first = _conv(56, 64, 64), _conv(28, 128, 128), _conv(28, 128, 64, 1), _conv(64, 3, 32, 5)
    tokens = dense_geometry(196, 384, 384)
    dense = [body, deep, flat, first, _conv(14, 256, 256), _conv(56, 32, 64, 3, 2), tokens, dense_geometry(1, 1024, 64)]
    pixel = [
        (body, dict(L=16, H=8), 256),
        (body, dict(L=16, H=8), 16),
        (body, dict(L=8, H=10), 4096),
        (body, dict(L=4, H=6), 64),
        (body, dict(L=16, H=14), 4096),
        (body, dict(L=32, H=12), 4096),
        (body, dict(L=16, H=8, gain=True), 256),
        (deep, dict(L=16, H=8), 256),
        (deep, dict(L=32, H=12), 4096),
        (deep, dict(L=8, H=4), 256),
        (deep, dict(L=16, H=10, gain=True), 256),
        (flat, dict(L=16, H=8), 256),
        (flat, dict(L=8, H=12), 4096),
        (first, dict(L=3, H=8), 256),
        (tokens, dict(L=16, H=6), 64),
        *((body, dict(L=16, H=8, table=t), 256) for t in ("bfloat16", "int16", "int8")),
        *((deep, dict(L=8, H=8, table=t), 64) for t in ("bfloat16", "int16", "int8")),
    ]
    segment = [
        (body, dict(L=9, H=8), 64),
        (body, dict(L=9, H=12), 64),
        (body, dict(L=36, H=10), 64),
        (body, dict(L=36, H=4), 64),
        (deep, dict(L=18, H=6), 64),
    ]
    row = [(flat, dict(H=8), 256), (deep, dict(H=6), 16), (tokens, dict(H=8), 64)]
    exact = [(body, dict(L=1, H=1, hash="exact"), 2), (flat, dict(L=1, H=1, hash="exact"), 16)]
    found = [Case(g) for g in dense] + [Case(body, images=4)]
    for granularity, kernels in (("pixel", pixel), ("segment", segment), ("row", row), ("row", exact)):
        found += [Case(g, ReuseSetting(granularity, **kind), n) for g, kind, n in kernels]  # type: ignore[arg-type]
    batch = ReuseSetting(L=8, H=10, scope="batch")
    many = ReuseSetting(L=8, H=14, scope="batch")
    long = [(ReuseSetting("segment", L=L, H=10, scope="batch"), 1024) for L in (10, 25)]
    batches = [(batch, 1024), (many, 4096), *long]
    found += [Case(_conv(16, 64, 64, 5), setting, prototypes, 8) for setting, prototypes in batches]
    return [*found, Case(flat, ReuseSetting(L=16, H=8), 256, 4)]


def fit_machine(threads: int | None, some: Sequence[Case] | None = None) -> tuple[FittedModel, Path]:
    """Measure kernels on this machine, fit a cost model and keep it for ``adr-compile``.

    Args:
        threads: None: all physical cores.
        some: what to measure in place of ``cases``.

    Raises:
        UsageError: the number of threads cannot be had, or the file cannot be written.
    """
    count = set_threads(threads)
    path = machine_file(count)
    measured = _measured(cases() if some is None else some)
    fitted = fitted_model(measured, count)
    fitted.save(path)
    return fitted, path


def fitted_model(measured: Sequence[tuple[Case, float, float]], threads: int) -> FittedModel:
    """The model that fits (case, clusters, seconds) best; terms that no case has keep their default."""
    work = [_work(case, clusters, threads) for case, clusters, _ in measured]
    names = [name for name in TERMS if any(each.get(name) for each in work)]
    seconds = np.array([each for _, _, each in measured])
    rows = np.array([[each.get(name, 0.0) for name in names] for each in work]) / seconds[:, None]
    weights = np.ones(len(rows))
    for _ in range(REWEIGHTED):
        found = nonnegative_least_squares(rows * weights[:, None], weights)
        weights = 1 / np.sqrt(1 + ((rows @ found - 1) / SPREAD) ** 2)
    model = CostModel(TERMS | dict(zip(names, map(float, found), strict=True)), threads)
    kernels = [
        FittedKernel(case.name, each, model.predicted(work))
        for (case, _, each), work in zip(measured, work, strict=True)
    ]
    return FittedModel(processor_name(), threads, dict(model.seconds), kernels)


def _work(case: Case, clusters: float, threads: int) -> dict[str, float]:
    if case.setting is None:
        return dense_work(case.geometry, case.images, threads)
    return reuse_work(case.geometry, case.setting, clusters, case.images, threads)


def _measured(some: Sequence[Case]) -> list[tuple[Case, float, float]]:
    """(case, clusters of all images, seconds)."""
    runs: list[Callable[[], object]] = []
    clusters = []
    with progress("compiling kernels", len(some)) as step:
        for index, case in enumerate(some):
            kernel, x = _kernel(case, np.random.default_rng([SEED, index]))
            stats = kernel(x)[1]
            clusters.append(0.0 if stats is None else float(stats.numpy()[:, 0].sum()))
            runs.append(partial(kernel, x))
            step.advance(1, case.name)
    samples: list[list[float]] = [[] for _ in some]
    orders, begin = fair_orders(range(len(some))), time.perf_counter()
    with progress("measuring kernels", MOST_ROUNDS) as step:
        for index in range(MOST_ROUNDS):
            if index >= LEAST_ROUNDS and time.perf_counter() - begin > ROUNDS_SECONDS:
                break
            for each in orders[index % len(orders)]:
                warm_up(runs[each])
                start = time.perf_counter()
                runs[each]()
                samples[each].append(time.perf_counter() - start)
            step.advance(1)
    return [(case, n, _undisturbed(each)) for case, n, each in zip(some, clusters, samples, strict=True)]


def _undisturbed(seconds: Sequence[float]) -> float:
    """The lower quartile: half of the runs may be disturbed."""
    return sorted(seconds)[len(seconds) // 4]


def _kernel(case: Case, rng: np.random.Generator) -> tuple[LayerKernel, Any]:
    """The compiled layer and its input tensor."""
    import tvm
    from tvm import relax

    from adr_tvm import ops
    from adr_tvm._tvm import cpu_target, tensor_type
    from adr_tvm.planner.layer_kernel import LayerKernel

    g, setting = case.geometry, case.setting
    w = rng.standard_normal((g.KH, g.KW, g.C, g.M)).astype(np.float32)
    x = relax.Var("x", tensor_type([case.images, g.H, g.W, g.C]))
    bias = relax.const(np.zeros(g.M, np.float32))
    call = ops.conv2d(x, relax.const(w), bias, name="layer", strides=g.strides, padding=g.padding)
    planes = thresholds = None
    if setting is not None and setting.hash != "exact":
        S = g.segments(setting)
        planes = rng.standard_normal((S, g.vector_length(setting), setting.H)).astype(np.float32)
        thresholds = np.zeros((S, setting.H), np.float32)
    some = rng.standard_normal((case.prototypes, g.C)).astype(np.float32)
    data = some[rng.integers(case.prototypes, size=(case.images, g.H, g.W))]
    return LayerKernel(call, cpu_target(), setting, planes, thresholds), tvm.runtime.tensor(data)
