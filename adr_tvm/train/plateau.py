"""When has the loss stopped improving? The rule by which the controller leaves a stage.

With l_1, l_2, ... the losses since the stage began, and b = ``smoothing``:

    smoothed_t = (1 - b) sum_i b^(t - i) l_i / (1 - b^t)

The first ``settle`` = 1 / (1 - b) steps of a stage are not judged. After them the *reference* is the smoothed loss;
each time the smoothed loss falls below (1 - ``improvement``) reference it becomes the reference. ``window`` steps in a
row without that are a plateau. A smoothed loss above (1 + ``divergence``) reference is one at once: the stage is too
coarse.

So a stage is left when the loss improves by less than ``improvement`` in ``window`` steps. Only losses enter, so the
same losses give the same decisions, also when training was interrupted between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PlateauRule:
    """The constants of the rule, described above; ``window`` in steps."""

    smoothing: float = 0.98
    improvement: float = 0.02
    window: int = 200
    divergence: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}, expected 0 to less than 1")
        if not 0 <= self.improvement < 1:
            raise ValueError(f"improvement is {self.improvement}, expected 0 to less than 1")
        if self.window < 1:
            raise ValueError(f"window is {self.window}, expected at least 1")
        if self.divergence <= 0:
            raise ValueError(f"divergence is {self.divergence}, expected more than 0")

    @property
    def settle(self) -> int:
        """Steps of a stage that are not judged."""
        return round(1 / (1 - self.smoothing))


@dataclass
class PlateauState:
    """What the rule remembers of a stage.

    Attributes:
        steps: since the stage began.
        total: sum of the losses, each weighed by b^age.
        weight: sum of those weights.
        reference: smoothed loss that must be undercut; None while the stage settles.
        stale: steps since the reference was last set.
    """

    steps: int = 0
    total: float = 0.0
    weight: float = 0.0
    reference: float | None = None
    stale: int = 0

    @property
    def smoothed(self) -> float | None:
        """The smoothed loss; None before the first step."""
        return self.total / self.weight if self.weight else None


def observe(state: PlateauState, loss: float, rule: PlateauRule) -> bool:
    """Take in the loss of a step; returns whether it ends the stage.

    Raises:
        ValueError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss}")
    state.steps += 1
    state.total = rule.smoothing * state.total + (1 - rule.smoothing) * loss
    state.weight = rule.smoothing * state.weight + (1 - rule.smoothing)
    smoothed = state.total / state.weight
    if state.steps < rule.settle:
        return False
    if state.reference is None or smoothed <= (1 - rule.improvement) * state.reference:
        state.reference, state.stale = smoothed, 0
        return False
    state.stale += 1
    return state.stale >= rule.window or smoothed > (1 + rule.divergence) * state.reference
