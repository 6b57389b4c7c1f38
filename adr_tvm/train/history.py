"""What a metrics log says, gathered for the report: series over steps, stages, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class StageRecord:
    """A stage as it went.

    Attributes:
        start, end: steps taken before and after it.
        layers: reuse of each layer as JSON; None is dense.
        losses, seconds: of its steps.
        ratios: r_c of each reusing layer, step by step.
        streamed: share of its clusters that were taken over from earlier batches, likewise, where they persist.
    """

    start: int
    layers: dict[str, dict[str, Any] | None]
    end: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    streamed: dict[str, list[float]] = field(default_factory=dict)

    @property
    def step_seconds(self) -> float | None:
        """Median time of a step; None before the first."""
        return median(self.seconds) if self.seconds else None

    @property
    def last_loss(self) -> float | None:
        """Mean loss of its last 50 steps."""
        last = self.losses[-50:]
        return sum(last) / len(last) if last else None

    def ratio(self, layer: str) -> float | None:
        """Mean r_c of a layer."""
        return _mean(self.ratios.get(layer))

    def share_streamed(self, layer: str) -> float | None:
        """Mean share of a layer's clusters that were taken over; None where they do not persist."""
        return _mean(self.streamed.get(layer))


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass
class History:
    """A run. ``start`` is the log's first event, ``steps`` and ``epochs`` all events of their kind."""

    start: dict[str, Any] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def tuned(self) -> bool:
        """Whether the run fine-tunes under a plan: its accuracies are with reuse."""
        return "before" in self.start

    @property
    def last_step(self) -> int:
        """Steps taken."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def seconds(self) -> dict[str, float]:
        """By phase, up to the last epoch."""
        return self.epochs[-1]["seconds"] if self.epochs else {}

    def time_to(self, accuracy: float) -> float | None:
        """Seconds of steps (waiting for data included) until the test accuracy first reached a value."""
        for each in self.epochs:
            if each["test_accuracy"] >= accuracy:
                return sum(each["seconds"].get(phase, 0.0) for phase in ("step", "data", "planes"))
        return None


def gather(events: Iterable[dict[str, Any]]) -> History:
    """The history that a log's events tell."""
    history = History()
    for event in events:
        kind = event["event"]
        if kind == "start":
            history.start = event
        elif kind == "stage":
            history.stages.append(StageRecord(event["step"], event["layers"], event["step"]))
            history.measured = event["measured"]
        elif kind == "epoch":
            history.epochs.append(event)
        elif kind == "step":
            history.steps.append(event)
            stage = history.stages[-1]
            stage.end = event["step"]
            if event["loss"] is not None:
                stage.losses.append(event["loss"])
            stage.seconds.append(event["seconds"])
            for layer, now in event["layers"].items():
                stage.ratios.setdefault(layer, []).append(now["r_c"])
                if "streamed" in now:
                    stage.streamed.setdefault(layer, []).append(now["streamed"])
    return history
