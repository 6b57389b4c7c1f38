"""All engines of a case in turns, and what their outputs are like on unseen inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from adr_tvm.metrics.metrics import METRICS, Metric
from adr_tvm.progress import progress
from benchmarks.networks import input_name
from benchmarks.paired import paired_ratio, rounds_for, take_turns
from benchmarks.plan_cases import PlanCase
from benchmarks.plan_rows import DENSE, FP32, INT8, Plan, Row

TIMED_BATCHES = 8

Outputs = Callable[[np.ndarray], np.ndarray]


@dataclass
class Accuracy:
    """What one engine's outputs are like."""

    metric: Metric
    bits_of_dense: bool = True


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        case: the inputs.
        model: the ONNX file, fixed to the case's shape.
        int8: the quantised one, or None.
        plans: compiled.
        threads, seconds: numbers.
    """

    case: PlanCase
    model: Path
    int8: Path | None
    plans: list[Plan] = field(default_factory=list)
    threads: int = 1
    seconds: float = 1.0


def measure(job: Job, with_metric: bool) -> tuple[list[Row], dict[str, tuple[float, float, bool]]]:
    """Time all engines in this process.

    Returns:
        Rows without the metric; and (value, drop, same bits as dense) by engine, empty unless ``with_metric``.
    """
    case = job.case
    engines = _engines(job)
    feeds = list(islice(case.batches(case.unseen[0]), TIMED_BATCHES))
    at = [feeds[0]]

    def choose(index: int) -> None:
        at[0] = feeds[index % len(feeds)]

    def run_now(engine: Outputs) -> np.ndarray:
        return engine(at[0])

    runs = {name: partial(run_now, engine) for name, engine in engines.items()}
    rounds = rounds_for(runs, job.seconds)
    with progress(f"{case.name}, threads: {job.threads}", 1) as step:
        times = take_turns(runs, rounds, choose)
        step.advance()
    plans = {plan.name: plan for plan in job.plans}
    rows = [
        Row(
            network=case.name,
            threads=job.threads,
            engine=name,
            budgets=plans[name].budgets if name in plans else None,
            reused=plans[name].reused if name in plans else None,
            batch=case.batch,
            ms=float(np.median(times[name])),
            speedups={other: paired_ratio(times[other], times[name]) for other in engines if other != name},
            metric=case.metric,
            samples=len(case.unseen[0]) // case.batch * case.batch,
            value=None,
            drop=None,
            bits_of_dense=False,
            rounds=rounds,
        )
        for name in engines
    ]
    return rows, _accuracies(case, engines) if with_metric else {}


def _engines(job: Job) -> dict[str, Outputs]:
    """First outputs of a batch, by engine."""
    from adr_tvm.bench.onnxruntime_engine import onnxruntime_engine
    from adr_tvm.deploy.runtime import load

    def ours(call: Callable[..., Any]) -> Outputs:
        def run(x: np.ndarray) -> np.ndarray:
            y = call(x)
            return np.asarray(y[0] if isinstance(y, tuple) else y)

        return run

    def theirs(path: Path) -> Outputs:
        name, session = input_name(path), onnxruntime_engine(path, outputs, job.threads)
        return lambda x: session({name: x})[0]

    models = {plan.name: load(plan.bundle, job.threads) for plan in job.plans}
    first = next(iter(models.values()))
    outputs = [spec.name for spec in first.outputs]
    engines: dict[str, Outputs] = {name: ours(model) for name, model in models.items()}
    engines |= {DENSE: ours(first.dense), FP32: theirs(job.model)}
    return engines if job.int8 is None else {**engines, INT8: theirs(job.int8)}


def _accuracies(case: PlanCase, engines: dict[str, Outputs]) -> dict[str, tuple[float, float, bool]]:
    x, labels = case.unseen
    found = {name: Accuracy(METRICS[case.metric]()) for name in engines}
    count = len(x) // case.batch
    with progress(f"{case.name}: metric on unseen inputs", count) as step:
        for index, part in enumerate(case.batches(x)):
            at = slice(index * case.batch, (index + 1) * case.batch)
            results = {name: engine(part) for name, engine in engines.items()}
            for name, y in results.items():
                found[name].metric.update(results[FP32], y, None if labels is None else labels[at])
                found[name].bits_of_dense &= y.tobytes() == results[DENSE].tobytes()
            step.advance()
    return {name: (each.metric.value(), each.metric.drop(), each.bits_of_dense) for name, each in found.items()}


def with_accuracy(rows: Iterable[Row], accuracies: dict[str, tuple[float, float, bool]]) -> list[Row]:
    """Rows with the metric, which does not depend on the number of threads."""
    full = []
    for row in rows:
        value, drop, same = accuracies[row.engine]
        full.append(replace(row, value=_finite(value), drop=_finite(drop), bits_of_dense=same))
    return full


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
