"""What is known of an engine on a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.paired import Ratio

DENSE, FP32, INT8 = "dense", "onnxruntime", "onnxruntime-int8"


@dataclass(frozen=True)
class Plan:
    """A compiled plan.

    Attributes:
        name: in tables.
        bundle: its folder.
        budgets: that it is the plan for; none where it was given.
        reused: layers that reuse.
    """

    name: str
    bundle: Path
    budgets: list[float]
    reused: int


@dataclass(frozen=True)
class Row:
    """One engine on one network at one number of threads.

    Attributes:
        network, threads: what ran.
        engine: a plan, ``dense``, ``onnxruntime`` or ``onnxruntime-int8``.
        budgets, reused: of a plan.
        ms: median of a run of ``batch`` images.
        speedups: over each other engine, by its name.
        metric, value, drop: on ``samples`` unseen inputs; None where infinite or not known.
        bits_of_dense: whether all outputs are those of the dense network, bit for bit.
        rounds: of the comparison.
    """

    network: str
    threads: int
    engine: str
    budgets: list[float] | None
    reused: int | None
    batch: int
    ms: float
    speedups: dict[str, Ratio]
    metric: str
    samples: int
    value: float | None
    drop: float | None
    bits_of_dense: bool
    rounds: int
