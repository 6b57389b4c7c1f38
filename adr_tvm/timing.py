"""What timing several ways to run the same thing takes, so that it favours none of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

Item = TypeVar("Item")

WARM_UP_SECONDS = 0.005  # after a pause, CifarNet (0.5 ms) needs four runs until its time is level
LOWER_TAIL = 0.05  # a two-sided interval of 90 %


def fair_orders(items: Sequence[Item]) -> list[list[Item]]:
    """Orders to run items in, a round each, then over again: a Williams design.

    In one cycle each item stands equally often at each place and directly behind each of the others. The cycle is as
    long as ``items``, or twice that if their number is odd.
    """
    count = len(items)
    zigzag = [place // 2 if place % 2 == 0 else count - 1 - place // 2 for place in range(count)]
    orders = [[items[(each + shift) % count] for each in zigzag] for shift in range(count)]
    return orders if count % 2 == 0 else orders + [order[::-1] for order in orders]


def take_turns(
    run: Callable[[str], float], names: Sequence[str], least: int, most: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds by name of runs that take turns; the n-th of all names are neighbours in time.

    Args:
        run: runs what has a name once; returns its seconds.
        least, most: rounds.
        seconds: after which the least rounds are enough.
    """
    samples: dict[str, list[float]] = {name: [] for name in names}
    orders = fair_orders(list(names))
    begin = time.perf_counter()
    for index in range(most):
        if index >= least and time.perf_counter() - begin > seconds:
            break
        for name in orders[index % len(orders)]:
            samples[name].append(run(name))
    return samples


def warm_up(run: Callable[[], object]) -> None:
    """Run once, and on until caches, clock and waiting threads are as in a series of runs."""
    start = time.perf_counter()
    run()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        run()


def median_at_least(values: Sequence[float]) -> float:
    """The lower end of the sign test's interval for the median of what ``values`` are drawn from.

    The median lies below it with a probability of at most 5 %, whatever the distribution; below 5 values, which
    cannot show that, it is the smallest.
    """
    count = len(values)
    up_to = accumulate(math.comb(count, rank) / 2**count for rank in range(count))  # P(so many of them lie below)
    return sorted(values)[max(0, sum(chance <= LOWER_TAIL for chance in up_to) - 1)]
