"""Time over batch and image side: our dense network, the same with reuse, and ONNX Runtime.

    python -m benchmarks.growth --data DIR [--network NAME ...] [--batches N ...] [--sides N ...] [--plot DIR]

Fully convolutional networks on photographs, compiled for each shape. Reuse is a fixed setting, `pixel` L=16 H=8, in
all convolutions that have a window of more than one pixel and 16 channels or more, each image clustered alone, whatever
that does to the result: this is about time, `benchmarks.plans` is about plans. Planes are fitted to photographs that
are not measured. Batches at one side, sides at batch 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adr_tvm.errors import UsageError
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.progress import get_log, progress
from adr_tvm.settings import ReuseSetting
from benchmarks.command import Command, Settings
from benchmarks.layer_cases import layers_of
from benchmarks.networks import Prepare, input_name, of_shape
from benchmarks.paired import Ratio, paired_ratio, rounds_for, take_turns
from benchmarks.processes import in_process
from benchmarks.validation.data_folder import DataFolder, for_squeezenet, for_style_transfer

SETTING = ReuseSetting("pixel", L=16, H=8)
BATCHES, SIDES = (1, 2, 4, 8, 16, 32, 64), (64, 128, 224, 512, 1024)
BATCH, SIDE = "batch", "side"
PHOTOS = 16  # that are measured; larger batches repeat them


@dataclass(frozen=True)
class Growing:
    """A fully convolutional network.

    Attributes:
        model: its file.
        prepare: photographs.
        side: that batches are measured at.
        fitted: name in ``benchmarks.networks`` at whose size planes are fitted.
    """

    model: str
    prepare: Prepare
    side: int
    fitted: str


NETWORKS = {
    "squeezenet": Growing("squeezenet1_1_imagenet", for_squeezenet, 224, "squeezenet-b1"),
    "fst_wave": Growing("fst_wave", for_style_transfer, 128, "fst_wave-224"),
}


@dataclass(frozen=True)
class Row:
    """One shape at one number of threads; times are medians in milliseconds.

    Attributes:
        network, threads: what ran.
        grows: ``batch`` or ``side``.
        batch, side: of the input.
        layers: that reuse.
        r_c: clusters / vectors of all of these.
        dense_ms, reuse_ms, onnxruntime_ms: medians.
        dense_ratio, reuse_ratio: by ONNX Runtime's time.
        rounds: of the comparison.
    """

    network: str
    threads: int
    grows: str
    batch: int
    side: int
    layers: int
    r_c: float
    dense_ms: float
    reuse_ms: float
    onnxruntime_ms: float
    dense_ratio: Ratio
    reuse_ratio: Ratio
    rounds: int


def shapes(which: Growing, batches: Sequence[int], sides: Sequence[int]) -> list[tuple[str, int, int]]:
    """(what grows, batch, side)."""
    return [(BATCH, batch, which.side) for batch in batches] + [(SIDE, 1, side) for side in sides]


def measure(
    name: str, data: DataFolder, wanted: Sequence[tuple[str, int, int]], threads: int, seconds: float
) -> list[Row]:
    """All shapes of one network, in this process."""
    which, rows = NETWORKS[name], []
    path = data.model(which.model)
    with tempfile.TemporaryDirectory(prefix="adr-growth-") as folder:
        planes = {case.layer: case.planes(SETTING) for case in layers_of(which.fitted, path, data, [], 0)}
        with progress(f"{name}, threads: {threads}", len(wanted)) as step:
            for grows, batch, side in wanted:
                images = which.prepare(data.photos((side, side))[-PHOTOS:])
                x = np.resize(images, (batch, *images.shape[1:]))
                model = of_shape(path, x.shape, Path(folder))
                row = measure_shape(name, model, x, planes, threads, seconds)
                rows.append(replace(row, grows=grows))
                step.advance(1, f"batch {batch}, side {side}")
    return rows


def measure_shape(
    name: str,
    path: Path,
    x: np.ndarray,
    planes: Mapping[str, HashPlanes | None],
    threads: int,
    seconds: float,
) -> Row:
    """One shape: dense, with reuse in the layers that have planes, and ONNX Runtime."""
    import tvm
    from tvm import relax

    from adr_tvm.bench.onnxruntime_engine import onnxruntime_engine
    from adr_tvm.build import build_plan
    from adr_tvm.loaded_network import LoadedNetwork
    from adr_tvm.options import CompileOptions
    from adr_tvm.plan import uniform_plan

    loaded = LoadedNetwork(path, CompileOptions(input_shapes={input_name(path): x.shape}))
    plan = uniform_plan(
        [layer.layer for layer in loaded.layers if layer.layer in planes],
        SETTING,
        reason="the same everywhere",
        model_sha256=loaded.checked.sha256,
        target="cpu",
        seed=0,
        metric="none",
    ).with_planes({layer: found for layer, found in planes.items() if found is not None})
    machine = relax.VirtualMachine(build_plan(loaded.mod, plan, loaded.target), tvm.cpu())
    tensor, main, dense = tvm.runtime.tensor(x), machine["main"], machine["dense"]
    session = onnxruntime_engine(path, [spec.name for spec in loaded.checked.outputs], threads)
    feed = {input_name(path): x}
    engines: dict[str, Callable[[], object]] = {
        "dense": lambda: dense(tensor),
        "reuse": lambda: main(tensor),
        "onnxruntime": lambda: session(feed),
    }
    rounds = rounds_for(engines, seconds, least=5)
    times = take_turns(engines, rounds)
    counts = machine["main_counts"](tensor)[1]
    clusters = sum(float(each.numpy()[:, 0].sum()) for each in counts)
    vectors = _vectors(loaded.mod, plan.reused) * len(x)
    return Row(
        network=name,
        threads=threads,
        grows="",
        batch=len(x),
        side=x.shape[2],
        layers=len(plan.reused),
        r_c=clusters / vectors,
        dense_ms=float(np.median(times["dense"])),
        reuse_ms=float(np.median(times["reuse"])),
        onnxruntime_ms=float(np.median(times["onnxruntime"])),
        dense_ratio=paired_ratio(times["dense"], times["onnxruntime"]),
        reuse_ratio=paired_ratio(times["reuse"], times["onnxruntime"]),
        rounds=rounds,
    )


def _vectors(mod: object, reused: Mapping[str, ReuseSetting]) -> int:
    """Neuron vectors of one image in the layers that reuse."""
    from adr_tvm.passes.mark_candidates import CandidateRules, find_candidates

    candidates = find_candidates(mod["main"], "main", CandidateRules())  # type: ignore[index]
    return sum(c.geometry.vectors(reused[c.layer]) for c in candidates if c.layer in reused and c.geometry)


def run(settings: Settings) -> list[Row]:
    """All rows."""
    options, rows = settings.options, []
    for flag, values in (("--batches", options.batches), ("--sides", options.sides)):
        if any(value < 1 for value in values):
            raise UsageError(f"{flag} must be 1 or more")
    for name in settings.chosen or NETWORKS:
        wanted = shapes(NETWORKS[name], options.batches, options.sides)
        for threads in settings.threads:
            rows += in_process(measure, threads, name, settings.data, wanted, threads, settings.seconds)
            get_log().info("%s, %d threads: done", name, threads)
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each shape."""
    return [
        [
            row.network,
            str(row.threads),
            str(row.batch),
            str(row.side),
            f"{row.dense_ms:.3g}",
            f"{row.reuse_ms:.3g}",
            f"{row.onnxruntime_ms:.3g}",
            str(row.dense_ratio),
            str(row.reuse_ratio),
            f"{100 * row.r_c:.2f} %",
            str(row.layers),
        ]
        for row in rows
    ]


def plot(rows: list[Row], folder: Path) -> list[Path]:
    """Time per image over batch, and time over pixels: a file for each network and number of threads."""
    from benchmarks import plots

    files = []
    series = (
        ("onnxruntime_ms", "ONNX Runtime", plots.ONNXRUNTIME, "o"),
        ("dense_ms", "dense", plots.DENSE, "s"),
        ("reuse_ms", "with reuse", plots.OURS, "D"),
    )
    for network, threads in dict.fromkeys((row.network, row.threads) for row in rows):
        part = [row for row in rows if (row.network, row.threads) == (network, threads)]
        kinds = [kind for kind in (BATCH, SIDE) if any(row.grows == kind for row in part)]
        titles = [f"batch, at side {NETWORKS[network].side}" if kind == BATCH else "image side" for kind in kinds]
        path = folder / f"growth-{network}-{threads}.png"
        with plots.panels(path, titles, f"{network}, {threads} thread{'' if threads == 1 else 's'}") as axes:
            for axis, kind in zip(axes, kinds, strict=True):
                here = [row for row in part if row.grows == kind]
                places = [getattr(row, kind) for row in here]
                for name, label, colour, marker in series:
                    axis.plot(
                        places, [_per_megapixel(row, name) for row in here], marker, ls="-", c=colour, label=label
                    )
                axis.set_xscale("log", base=2)
                axis.set_xticks(places, [str(place) for place in places])
                axis.set_xlabel("images" if kind == BATCH else "pixels")
            axes[0].set_ylim(bottom=0)  # at the end: the panels share it
            axes[0].set_ylabel("ms for a megapixel of input")
            plots.legend_below(axes)
        files.append(path)
    return files


def _per_megapixel(row: Row, name: str) -> float:
    return getattr(row, name) / (row.batch * row.side**2 / 1e6)


def _options(parser: argparse.ArgumentParser) -> None:
    text = "default: " + " ".join(map(str, BATCHES))
    parser.add_argument("--batches", metavar="N", type=int, nargs="*", default=BATCHES, help=text)
    text = "default: " + " ".join(map(str, SIDES))
    parser.add_argument("--sides", metavar="N", type=int, nargs="*", default=SIDES, help=text)


HEADINGS = (
    "network", "threads", "batch", "side", "dense ms", "reuse ms", "ORT ms", "dense / ORT [95 %]", "reuse / ORT [95 %]",
    "r_c", "layers reused",
)  # fmt: skip
COMMAND = Command(
    name="growth",
    description=__doc__,
    headings=HEADINGS,
    choices=tuple(NETWORKS),
    seconds=2.0,
    run=run,
    table=table,
    add_options=_options,
    plot=plot,
)

if __name__ == "__main__":
    COMMAND.main()
