"""Learning rates as pure functions of the step; the formulas are those of ``torch.optim.lr_scheduler``.

Of n steps, counted from 0:

- ``constant``: peak.
- ``step`` (StepLR): a tenth of it after each third of the steps.
- ``cosine`` (CosineAnnealingLR): peak (1 + cos(pi step / n)) / 2.
- ``one-cycle`` (OneCycleLR): a half cosine from peak / 25 up to peak at 30 % of the run, and one down to
  peak / 250,000 at its last step. Smith, Topin, "Super-Convergence" (2018).
- ``stable-decay``: peak, then over the last fifth of the steps a line down to 0 (the "cooldown" of Zhai, Kolesnikov,
  Houlsby, Beyer, "Scaling Vision Transformers", CVPR 2022, section 3.5).

Warm-up goes before (LinearLR): peak (step + 1) / (warmup + 1); the schedule has the steps that are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from adr_tvm.errors import UsageError

Schedule = Callable[[int], float]

STEP_FACTOR, STEP_COUNT = 0.1, 3
RISE, START, END = 0.3, 25.0, 1e4  # OneCycleLR's defaults
FALL = 0.2  # share of the steps in which ``stable-decay`` falls


def constant(peak: float) -> Schedule:
    """The same at every step."""
    return lambda step: peak


def step_decay(peak: float, size: int, factor: float = STEP_FACTOR) -> Schedule:
    """Multiplied by ``factor`` after every ``size`` steps."""
    return lambda step: peak * factor ** (step // size)


def cosine(peak: float, steps: int, lowest: float = 0.0) -> Schedule:
    """Half a cosine from peak to ``lowest`` at step ``steps``."""
    return lambda step: lowest + (peak - lowest) * (1 + math.cos(math.pi * step / steps)) / 2


def one_cycle(peak: float, steps: int) -> Schedule:
    """Up and down again; see the module."""
    first, top, last = peak / START, RISE * steps - 1, steps - 1

    def rate(step: int) -> float:
        if step <= top:
            return _between(first, peak, step / top)
        return _between(peak, first / END, (step - top) / (last - top))

    return rate


def stable_decay(peak: float, steps: int) -> Schedule:
    """Constant, then linear down to 0 at step ``steps``."""
    return lambda step: peak * min(1.0, (steps - step) / (FALL * steps))


def warmed_up(schedule: Schedule, peak: float, warmup: int) -> Schedule:
    """A linear rise over ``warmup`` steps, then the schedule from its step 0 on."""
    return lambda step: peak * (step + 1) / (warmup + 1) if step < warmup else schedule(step - warmup)


def learning_rates(name: str, peak: float, steps: int, warmup: int = 0) -> Schedule:
    """The learning rate of each step of a run.

    Args:
        name: of the schedule.
        peak: highest learning rate.
        steps: of the run, 1 or more.
        warmup: steps of linear rise at its begin.

    Raises:
        UsageError: no schedule has the name, or the warm-up is longer than the run.
    """
    if not 0 <= warmup <= steps:
        raise UsageError(f"a warm-up of {warmup} steps in a run of {steps}")
    left = max(1, steps - warmup)
    made = {
        "constant": lambda: constant(peak),
        "step": lambda: step_decay(peak, -(-left // STEP_COUNT)),
        "cosine": lambda: cosine(peak, left),
        "one-cycle": lambda: one_cycle(peak, left),
        "stable-decay": lambda: stable_decay(peak, left),
    }
    if name not in made:
        raise UsageError(f"there is no learning rate schedule {name!r}, expected one of {', '.join(made)}")
    return warmed_up(made[name](), peak, warmup)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
