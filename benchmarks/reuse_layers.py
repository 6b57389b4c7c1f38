"""Single layers with reuse against the same layers without: over granularity, L, H and the type of the tables.

    python -m benchmarks.reuse_layers --data DIR [--network NAME ...] [--layer NAME ...] [--threads N ...]

Kernels are compiled as inside the network, epilogue included, and get what the layer gets there for one photograph:
batch 1, each image clustered alone, no guard. Hash planes are fitted to other photographs. r_c is clusters / vectors,
NMSE the error of the layer's output against the dense one; both are of the measured photograph, which the planes have
not seen. The networks vgg19 and resnet50 have random weights (`models/light.py`).

`--network synthetic`: the inputs of the first prototypes, with their figures ("C++", "TIR"); planes are random and
fitted to the input itself, as theirs were. `--network squeezenet-text`, `squeezenet-896`: lossless reuse on a rendered
page of text, and on a photograph of that size, where nothing repeats.

By default each of granularity, L, H and table is varied around `pixel` L=16 H=8 float32. Options that name values give
all combinations of them, with what suits the layer for the others. "% of roof" holds the time against the machine's
peak and bandwidths (`benchmarks/reuse_roof.py`).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from adr_tvm.errors import UsageError
from adr_tvm.progress import progress
from adr_tvm.report.formats import geometry_text, setting_text
from adr_tvm.settings import GRANULARITIES, TABLES, ReuseSetting
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.command import Command, Settings
from benchmarks.layer_cases import LayerCase, layers_of, synthetic_layer
from benchmarks.networks import NAMES, model_path
from benchmarks.paired import Ratio, paired_ratio, rounds_for, take_turns
from benchmarks.processes import in_process
from benchmarks.reuse_roof import reuse_roof
from benchmarks.synthetic import PROTOTYPES
from benchmarks.validation.data_folder import DataFolder

SYNTHETIC = "synthetic"
LOSSLESS = ("squeezenet-text", "squeezenet-896")
USUAL = {
    "fst_wave-224": ["Conv_10", "Conv_37"],
    "fst_wave-448": ["Conv_10"],
    "waifu2x-128": ["Conv_7", "Conv_9", "Conv_11"],
    "vgg19": ["n2", "n7", "n12", "n19", "n23"],
    "squeezenet-b1": ["/fire.2/expand3x3/Conv"],
    "cifarnet-b1": ["conv2"],
    **{
        name: ["/conv1/Conv", "/fire.0/squeeze1x1/Conv", "/fire.0/expand3x3/Conv", "/fire.2/expand3x3/Conv"]
        for name in LOSSLESS
    },
    SYNTHETIC: [],
}
BASE = ReuseSetting("pixel", L=16, H=8)
EXACT_ROWS = ReuseSetting("row", L=1, H=1, hash="exact")


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        network: its name, or ``synthetic``.
        layers: names; empty: the usual ones.
        varied: values by field of ``ReuseSetting``; empty: what suits the layer.
        photo: see ``layer_cases.layers_of``.
    """

    network: str
    layers: list[str]
    varied: Mapping[str, Sequence[object]]
    photo: int
    threads: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """One setting of one layer at one number of threads.

    Attributes:
        network, layer, shape: what it is.
        setting: how it reuses.
        threads: number.
        clusters: of one segment, on average.
        r_c: clusters / vectors; 0 clusters where a look at some rows found too little: then 1.
        nmse: of the output.
        dense_ms, reuse_ms: medians.
        dense_gflops: of the dense layer, in GFLOP/s.
        speedup: dense / reuse.
        roof: share of the least time that the layer can take; None where the kernel found too little and ran dense.
        prototype, prototype_tir: speedups of early prototypes.
        prototype_ms: time of the first of these.
        rounds: of the comparison.
    """

    network: str
    layer: str
    shape: str
    setting: ReuseSetting
    threads: int
    clusters: float
    r_c: float
    nmse: float
    dense_ms: float
    reuse_ms: float
    dense_gflops: float
    speedup: Ratio
    roof: float | None
    prototype: float | None
    prototype_ms: float | None
    prototype_tir: float | None
    rounds: int


def around_base() -> list[ReuseSetting]:
    """One thing changed at a time."""
    return [
        *(replace(BASE, table=table) for table in TABLES),  # type: ignore[arg-type]
        *(replace(BASE, H=H) for H in (6, 10, 12)),
        *(replace(BASE, L=L) for L in (8, 32)),
        ReuseSetting("segment", L=16, H=8),
        ReuseSetting("row", H=12),
    ]


def measure(job: Job, data: DataFolder) -> list[Row]:
    """Time the layers of one network, in this process."""
    rows: list[Row] = []
    ceilings = measure_ceilings(job.threads, 1.0)
    title = f"{job.network}, threads: {job.threads}"
    with tempfile.TemporaryDirectory(prefix="adr-reuse-") as folder, progress(title, None) as step:
        for case in _cases(job, data, Path(folder)):
            rows += _measure_layer(case, _settings(job, case), ceilings, job.seconds)
            step.advance(1, case.layer)
    return rows


def _cases(job: Job, data: DataFolder, work: Path) -> Iterator[LayerCase]:
    if job.network != SYNTHETIC:
        layers = job.layers or USUAL.get(job.network, [])
        yield from layers_of(job.network, model_path(job.network, data, work), data, layers, job.photo)
        return
    known = {prototype.name: prototype for prototype in PROTOTYPES}
    for name in job.layers or known:
        if name not in known:
            raise UsageError(f"there is no synthetic layer {name!r}; there is {', '.join(known)}")
        yield synthetic_layer(known[name])


def _settings(job: Job, case: LayerCase) -> list[ReuseSetting]:
    if case.prototype is not None:
        return combinations(ReuseSetting("pixel", 16, case.prototype.H, "gaussian"), job.varied or {"table": TABLES})
    if job.varied:
        return combinations(BASE, job.varied)
    return [EXACT_ROWS] if job.network in LOSSLESS else around_base()


def combinations(base: ReuseSetting, varied: Mapping[str, Sequence[object]]) -> list[ReuseSetting]:
    """All settings that differ from ``base`` in the given fields only; those that make no sense are left out.

    Raises:
        UsageError: none makes sense.
    """
    settings, reason = [], ""
    for values in itertools.product(*varied.values()):
        try:
            settings.append(ReuseSetting(**{**asdict(base), **dict(zip(varied, values, strict=True))}))
        except ValueError as error:
            reason = str(error)
    if not settings:
        raise UsageError(reason)
    return settings


def _measure_layer(case: LayerCase, settings: list[ReuseSetting], ceilings: Ceilings, seconds: float) -> list[Row]:
    import tvm

    from adr_tvm.planner.layer_kernel import LayerKernel

    x, kernels = tvm.runtime.tensor(case.x), {"dense": LayerKernel(case.call, case.target)}
    for setting in settings:
        planes = case.planes(setting)
        tensors = () if planes is None else (planes.planes, planes.thresholds)
        kernels[_key(setting)] = LayerKernel(case.call, case.target, setting, *tensors)
    engines = {key: partial(kernel, x) for key, kernel in kernels.items()}
    rounds = rounds_for(engines, seconds)
    times = take_turns(engines, rounds)
    dense = kernels["dense"](x)[0].numpy()
    return [
        _row(case, setting, ceilings, times["dense"], times[_key(setting)], dense, kernels[_key(setting)](x))
        for setting in settings
    ]


def _row(
    case: LayerCase,
    setting: ReuseSetting,
    ceilings: Ceilings,
    dense_times: list[float],
    times: list[float],
    dense: np.ndarray,
    result: tuple,
) -> Row:
    y, stats = result[0].numpy(), result[1].numpy()
    vectors, segments = case.geometry.vectors(setting), case.geometry.segments(setting)
    clusters = float(stats[:, 0].mean())
    dense_ms, reuse_ms, prototype = float(np.median(dense_times)), float(np.median(times)), case.prototype
    least = reuse_roof(case.geometry, setting, clusters, ceilings) if stats[:, 1].all() else None
    return Row(
        network=case.network,
        layer=case.layer,
        shape=geometry_text(case.geometry),
        setting=setting,
        threads=ceilings.threads,
        clusters=clusters / segments,
        r_c=clusters / vectors if clusters else 1.0,
        nmse=nmse(y, dense),
        dense_ms=dense_ms,
        reuse_ms=reuse_ms,
        dense_gflops=2 * case.geometry.macs / dense_ms / 1e6,
        speedup=paired_ratio(dense_times, times),
        roof=None if least is None else 1e3 * least / reuse_ms,
        prototype=None if prototype is None else prototype.speedup,
        prototype_ms=None if prototype is None else prototype.ms,
        prototype_tir=None if prototype is None else prototype.tir_speedup,
        rounds=len(times),
    )


def nmse(y: np.ndarray, r: np.ndarray) -> float:
    """||y - r||^2 / ||r - mean of its channel||^2, channels last; 0 for equal outputs."""
    r64 = r.astype(np.float64)
    error = float(((y - r64) ** 2).sum())
    spread = float(((r64 - r64.mean(axis=tuple(range(r.ndim - 1)))) ** 2).sum())
    return error / spread if error else 0.0


def _key(setting: ReuseSetting) -> str:
    """The setting in words; unique."""
    text = setting_text(setting)
    return text if setting.table in text else f"{text} {setting.table}"


def run(settings: Settings) -> list[Row]:
    """All rows."""
    options, rows = settings.options, []
    named = ("granularity", "L", "H", "hash", "table")
    varied = {name: getattr(options, name) for name in named if getattr(options, name)}
    combinations(BASE, varied)
    for name in settings.chosen or USUAL:
        for threads in settings.threads:
            job = Job(name, options.layer, varied, options.photo, threads, settings.seconds)
            rows += in_process(measure, threads, job, settings.data)
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each."""
    return [
        [
            row.network,
            row.layer,
            row.shape,
            _key(row.setting),
            str(row.threads),
            f"{row.clusters:.0f}",
            f"{100 * row.r_c:.1f} %",
            f"{row.nmse:.2g}",
            f"{row.dense_ms:.3g}",
            f"{row.dense_gflops:.0f}",
            f"{row.reuse_ms:.3g}",
            str(row.speedup),
            "-" if row.roof is None else f"{100 * row.roof:.0f}",
            "" if row.prototype is None else f"{row.prototype:.1f} ({row.prototype_ms:.3g} ms)",
            "" if row.prototype_tir is None else f"{row.prototype_tir:.1f}",
        ]
        for row in rows
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", metavar="NAME", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--photo", metavar="N", type=int, default=0, help="measured sample, from 0 (default: 0)")
    parser.add_argument("--granularity", nargs="+", choices=GRANULARITIES)
    parser.add_argument("--L", metavar="N", type=int, nargs="+", help="lengths of a neuron vector")
    parser.add_argument("--H", metavar="N", type=int, nargs="+", help="hash bits")
    parser.add_argument("--hash", nargs="+", choices=("gaussian", "pca", "exact"))
    parser.add_argument("--table", nargs="+", choices=TABLES, help="types of the product tables")


HEADINGS = (
    "network", "layer", "shape", "setting", "threads", "clusters", "r_c", "NMSE", "dense ms", "GFLOP/s", "reuse ms",
    "speedup [95 %]", "% of roof", "C++", "TIR",
)  # fmt: skip
COMMAND = Command(
    name="reuse_layers",
    description=__doc__,
    headings=HEADINGS,
    choices=(*NAMES, SYNTHETIC),
    seconds=3.0,
    run=run,
    table=table,
    add_options=_options,
)

if __name__ == "__main__":
    COMMAND.main()
