"""Timing a kernel beside another: turns alternate, and only ratios of neighbouring turns count.

What changes over time (clock, other processes) so hits both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

TURN_SECONDS = 0.001  # runs of a turn take about as long together, at least

Run = Callable[[], object]


class Stopwatch(Protocol):
    """Measures how long some runs take."""

    def seconds(self, run: Run, count: int) -> float:
        """Time of one of ``count`` runs, on average."""


class Clock:
    """CPU time of this thread where it is the only one, which other processes disturb less; else wall time."""

    def __init__(self, threads: int):
        self._now = time.thread_time_ns if threads == 1 else time.perf_counter_ns

    def seconds(self, run: Run, count: int) -> float:
        """Time of one of ``count`` runs, on average."""
        start = self._now()
        for _ in range(count):
            run()
        return max(1, self._now() - start) / (1e9 * count)


def runs_in_turn(watch: Stopwatch, run: Run) -> int:
    """How many runs make a turn."""
    watch.seconds(run, 1)
    return max(1, min(1000, round(TURN_SECONDS / watch.seconds(run, 2))))


def race(watch: Stopwatch, first: Run, second: Run, rounds: int, count: int) -> list[tuple[float, float]]:
    """Seconds of a run of the first and of the second in each round; who begins alternates.

    Args:
        count: runs of each in a round.
    """
    times = []
    for index in range(rounds):
        if index % 2 == 0:
            times.append((watch.seconds(first, count), watch.seconds(second, count)))
        else:
            late = watch.seconds(second, count)
            times.append((watch.seconds(first, count), late))
    return times
