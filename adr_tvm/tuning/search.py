"""The search for the schedule of one kernel.

Every schedule races the default. A short race comes first; the best few of all go on to a longer one, and the best of
those must win a last, longest race, whose times nothing was chosen by: with a probability of 95 % it is at least
``WORTH`` times as fast as the default. Schedules whose bytes differ from the default's are dropped.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvm.target import Target

from adr_tvm.timing import median_at_least
from adr_tvm.tuning.guesses import Guesses
from adr_tvm.tuning.race import Stopwatch, race, runs_in_turn
from adr_tvm.tuning.task import TuningTask
from adr_tvm.tuning.trial import MakeTrial, Trial

WORTH = 1.02
SHORT, LONG, LAST = 5, 15, 31  # rounds
FINALISTS = 3
LARGE_WEIGHTS = 128 << 20  # bytes above which there is memory for one finalist
HOPELESS = 0.8  # speed-up in the first round below which no more are run


@dataclass
class Found:
    """What came of a search.

    Attributes:
        schedule: the fastest; None: the default.
        speedup: of it over the default; 1 for the default.
        default_seconds: of a run of the default.
        measured: schedules that were measured.
        wrong: schedules that computed other bytes than the default, which is a bug.
    """

    default_seconds: float
    schedule: Any | None = None
    speedup: float = 1.0
    measured: int = 0
    wrong: list[Any] = field(default_factory=list)


def search_schedule(
    task: TuningTask,
    target: Target,
    trials: int,
    watch: Stopwatch,
    threads: int,
    around: int,
    first: Any | None = None,
    advance: Callable[[float], None] = lambda _: None,
    make_trial: MakeTrial | None = None,
) -> Found:
    """Try up to ``trials`` schedules of a kernel.

    Args:
        around: bytes of weights read between two calls in the network.
        first: a schedule to begin with, found earlier.
        advance: told after each trial the best speed-up so far.
        make_trial: makes kernels to run; None: on this machine.
    """
    make_trial = make_trial or Trial
    default = make_trial(task, task.default(), target, around)
    count = runs_in_turn(watch, default)
    found = Found(watch.seconds(default, count))
    guesses = Guesses(task.candidates(threads))
    guesses.learn(default.schedule, 1.0)
    best: list[tuple[float, Trial]] = []
    most = FINALISTS if task.weight_bytes <= LARGE_WEIGHTS else 1
    schedule = first if first is not None and first in guesses else guesses.next()
    while schedule is not None and found.measured + len(found.wrong) < trials:
        trial = make_trial(task, schedule, target, around)
        if not trial.agrees(default):
            found.wrong.append(schedule)
            guesses.learn(schedule, None)
        else:
            found.measured += 1
            speedup, seconds = _short_race(watch, default, trial, count)
            guesses.learn(schedule, seconds)
            best = sorted([*best, (speedup, trial)], key=lambda each: -each[0])[:most]
        advance(best[0][0] if best else 1.0)
        schedule = guesses.next()
    _decide(found, default, [trial for speedup, trial in best if speedup > 1], watch, count)
    return found


def _short_race(watch: Stopwatch, default: Trial, trial: Trial, count: int) -> tuple[float, float]:
    """Speed-up of a schedule over the default, and the seconds of a run relative to the default's."""
    times = race(watch, default, trial, 1, count)
    if times[0][0] / times[0][1] >= HOPELESS:
        times = race(watch, default, trial, SHORT, count)
    speedup = statistics.median(a / b for a, b in times)
    return speedup, 1 / speedup


def _decide(found: Found, default: Trial, finalists: list[Trial], watch: Stopwatch, count: int) -> None:
    """Let the finalists race on, and take the best if it is worth it."""
    if len(finalists) > 1:
        finalists = [max(finalists, key=lambda each: statistics.median(_speedups(watch, default, each, LONG, count)))]
    for trial in finalists:
        times = race(watch, default, trial, LAST, count)
        speedups = [a / b for a, b in times]
        found.default_seconds = statistics.median(a for a, _ in times)
        if median_at_least(speedups) >= WORTH:
            found.schedule, found.speedup = trial.schedule, statistics.median(speedups)


def _speedups(watch: Stopwatch, default: Trial, trial: Trial, rounds: int, count: int) -> list[float]:
    return [a / b for a, b in race(watch, default, trial, rounds, count)]
