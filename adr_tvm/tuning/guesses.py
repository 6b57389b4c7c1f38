"""Which schedule to try next: a cost model, corrected by what was measured so far.

The logarithm of a time is the model's, plus one number for each value of each parameter of the schedule (a tile height
of 12, a k_step of 256, ...), fitted by ridge regression to what the model got wrong. Values that nothing is known about
count as a little faster than they are predicted, so that each gets its turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

RIDGE = 1.0
UNKNOWN = 0.01  # log time by which a value not yet seen is favoured


class Guesses:
    """Schedules with the time that each is expected to take.

    Args:
        costs: schedules (hashable dataclasses) that may be tried, and what a model says of them, in any unit.
    """

    def __init__(self, costs: Mapping[Any, float]):
        self._schedules = list(costs)
        self._costs = np.log(np.array([max(cost, 1e-300) for cost in costs.values()]))
        values = [list(_leaves(asdict(schedule))) for schedule in self._schedules]
        columns = {value: column for column, value in enumerate(dict.fromkeys(v for each in values for v in each))}
        self._index = np.array([[columns[value] for value in each] for each in values], int).reshape(len(values), -1)
        self._seen = np.zeros(len(columns), bool)
        self._tried: list[int] = []
        self._errors: list[float] = []
        self._left = np.ones(len(values), bool)
        self._position = {schedule: position for position, schedule in enumerate(self._schedules)}

    def __contains__(self, schedule: Any) -> bool:
        return schedule in self._position

    def next(self) -> Any | None:
        """The schedule expected to be fastest among those not yet tried; None if all were."""
        if not self._left.any():
            return None
        return self._schedules[int(np.argmin(np.where(self._left, self._expected(), np.inf)))]

    def learn(self, schedule: Any, seconds: float | None) -> None:
        """A schedule was tried and took so long; None: it cannot be used."""
        position = self._position[schedule]
        self._left[position] = False
        if seconds is None:
            return
        self._tried.append(position)
        self._errors.append(math.log(seconds) - self._costs[position])
        self._seen[self._index[position]] = True

    def _expected(self) -> np.ndarray:
        if not self._tried:
            return self._costs
        level = float(np.mean(self._errors))
        seen = np.zeros((len(self._tried), len(self._seen)))
        np.put_along_axis(seen, self._index[self._tried], 1.0, axis=1)
        normal = seen.T @ seen + RIDGE * np.eye(len(self._seen))
        weights = np.linalg.solve(normal, seen.T @ (np.array(self._errors) - level))
        return self._costs + level + np.where(self._seen, weights, -UNKNOWN)[self._index].sum(axis=1)


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(name, value) of each field, those of nested dataclasses too."""
    found: list[tuple[str, Any]] = []
    for name, value in fields.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found
