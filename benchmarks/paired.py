"""Timing engines against each other: interleaved rounds in one process, and ratios with their intervals.

All engines take turns, a run each in every round, in an order that changes from round to round
(`adr_tvm.timing.fair_orders`). A pause comes before each turn, in which the spinning threads of the engine before
come to rest; untimed runs of the same engine come next. So what changes over time hits all alike, and a ratio is the
median over rounds of the ratio within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adr_tvm.timing import fair_orders, warm_up

PAUSE_SECONDS = 0.05
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


def take_turns(engines: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each engine in each round."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    orders = fair_orders(list(engines))
    for run in engines.values():
        run()
    for index in range(rounds):
        for name in orders[index % len(orders)]:
            time.sleep(PAUSE_SECONDS)
            warm_up(engines[name])
            start = time.perf_counter()
            engines[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def rounds_for(engines: dict[str, Run], seconds: float, least: int = 9, most: int = 101) -> int:
    """How many rounds of ``take_turns`` fit some seconds: an odd number between the bounds."""
    spent = 0.0
    for run in engines.values():
        run()
        start = time.perf_counter()
        run()
        spent += 2 * (time.perf_counter() - start) + PAUSE_SECONDS
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
    """The geometric mean."""
    return float(np.exp(np.mean(np.log(ratios))))
