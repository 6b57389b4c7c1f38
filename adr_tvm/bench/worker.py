"""One process of ``adr-bench``, for one number of threads: ``python -m adr_tvm.bench.worker JOB.json ANSWER.json``.

A number of threads is for the life of a process. All engines take turns, a run each in every round, so that what
changes over time (other load, clock frequency) hits all alike. That no engine gains by its place:

- a pause comes before each turn, in which the threads of the engine before stop spinning (ONNX Runtime's spin on for
  about 30 ms after a run, and what runs beside them is slowed down);
- each turn starts with untimed runs of its own engine, so that all are timed with caches, clock and threads as they
  leave them themselves, as in a program that runs nothing else;
- the order changes from round to round, so that each engine stands at each place and behind each of the others
  equally often (`adr_tvm.timing.fair_orders`).
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adr_tvm.bench.results import OURS, EngineAccuracy
from adr_tvm.cli.common import INTERRUPTED
from adr_tvm.cli.process import Interrupts, native_stderr
from adr_tvm.errors import AdrError, UsageError
from adr_tvm.jsonfile import read_json, write_json
from adr_tvm.progress import progress, set_verbosity, wants_traceback
from adr_tvm.timing import fair_orders, warm_up

if TYPE_CHECKING:
    from adr_tvm.bench.onnxruntime_engine import Feed, Run
    from adr_tvm.data.calibration import CalibrationSet
    from adr_tvm.deploy.runtime import ReuseModel
    from adr_tvm.metrics.metrics import Metric

PAUSE_SECONDS = 0.05
MAX_BATCHES = 8
REFERENCE = "onnxruntime"


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        bundle, model, samples: paths.
        labels_name: in ``samples``.
        engines: names, in the order of the answer.
        int8_model: for ``onnxruntime-int8``.
        threads, batch, runs: numbers.
        metric: None: times only.
        verbosity: for the log.
    """

    bundle: str
    model: str
    samples: str
    labels_name: str | None
    engines: list[str]
    int8_model: str | None
    threads: int
    batch: int
    runs: int
    metric: str | None
    verbosity: int


@dataclass(frozen=True)
class Answer:
    """What it found.

    Attributes:
        times: milliseconds of the rounds by engine.
        metric, samples, accuracy: empty where the job has no metric.
        error: what went wrong, in place of all the rest.
        exit_code: of that error.
    """

    times: dict[str, list[float]] = field(default_factory=dict)
    metric: str = ""
    samples: int = 0
    accuracy: list[EngineAccuracy] = field(default_factory=list)
    error: str | None = None
    exit_code: int = 0


def measure(job: Job) -> Answer:
    """Do a job in this process.

    Raises:
        ModelError: the bundle or the model cannot be loaded.
        UsageError: the number of threads cannot be had, or the metric does not fit.
    """
    from adr_tvm.bench.onnxruntime_engine import onnxruntime_engine
    from adr_tvm.bench.run import open_samples
    from adr_tvm.deploy.runtime import load

    model = load(job.bundle, job.threads)
    outputs = [spec.name for spec in model.outputs]
    reference = onnxruntime_engine(Path(job.model), outputs, job.threads)
    engines = {OURS: _ours(model, "main"), "dense": _ours(model, "dense"), REFERENCE: reference}
    if job.int8_model is not None:
        engines["onnxruntime-int8"] = onnxruntime_engine(Path(job.int8_model), outputs, job.threads)
    engines = {name: engines[name] for name in job.engines}
    samples = open_samples(job.samples, model.inputs, job.labels_name, job.batch)
    times = _take_turns(engines, [feed for feed, _ in islice(samples, MAX_BATCHES)], job)
    if job.metric is None:
        return Answer(times)
    return _compare(engines, reference, samples, job.metric, Answer(times))


def _ours(model: ReuseModel, entry: str) -> Run:
    call, names = (model if entry == "main" else model.dense), [spec.name for spec in model.inputs]

    def run(feed: Feed) -> list[np.ndarray]:
        result = call(*(feed[name] for name in names))
        return list(result) if isinstance(result, tuple) else [result]  # type: ignore[arg-type, list-item]

    return run


def _take_turns(engines: dict[str, Run], feeds: list[Feed], job: Job) -> dict[str, list[float]]:
    full = [feed for feed in feeds if len(next(iter(feed.values()))) == job.batch]
    times: dict[str, list[float]] = {name: [] for name in engines}
    orders = fair_orders(list(engines))
    with progress(f"measuring, threads: {job.threads}", job.runs) as step:
        for index in range(job.runs):
            feed = full[index % len(full)]
            for name in orders[index % len(orders)]:
                time.sleep(PAUSE_SECONDS)
                run = partial(engines[name], feed)
                warm_up(run)
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
            step.advance()
    return times


def _compare(engines: dict[str, Run], reference: Run, samples: CalibrationSet, name: str, answer: Answer) -> Answer:
    metrics: dict[str, Metric] = {}
    worst: dict[str, list[tuple[float, float]]] = {}
    with progress("comparing outputs", len(samples)) as step:
        for feed, labels in samples:
            expected = reference(feed)
            for engine, run in engines.items():
                found = expected if engine == REFERENCE else run(feed)
                metric = metrics.setdefault(engine, _new_metric(name, labels is not None, expected[0]))
                metric.update(expected[0], found[0], labels)
                before = worst.get(engine) or [(0.0, 0.0)] * len(expected)
                worst[engine] = [_larger(*each) for each in zip(before, found, expected, strict=True)]
            step.advance(len(expected[0]))
    accuracy = [
        EngineAccuracy(
            engine,
            _finite(max(error / size if size else error for error, size in worst[engine])),
            _finite(metric.value()),
            _finite(metric.drop()),
        )
        for engine, metric in metrics.items()
        if engine != REFERENCE or metric.name == "top1"
    ]
    return Answer(answer.times, next(iter(metrics.values())).name, len(samples), accuracy)


def _new_metric(name: str, labels_given: bool, outputs: np.ndarray) -> Metric:
    from adr_tvm.metrics.metrics import choose_metric

    try:
        return choose_metric(name, labels_given, outputs)
    except ValueError as error:
        raise UsageError(f"--metric: {error}") from error


def _larger(before: tuple[float, float], found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(largest difference, largest value) so far."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b)).max(initial=0.0)
    return float(np.maximum(before[0], difference)), max(before[1], float(np.nanmax(np.abs(b), initial=0.0)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def main(job_file: str, answer_file: str) -> int:
    """Do the job in a file and write the answer to another; errors are part of the answer."""
    job = read_json(Path(job_file), Job, None, UsageError)
    debug = wants_traceback(job.verbosity)
    set_verbosity(job.verbosity)
    with native_stderr(shown=debug), Interrupts() as interrupts:
        try:
            answer = measure(job)
        except (KeyboardInterrupt, Exception) as error:
            if interrupts.seen:
                return INTERRUPTED
            if debug:
                traceback.print_exc()
            if isinstance(error, AdrError):
                answer = Answer(error=str(error), exit_code=error.exit_code)
            else:
                answer = Answer(error=f"{type(error).__name__}: {error}", exit_code=1)
    write_json(Path(answer_file), asdict(answer))
    return answer.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
