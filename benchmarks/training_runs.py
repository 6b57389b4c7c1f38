"""Runs of ``adr-train`` side by side: what reuse saved, at which accuracy.

    python -m benchmarks.training_runs RUN ... [--data DIR] [--accuracy 0.75] [--json FILE]

RUN are folders of runs of one network on one data set, some with ``--reuse off``; those that differ in their seed alone
are taken together. How many steps each stage took, and the accuracy, is what their logs say. How long a step takes is
measured here, with weights and images of a run; all stages, the dense step and PyTorch's take turns, so it does not
matter what else the machine did while it trained. Time of a run = sum over its stages of steps x median step; what
fitting hash planes takes is part of it.

*layers* is the time of all convolutions and dense layers alone, forward and gradients; *step* a whole step.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from adr_tvm.errors import DataError
from benchmarks.command import Command, Settings
from benchmarks.paired import rounds_for, take_turns
from benchmarks.processes import in_process
from benchmarks.training_step import torch_runs

if TYPE_CHECKING:
    from adr_tvm.train.stage import Stage

RATE = 1e-6  # what is timed does not train
TORCH, COMPILED = "torch", "torch compiled"


@dataclass(frozen=True)
class StageRow:
    """A stage of all runs of a strategy, or all its stages.

    Attributes:
        strategy: of the runs.
        stage: what the layers do; ``all`` for the whole run.
        steps: mean over the runs.
        layers_ms, step_ms: of a step; of the whole run their sums in seconds are ``layers_s`` and ``run_s``.
        r_c: mean over steps and layers.
        layers_saved, run_saved: shares of the dense run's time.
        over_torch, over_compiled: PyTorch's time for as many steps by that of the run.
        accuracies: on the test part, of each run.
        time_to: seconds until the accuracy asked for; None where a run does not reach it.
    """

    strategy: str
    stage: str
    steps: float
    layers_ms: float
    step_ms: float
    layers_s: float
    run_s: float
    r_c: float | None = None
    layers_saved: float | None = None
    run_saved: float | None = None
    over_torch: float | None = None
    over_compiled: float | None = None
    accuracies: tuple[float, ...] = ()
    time_to: float | None = None


@dataclass(frozen=True)
class Times:
    """Milliseconds, medians.

    Attributes:
        steps: by stage, and of PyTorch by name.
        layers: by stage: of all layers together.
        planes: of a fit, by stage.
    """

    steps: Mapping[str, float]
    layers: Mapping[str, float]
    planes: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A folder and its log (``adr_tvm.train.history.History``)."""

    folder: Path
    history: Any

    @property
    def strategy(self) -> str:
        """What the runs that belong together have in common, in a word or two."""
        options = self.history.start["options"]
        stages = f" {options['stages']}" if options["stages"] else ""
        return f"{options['reuse']}{stages}"

    @property
    def options(self) -> dict[str, Any]:
        """All but the seed."""
        return {name: value for name, value in self.history.start["options"].items() if name != "seed"}

    @property
    def skips_zeros(self) -> bool:
        """Whether its steps are timed with zeros skipped: as ``--reuse`` has it, since the bits are the same."""
        from adr_tvm.train.options import TrainOptions

        return TrainOptions(**self.history.start["options"]).skips_zeros

    @property
    def finished(self) -> bool:
        """Whether all its steps were taken."""
        return bool(self.history.last_step == self.history.start["steps"])


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs of some folders.

    Raises:
        DataError: one is no run or not finished, they are of different networks or data, or none is dense.
    """
    from adr_tvm.train.history import gather
    from adr_tvm.train.metrics_log import METRICS_FILE, read_metrics

    runs = [Run(folder, gather(read_metrics(folder / METRICS_FILE))) for folder in folders]
    for run in runs:
        if not run.finished:
            raise DataError(f"{run.folder}: ended after {run.history.last_step} of {run.history.start['steps']} steps")
        for what in ("network", "data", "steps"):
            if run.history.start[what] != runs[0].history.start[what]:
                raise DataError(f"{run.folder} has another {what} than {runs[0].folder}")
    if not any(run.history.start["options"]["reuse"] == "off" for run in runs):
        raise DataError("none of the runs is dense (--reuse off): there is nothing to compare with")
    return runs


def stage_key(layers: Mapping[str, Any], skip_zeros: bool) -> str:
    """A stage as text: equal stages have equal text."""
    reusing = {name: reuse for name, reuse in layers.items() if reuse is not None}
    return json.dumps({"layers": reusing, "skip_zeros": skip_zeros}, sort_keys=True)


def measure(folder: Path, keys: list[str], threads: int, seconds: float, compiled: bool) -> Times:
    """Time stages with the weights that a run ended with, on a batch of its data.

    Args:
        folder: of the run.
        keys: of the stages.
    """
    from adr_tvm.data.training_data import open_training_data
    from adr_tvm.train.augmentation import Preparation
    from adr_tvm.train.checkpoint import LAST, load_checkpoint
    from adr_tvm.train.options import TrainOptions
    from adr_tvm.train.recipe import compiled_engine

    arrays, progress = load_checkpoint(folder / LAST)
    options = TrainOptions(**progress.options)
    start = _start(folder)
    (path,) = folder.glob("*-initial.onnx")
    engine = compiled_engine(path, options, start["network"])
    samples = open_training_data(start["data"])
    channels, height, width = engine.input_shape
    preparation = Preparation(height, width, samples.mean, samples.std)
    preparation.check(samples.shape, channels, samples.source)
    indices = np.arange(options.batch)
    x, labels = preparation.testing(samples.train.read(indices)), samples.train.labels[indices]
    steps: dict[str, Callable[[], Any]] = {}
    layers: dict[str, Callable[[], Any]] = {}
    planes: dict[str, Callable[[], Any]] = {}
    for key in keys:
        stage, state = _stage_of(key), engine.initial_state()
        engine.skip_zeros = _skips_zeros(key)
        state.load(arrays)
        state.planes.clear()
        if stage:
            engine.make_planes(state, stage, x, options.seed)
            planes[key] = functools.partial(engine.make_planes, state, stage, x, options.seed)
        steps[key] = functools.partial(engine.compile(stage).run, state, x, labels, RATE)
        layers[key] = all_layers(engine, state, stage, x, labels)
    steps |= torch_runs(engine.network.checked.proto, x, labels, threads, compiled)

    def medians(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        found = take_turns(runs, rounds_for(runs, seconds)) if runs else {}
        return {name: float(np.median(times)) for name, times in found.items()}

    return Times(medians(steps), medians(layers), medians(planes))


def all_layers(
    engine: Any, state: Any, stage: Mapping[str, Any], x: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
    """Every convolution and dense layer of a step one after the other, forward and gradients, on what it sees."""
    from adr_tvm import ops
    from adr_tvm.build import build_module
    from adr_tvm.train.layer_times import gradient_module
    from adr_tvm.train.state import tensor_of

    seen, rng = engine.layer_inputs(state, x), np.random.default_rng(0)
    gradients = engine.output_gradients(state, x, labels)
    runs = []
    for index, call in enumerate(engine.layer_calls()):
        name = ops.layer_name(call)
        mod = gradient_module(call, stage.get(name), len(x), index > 0, engine.skip_zeros)
        shapes = {var.name: [int(dim) for dim in list(var.ty.shape)] for var in mod["main"].params}
        x_like = seen[name] if name in seen else rng.standard_normal(shapes["x"]).astype(np.float32)
        data = {"x": x_like.reshape(shapes["x"]), "dy": gradients[name]}
        data["w"], data["bias"] = engine.layer_weights(state, call)
        if name in stage:
            data |= {"planes": state.planes[name].planes, "thresholds": state.planes[name].thresholds}
        main = relax.VirtualMachine(build_module(mod, engine.network.target), tvm.cpu())["main"]
        runs.append(functools.partial(main, *(tensor_of(data[n]) for n in shapes)))

    def run() -> None:
        for each in runs:
            each()

    return run


def _start(folder: Path) -> dict[str, Any]:
    from adr_tvm.train.metrics_log import METRICS_FILE, read_metrics

    return next(iter(read_metrics(folder / METRICS_FILE)))


def summary(runs: list[Run], times: Times, accuracy: float) -> list[StageRow]:
    """A row for each strategy, the dense one first, and for each of its stages.

    Args:
        accuracy: whose time is wanted.
    """
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda r: r.history.start["options"]["reuse"] != "off"):
        same = next((group for group in groups if group[0].options == run.options), None)
        groups.append([run]) if same is None else same.append(run)
    rows: list[StageRow] = []
    for group in groups:
        found = _strategy(group, times, accuracy, rows[0] if rows else None)
        rows += found
    return rows


def _strategy(group: list[Run], times: Times, accuracy: float, dense: StageRow | None) -> list[StageRow]:
    stages: dict[str, list[int]] = {}
    ratios: dict[str, list[float]] = {}
    for run in group:
        for stage in run.history.stages:
            key = stage_key(stage.layers, run.skips_zeros)
            stages.setdefault(key, []).append(stage.end - stage.start)
            ratios.setdefault(key, []).extend(r for found in stage.ratios.values() for r in found)
    rows = []
    for key, counts in stages.items():
        steps = sum(counts) / len(group)
        step = _step(key, times, group[0])
        rows.append(
            StageRow(
                group[0].strategy,
                _short(key),
                steps,
                times.layers[key],
                step,
                times.layers[key] * steps / 1e3,
                step * steps / 1e3,
                float(np.mean(ratios[key])) if ratios[key] else None,
            )
        )
    steps, layers_s, run_s = (sum(getattr(row, name) for row in rows) for name in ("steps", "layers_s", "run_s"))
    to = [_time_to(run, times, accuracy) for run in group]
    whole = StageRow(
        group[0].strategy,
        "all",
        steps,
        1e3 * layers_s / steps,
        1e3 * run_s / steps,
        layers_s,
        run_s,
        None,
        None if dense is None else 1 - layers_s / dense.layers_s,
        None if dense is None else 1 - run_s / dense.run_s,
        times.steps[TORCH] * steps / 1e3 / run_s,
        times.steps[COMPILED] * steps / 1e3 / run_s if COMPILED in times.steps else None,
        tuple(run.history.epochs[-1]["test_accuracy"] for run in group),
        None if None in to else float(np.mean(to)),  # type: ignore[arg-type]
    )
    return [whole, *(rows if len(rows) > 1 else [])]


def _step(key: str, times: Times, run: Run) -> float:
    """Milliseconds of a step, with its share of fitting planes."""
    every = run.history.start["options"]["refresh_planes"]
    return times.steps[key] + (times.planes[key] / every if every and key in times.planes else 0.0)


def _time_to(run: Run, times: Times, accuracy: float) -> float | None:
    """Seconds of steps until an evaluation first gave an accuracy."""
    reached = next((e["step"] for e in run.history.epochs if e["test_accuracy"] >= accuracy), None)
    if reached is None:
        return None
    return sum(
        max(0, min(stage.end, reached) - stage.start)
        * _step(stage_key(stage.layers, run.skips_zeros), times, run)
        / 1e3
        for stage in run.history.stages
    )


def _short(key: str) -> str:
    """A stage in words."""
    from adr_tvm.train.stage import stage_text

    return stage_text(_stage_of(key))


def _stage_of(key: str) -> Stage:
    from adr_tvm.settings import ReuseSetting
    from adr_tvm.train.stage import LayerReuse

    return {
        layer: LayerReuse(**reuse | {"setting": ReuseSetting(**reuse["setting"])})
        for layer, reuse in json.loads(key)["layers"].items()
    }


def _skips_zeros(key: str) -> bool:
    return bool(json.loads(key)["skip_zeros"])


def run(settings: Settings) -> list[StageRow]:
    """Read the logs, measure, and put both together."""
    options = settings.options
    runs = read_runs(options.runs)
    keys = list(dict.fromkeys(stage_key(stage.layers, run.skips_zeros) for run in runs for stage in run.history.stages))
    # The last stage's weights have seen all that reuse does to them.
    reusing = next((r for r in runs if r.history.start["options"]["reuse"] != "off"), runs[0])
    threads = min(settings.threads)
    times = in_process(measure, threads, reusing.folder, keys, threads, settings.seconds, options.compile)
    return summary(runs, times, options.accuracy)


def table(rows: list[StageRow]) -> list[list[str]]:
    """A line for each strategy and each of its stages."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    def number(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def accuracy(values: tuple[float, ...]) -> str:
        if not values:
            return ""
        return f"{np.mean(values):.2%} ({len(values)}: {min(values):.2%} to {max(values):.2%})"

    return [
        [
            row.strategy if row.stage == "all" else f"  {row.stage}",
            f"{row.steps:.0f}",
            number(row.layers_ms),
            number(row.step_ms),
            number(row.layers_s, 0),
            percent(row.layers_saved),
            number(row.run_s, 0),
            percent(row.run_saved),
            number(row.over_torch, 2),
            number(row.over_compiled, 2),
            percent(row.r_c),
            accuracy(row.accuracies),
            number(row.time_to, 0),
        ]
        for row in rows
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The runs, ``--accuracy`` and ``--no-compile``."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run that is finished")
    parser.add_argument(
        "--accuracy", metavar="X", type=float, default=0.75, help="time to this test accuracy (default: 0.75)"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")


COMMAND = Command(
    name="training_runs",
    description=__doc__,
    headings=[
        *("strategy", "steps", "layers ms", "step ms", "layers s", "saved", "run s", "saved", "over torch"),
        *("over compiled", "r_c", "accuracy (runs)", "to X s"),
    ],
    run=run,
    table=table,
    add_options=add_options,
)

if __name__ == "__main__":
    COMMAND.main()
