"""Tuning the kernels that a plan brings, after it is chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from adr_tvm.build import build_plan
from adr_tvm.data.calibration import CalibrationSet
from adr_tvm.loaded_network import LoadedNetwork
from adr_tvm.passes import pipeline
from adr_tvm.planner.board_clock import BoardClock
from adr_tvm.planner.clock import Clock, MeasuredClock
from adr_tvm.remote.board import Board
from adr_tvm.report.results import Timings
from adr_tvm.tuning.board_trial import BoardTrial, BoardWatch
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
    plan, target = outcome.plan, network.target
    if not plan.reused:
        return outcome
    rewritten = pipeline.run(pipeline.rewrite(plan), network.mod, target)
    records = tune_network(rewritten, target, database, trials, images, *tuning_on(board))
    if all(record.schedule is None for record in records):
        return outcome
    executable = build_plan(network.mod, plan, target) if board is None else outcome.executable
    clock: Clock = MeasuredClock(Timings())
    if board is not None:
        clock = BoardClock(board, network.mod, target, Timings())
    batch = None if samples is None else next(iter(samples))[0]
    times = clock.network(executable, network.checked, batch, plan, network.options.seed)
    result = replace(outcome.result, dense_ms=1e3 * times.dense, reuse_ms=1e3 * times.main)
    return replace(outcome, executable=executable, result=result)


def tuning_on(board: Board | None) -> tuple[Stopwatch | None, MakeTrial | None]:
    """What measures kernels, and what makes them, on a board; None: here."""
    return (None, None) if board is None else (BoardWatch(), partial(BoardTrial, board))
