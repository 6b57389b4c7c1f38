"""A training step beside PyTorch's: forward, loss, backward and update of a batch.

    python -m benchmarks.training_step [--data DIR] [--network NAME ...] [--stage STAGE ...] [--no-compile]

*dense* is this package without reuse, *zeros skipped* the same with gradients that skip zeros, as all stages do,
*torch* PyTorch eager in channels-last layout, *torch compiled* the same under
``torch.compile``: one network, one batch, SGD with momentum and weight decay for all, which take turns. A STAGE is as
for ``adr-train --stages``, such as ``16x8`` or ``32x10:straight-through``: it holds for every convolution that may
reuse but the first. With ``--data`` the images are CIFAR-10's or photographs, from the first again where there are too
few for a batch; without it they are smooth noise, whose r_c is another. Weights are as before the first step; planes
are fitted to the batch.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from adr_tvm.errors import MissingDependencyError
from adr_tvm.settings import TABLES
from benchmarks.command import Command, Settings
from benchmarks.no_data import NoData
from benchmarks.paired import Ratio, paired_ratio, rounds_for, take_turns
from benchmarks.processes import in_process
from benchmarks.validation.data_folder import DataFolder

RATE, MOMENTUM, DECAY = 0.001, 0.9, 5e-4
STAGES = ("64x12", "32x10", "16x8")
DENSE, SKIPPING = "dense", "zeros skipped"


@dataclass(frozen=True)
class Case:
    """A network and its batch: ``build`` makes the ONNX model."""

    build: Callable[[], onnx.ModelProto]
    batch: int


def cases() -> dict[str, Case]:
    """What can be measured, by name."""
    from adr_tvm.models.alexnet import build_alexnet
    from adr_tvm.models.cifarnet import build_cifarnet
    from adr_tvm.models.vgg import build_vgg

    return {
        "cifarnet": Case(build_cifarnet, 128),
        "alexnet": Case(functools.partial(build_alexnet, dropout=0), 32),
        "vgg19": Case(functools.partial(build_vgg, dropout=0), 16),
    }


NAMES = ("cifarnet", "alexnet", "vgg19")


def input_size(case: Case) -> list[int]:
    """Channels, height and width of a network's images."""
    shape = case.build().graph.input[0].type.tensor_type.shape
    return [dim.dim_value for dim in shape.dim][1:]


@dataclass(frozen=True)
class Row:
    """One engine; ratios are other engines' times by its own, above 1 is faster than them."""

    network: str
    batch: int
    threads: int
    engine: str
    ms: float
    r_c: float | None
    over_dense: Ratio
    over_torch: Ratio
    over_compiled: Ratio | None


def smooth_images(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 images of mean 0 and variance 1 whose neighbouring pixels are alike, as a photograph's are."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    for axis in (2, 3):
        for _ in range(3):
            noise = noise + np.roll(noise, 1, axis)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def images_of(case: Case, data: DataFolder) -> np.ndarray:
    """A batch, float32 [N, C, H, W] of mean 0 and variance 1: of ``data``, or smooth noise where none were given."""
    shape = (case.batch, *input_size(case))
    if isinstance(data, NoData):
        return smooth_images(shape, 0)
    found = data.cifar10(0, case.batch)[0] if shape[2:] == (32, 32) else data.photos((shape[2], shape[3]))
    x = found[np.arange(case.batch) % len(found)].transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray((x - x.mean()) / x.std())


def measure(
    name: str, data: DataFolder, stages: tuple[str, ...], table: str, threads: int, seconds: float, compiled: bool
) -> list[Row]:
    """All engines on one network, in this process."""
    case = cases()[name]
    x = images_of(case, data)
    labels = np.random.default_rng(1).integers(0, 10, case.batch).astype(np.int32)
    model = case.build()
    with tempfile.TemporaryDirectory(prefix="adr-training-step-") as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(model, path)
        runs = compiled_runs(path, case.batch, (DENSE, SKIPPING, *stages), x, labels, threads, table)
    runs |= torch_runs(model, x, labels, threads, compiled)
    times = take_turns(runs, rounds_for(runs, seconds, least=5))
    rows = []
    for engine_name, own in times.items():
        result = runs[engine_name]() if engine_name not in ("torch", "torch compiled") else None
        counted = [] if result is None else list(result.clusters.values())
        r_c = sum(found for found, _ in counted) / sum(vectors for _, vectors in counted) if counted else None
        ratios = [
            paired_ratio(times[other], own) if other in times else None
            for other in ("dense", "torch", "torch compiled")
        ]
        rows.append(Row(name, case.batch, threads, engine_name, float(np.median(own)), r_c, *ratios))  # type: ignore[arg-type]
    return rows


def compiled_runs(
    path: Path, batch: int, stages: tuple[str, ...], x: np.ndarray, labels: np.ndarray, threads: int, table: str
) -> dict[str, Callable[[], Any]]:
    """A step of this package for each stage, the two dense ones among them, on a state of its own."""
    from adr_tvm._tvm import cpu_target
    from adr_tvm.train.compiled_engine import CompiledEngine
    from adr_tvm.train.optimizers import SGD
    from adr_tvm.train.options import TrainOptions

    optimizer = SGD(momentum=MOMENTUM, weight_decay=DECAY)
    engine = CompiledEngine(path, optimizer, batch, cpu_target(threads=threads))
    later = [layer for layer, geometry in engine.candidates.items() if geometry.rows > 1][1:]
    runs: dict[str, Callable[[], Any]] = {}
    for text in stages:
        dense = text in (DENSE, SKIPPING)
        reuse = None if dense else TrainOptions(reuse="fixed", stages=text, table=table).listed_stages()[0]
        engine.skip_zeros = text != DENSE
        stage = {} if reuse is None else dict.fromkeys(later, reuse)
        state = engine.initial_state()
        engine.make_planes(state, stage, x, seed=0)
        runs[text] = functools.partial(engine.compile(stage).run, state, x, labels, RATE)
    return runs


def torch_runs(
    model: onnx.ModelProto, x: np.ndarray, labels: np.ndarray, threads: int, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """A step of PyTorch, eager and, if asked for, compiled.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{error}: pip install 'adr-tvm[bench]'") from None
    from benchmarks.torch_network import TorchNetwork

    torch.set_num_threads(threads)
    images = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    target = torch.from_numpy(labels).long()

    def step_of(network: torch.nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

        def step() -> float:
            loss = torch.nn.functional.cross_entropy(network(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    found = {"torch": step_of(TorchNetwork(model))}
    if compiled:
        found["torch compiled"] = step_of(torch.compile(TorchNetwork(model)))  # type: ignore[arg-type]
    return found


def run(settings: Settings) -> list[Row]:
    """All rows, a process for each network and number of threads."""
    stages = tuple(settings.options.stage or STAGES)
    return [
        row
        for name in settings.chosen or NAMES
        for threads in settings.threads
        for row in in_process(
            *(measure, threads, name, settings.data, stages, settings.options.table),
            *(threads, settings.seconds, settings.options.compile),
        )
    ]


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each engine."""
    return [
        [
            row.network,
            str(row.batch),
            str(row.threads),
            row.engine,
            f"{row.ms:.1f}",
            "" if row.r_c is None else f"{row.r_c:.1%}",
            "" if row.engine == "dense" else str(row.over_dense),
            "" if row.engine == "torch" else str(row.over_torch),
            "" if row.over_compiled is None or row.engine == "torch compiled" else str(row.over_compiled),
        ]
        for row in rows
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--stage``, ``--table`` and ``--no-compile``."""
    parser.add_argument("--stage", metavar="STAGE", action="append", help=f"repeatable; default: {' '.join(STAGES)}")
    parser.add_argument(
        "--table", metavar="|".join(TABLES), choices=TABLES, default="float32", help="of all stages (default: float32)"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")


COMMAND = Command(
    name="training_step",
    description=__doc__,
    headings=["network", "batch", "threads", "engine", "ms", "r_c", "over dense [95 %]", "over torch", "over compiled"],
    choices=NAMES,
    run=run,
    table=table,
    add_options=add_options,
)

if __name__ == "__main__":
    COMMAND.main()
