"""How much of the user's time a search may still spend, and on how many images.

The clock is read at named steps only, and what it said goes into the timings: a search repeated with them stops at the
same steps and looks at the same images as the first, however fast the machine is by then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from adr_tvm.report.results import Timings

# Share of the budget used up after each phase.
SHORTLISTED_BY, MEASURED_BY, WEIGHED_BY, REFINED_BY, CHOSEN_BY, VERIFIED_BY = 0.2, 0.5, 0.65, 0.75, 0.85, 0.95


class TimeBudget:
    """Seconds of a search, counted from here; without a budget nothing is limited and nothing recorded.

    Args:
        seconds: the budget, None for no limit.
        timings: take what the clock said, under keys ``search|step``.
        clock: seconds from any origin.
    """

    def __init__(self, seconds: float | None, timings: Timings, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.timings, self.clock = seconds, timings, clock
        self.start = clock()

    @property
    def limited(self) -> bool:
        """Whether there is a budget."""
        return self.seconds is not None

    def left(self, step: str, share: float) -> float:
        """Seconds until ``share`` of the budget is used up, at a step of the search; infinite without a budget."""
        if self.seconds is None:
            return math.inf
        elapsed = self.timings.get(f"search|{step}")
        if elapsed is None:
            elapsed = max(self.clock() - self.start, 1e-9)
            self.timings.put(f"search|{step}", elapsed)
        return share * self.seconds - elapsed

    def seconds_per_image(self, run: Callable[[], object], images: int) -> float:
        """Time of one image in the network, from one of two calls of ``run``; 0 without a budget."""
        if self.seconds is None:
            return 0.0
        known = self.timings.get("search|image")
        if known is None:
            run()
            start = self.clock()
            run()
            known = max(self.clock() - start, 1e-9) / images
            self.timings.put("search|image", known)
        return known

    def images(self, step: str, share: float, runs: int, per_image: float, most: int) -> int:
        """How many images can be run ``runs`` times in what is left; at least 1 and at most ``most``."""
        left = self.left(step, share)
        if math.isinf(left):
            return most
        return max(1, min(most, int(left / (max(1, runs) * per_image))))
