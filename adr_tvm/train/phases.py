"""Where the time of a run goes, by phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

DATA, STEP, PLANES, COMPILE, MEASURE, EVALUATE, CHECKPOINT = (
    "data", "step", "planes", "compile", "measure", "evaluate", "checkpoint",
)  # fmt: skip
PHASES = (STEP, DATA, PLANES, EVALUATE, CHECKPOINT, COMPILE, MEASURE)
"""``step`` is forward, backward and update; ``data`` waiting for a batch; ``compile`` waiting for a stage's code."""


class Phases:
    """Seconds by phase, added up over a run and those it was resumed from."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = dict(seconds)
        self.last = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time within the context to a phase; ``last`` is that time."""
        start = perf_counter()
        try:
            yield
        finally:
            self.last = perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self.last

    def rounded(self) -> dict[str, float]:
        """For the log, in the order of ``PHASES``."""
        return {phase: round(self.seconds[phase], 3) for phase in PHASES if phase in self.seconds}
