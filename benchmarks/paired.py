"""Timing engines against each other: interleaved rounds in one process, and ratios with their intervals.

All engines take turns, a run each in every round, in an order that changes from round to round
(`adr_tvm.timing.fair_orders`). A pause comes before each turn, in which the spinning threads of the engine before
come to rest; untimed runs of the same engine come next. Short runs are repeated in a turn, whose time is their median.
So what changes over time hits all alike, and a ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adr_tvm.timing import WARM_UP_SECONDS, fair_orders, warm_up

PAUSE_SECONDS = 0.05
TURN_SECONDS = 0.005  # a run of 50 us alone is at the mercy of one interrupt
RESAMPLES = 2000
CONFIDENCE = 0.95

Run = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Time of one engine by that of another.

    Attributes:
        median: of the ratios of all rounds.
        low, high: its 95 % bootstrap interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 13.3:
            percentiles of the medians of resampled rounds).
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def take_turns(
    engines: Mapping[str, Run], rounds: int, before_round: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Milliseconds of each engine in each round.

    Args:
        before_round: called with the number of each round, from 0; may choose what the engines run on.
    """
    times: dict[str, list[float]] = {name: [] for name in engines}
    orders = fair_orders(list(engines))
    for run in engines.values():
        run()
    for index in range(rounds):
        if before_round is not None:
            before_round(index)
        for name in orders[index % len(orders)]:
            time.sleep(PAUSE_SECONDS)
            warm_up(engines[name])
            times[name].append(_turn(engines[name]))
    return times


def _turn(run: Run) -> float:
    """Milliseconds of a run: the median of one or more."""
    times: list[float] = []
    while sum(times) < TURN_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def rounds_for(engines: Mapping[str, Run], seconds: float, least: int = 9, most: int = 101) -> int:
    """How many rounds of ``take_turns`` fit some seconds: an odd number between the bounds."""
    spent = 0.0
    for run in engines.values():
        run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        spent += PAUSE_SECONDS + max(once, WARM_UP_SECONDS) + max(once, TURN_SECONDS)
    count = int(min(most, max(least, seconds / spent)))
    return count - 1 + count % 2


def paired_ratio(times: Sequence[float], reference: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio of paired times with its interval.

    Raises:
        ValueError: the numbers of rounds differ, or there are none.
    """
    if len(times) != len(reference) or not times:
        raise ValueError(f"paired times expected, got {len(times)} and {len(reference)}")
    ratios = np.asarray(times) / np.asarray(reference)
    picks = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(ratios[picks], axis=1), (tail, 100 - tail))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def geometric_mean(ratios: Sequence[float]) -> float:
    """exp(mean(log(ratios)))."""
    return float(np.exp(np.mean(np.log(ratios))))
