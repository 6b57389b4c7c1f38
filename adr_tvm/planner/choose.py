"""The choice under a budget: a nested sequence of plans, from dense to everything, by time saved per error.

Errors of layers at the network's output are taken to add (they are small); the budget itself is checked on whole plans.
Per layer the upper convex hull of (error, time saved), in order of falling slope, gives the steps of a multiple-choice
knapsack's greedy solution (Sinha, Zoltners, Operations Research 1979). Where a step does not fit the budget, a smaller
one of that layer may: what lies below the hull, but is not dominated, comes between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adr_tvm.settings import ReuseSetting


@dataclass(frozen=True)
class Option:
    """One measured setting of one layer: seconds saved per run, and error (NMSE) at the network's output."""

    setting: ReuseSetting
    saved: float
    error: float


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the upper convex hull of (error, saved) from (0, 0), in order of error; all save time.

    An infinite error (as of outputs that do not vary over the images) comes last; what is no number is left out.
    """
    best: list[Option] = []
    for option in sorted((o for o in options if not math.isnan(o.error)), key=lambda o: (o.error, -o.saved)):
        if option.saved <= (best[-1].saved if best else 0.0):
            continue
        best.append(option)
        while len(best) > 1 and _slope(best[-2], best[-1]) >= _slope(best[-3] if len(best) > 2 else None, best[-2]):
            del best[-2]
    return best


def between(options: Sequence[Option], start: Option | None, end: Option) -> list[Option]:
    """The options that lie between two of the hull in both error and time saved and are not dominated, by error."""
    saved = start.saved if start else 0.0
    found: list[Option] = []
    for option in sorted((o for o in options if not math.isnan(o.error)), key=lambda o: (o.error, -o.saved)):
        if option.error < end.error and option.saved > saved:
            found.append(option)
            saved = option.saved
    return found


def _slope(start: Option | None, end: Option) -> float:
    saved = end.saved - (start.saved if start else 0.0)
    error = end.error - (start.error if start else 0.0)
    return saved / error if error > 0 else float("inf")


def nested_plans(options: Mapping[str, Sequence[Option]]) -> list[dict[str, Option]]:
    """Plans from dense (empty) to every layer at its fastest, each one step further; steps by falling slope."""
    steps: list[tuple[float, str, list[Option]]] = []
    for layer, choices in options.items():
        before: Option | None = None
        for option in hull(choices):
            steps.append((_slope(before, option), layer, [*between(choices, before, option), option]))
            before = option
    steps.sort(key=lambda step: -step[0])  # stable: equal slopes in network order
    plans: list[dict[str, Option]] = [{}]
    for _, layer, stages in steps:
        plans += [{**plans[-1], layer: option} for option in stages]
    return plans


def pareto(options: Sequence[tuple[float, float]]) -> list[bool]:
    """For (time, error) pairs: whether no other pair is at least as good in both and better in one."""
    return [
        not any((t <= time and e < error) or (t < time and e <= error) for t, e in options) for time, error in options
    ]
