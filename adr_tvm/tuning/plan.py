"""Tuning the kernels that a plan brings, after it is chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from adr_tvm.build import build_plan
from adr_tvm.cuda.present import present_gpu
from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.passes import pipeline
from adr_tvm.planner.board_clock import BoardClock
from adr_tvm.planner.clock import Clock, MeasuredClock
from adr_tvm.planner.cuda_clock import CudaClock
from adr_tvm.remote.board import Board
from adr_tvm.report.results import Timings
from adr_tvm.targets import TargetEntry
from adr_tvm.tuning.board_trial import BoardTrial, BoardWatch
from adr_tvm.tuning.cuda_trial import tuning_on_gpu
from adr_tvm.tuning.database import TuningDatabase
from adr_tvm.tuning.race import Stopwatch
from adr_tvm.tuning.trial import MakeTrial
from adr_tvm.tuning.tuner import tune_network

if TYPE_CHECKING:
    from adr_tvm.planner.search import Outcome


def tune_plan(
    network: LoadedNetwork,
    outcome: Outcome,
    samples: CalibrationSet | None,
    database: TuningDatabase,
    trials: int,
    images: int,
    board: Board | None = None,
) -> Outcome:
    """Tune what the reusing layers need; if that brought anything, build and time the network again.

    The times of single layers stay those that the plan was chosen by.

    Args:
        database: in force; takes what is found.
        images: in a call, where the network leaves that open.
        board: where the network runs; None: here.

    Raises:
        BoardError: the board failed; what was tuned until then is in the database.
    """
    plan, target, entry = outcome.plan, network.target, network.options.entry
    if not plan.reused:
        return outcome
    precision = None if entry.gpu is None else network.options.precision
    rewritten = pipeline.run(pipeline.rewrite(plan), network.mod, target)
    records = tune_network(rewritten, target, database, trials, images, *tuning_on(entry, board), precision)
    if all(record.schedule is None for record in records):
        return outcome
    executable, clock = outcome.executable, _clock(network, board)
    if isinstance(clock, MeasuredClock):
        executable = build_plan(network.mod, plan, target)
    batch = None if samples is None else next(iter(samples))[0]
    times = clock.network(executable, network.checked, batch, plan, network.options.seed)
    result = replace(outcome.result, dense_ms=1e3 * times.dense, reuse_ms=1e3 * times.main)
    return replace(outcome, executable=executable, result=result)


def _clock(network: LoadedNetwork, board: Board | None) -> Clock:
    """What times the network once more."""
    entry, gpu = network.options.entry, present_gpu()
    if entry.gpu is not None and gpu is not None:
        return CudaClock(gpu.name, entry, network.target, network.mod, Timings(), network.options.precision)
    return MeasuredClock(Timings()) if board is None else BoardClock(board, network.mod, network.target, Timings())


def tuning_on(entry: TargetEntry, board: Board | None) -> tuple[Stopwatch | None, MakeTrial | None]:
    """What measures kernels of a target, and what makes them: on a board or the GPU at hand; None: on the processor."""
    if entry.gpu is not None:
        return tuning_on_gpu(entry)
    return (None, None) if board is None else (BoardWatch(), partial(BoardTrial, board))
