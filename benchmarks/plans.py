"""Whole networks under plans, at several accuracy budgets, against the dense network and ONNX Runtime in fp32 and int8.

    python -m benchmarks.plans --data DIR [--network NAME ...] [--threads N ...] [--plot DIR] [--json FILE]

Each plan is what `adr-compile` finds with some inputs; the metric and the times are measured on others that neither
the planner nor ONNX Runtime's quantisation (static QDQ, from the same inputs) has seen (`benchmarks/plan_cases.py`).
The metric compares with labels (top1), else with ONNX Runtime in fp32; a drop is what the budget limits. All engines
take turns in one process for each number of threads; a ratio is the paired time of the other engine by that of this
one, with its 95 % interval. The planner measures with all physical cores. Without --network some are measured; all
take half an hour and more.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

from adr_tvm.progress import get_log
from adr_tvm.report.formats import percent, significant
from benchmarks.command import Command, Settings
from benchmarks.networks import of_shape
from benchmarks.plan_cases import MAKERS, PlanCase, Sources, plan_case
from benchmarks.plan_compile import compile_plans, quantised
from benchmarks.plan_measure import Job, measure, with_accuracy
from benchmarks.plan_rows import DENSE, FP32, INT8, Row
from benchmarks.processes import in_process

USUAL = ("cifarnet-batch-scope", "resnet20", "squeezenet-b8", "squeezenet-text", "waifu2x", "tiny-ic")
SLOWER = 1.02  # times the dense network's time: where the whole interval lies above, a warning says so


def run_case(case: PlanCase, threads: Iterable[int], seconds: float, time_budget: float | None) -> list[Row]:
    """Search, then measure in a process for each number of threads."""
    rows: list[Row] = []
    accuracies: dict[str, tuple[float, float, bool]] = {}
    with tempfile.TemporaryDirectory(prefix="adr-plans-") as temporary:
        folder = Path(temporary)
        plans = compile_plans(case, folder, time_budget)
        model = of_shape(case.path, (case.batch, *case.unseen[0].shape[1:]), folder)
        int8 = quantised(case, model, folder)
        for count in sorted(threads, reverse=True):
            job = Job(case, model, int8, plans, count, seconds)
            found, metrics = in_process(measure, count, job, not accuracies)
            accuracies = accuracies or metrics
            rows = [*with_accuracy(found, accuracies), *rows]
    return rows


def run(settings: Settings) -> list[Row]:
    """All rows."""
    sources = Sources(settings.data, settings.options.cifar_train)
    rows: list[Row] = []
    for name in settings.chosen or USUAL:
        case = plan_case(name, sources)
        rows += run_case(case, settings.threads, settings.seconds, settings.options.time_budget)
    for row in rows:
        if row.budgets and row.reused and row.speedups[DENSE].high < 1 / SLOWER:
            get_log().warning("%s, %s, threads: %d: slower than dense", row.network, row.engine, row.threads)
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    """A line for each engine."""
    return [
        [
            row.network,
            row.engine,
            "" if row.reused is None else str(row.reused),
            str(row.threads),
            f"{row.ms:.3g}",
            *(_ratio(row, other) for other in (DENSE, FP32, INT8)),
            _value(row),
            "" if row.drop is None or row.metric in ("nmse", "psnr") else percent(row.drop),
            "yes" if row.bits_of_dense else "no",
        ]
        for row in rows
    ]


def _ratio(row: Row, other: str) -> str:
    return str(row.speedups[other]) if other in row.speedups else ""


def _value(row: Row) -> str:
    if row.metric == "psnr":
        return "inf dB" if row.value is None else f"{row.value:.1f} dB"
    text = "-" if row.value is None else percent(row.value) if row.metric != "nmse" else significant(row.value)
    return f"{row.metric} {text}"


def plot(rows: list[Row], folder: Path) -> list[Path]:
    """A figure for each network."""
    from benchmarks.plan_plot import plot_plans

    return plot_plans(rows, folder)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cifar-train", metavar="PATH", type=Path, help="CIFAR-10 with its training set, to plan with")
    parser.add_argument("--time-budget", metavar="S", type=float, default=20, help="of each search (default: 20)")


HEADINGS = (
    "network", "engine", "layers reused", "threads", "ms", "over dense [95 %]", "over ORT", "over int8", "metric",
    "drop", "bits of dense",
)  # fmt: skip
COMMAND = Command(
    name="plans",
    description=__doc__,
    headings=HEADINGS,
    choices=tuple(MAKERS),
    seconds=8.0,
    run=run,
    table=table,
    add_options=_options,
    plot=plot,
)

if __name__ == "__main__":
    COMMAND.main()
