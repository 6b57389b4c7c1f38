"""What ``adr-bench`` measured, as in its JSON file: times in milliseconds, None where not known or not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

FORMAT_VERSION = 1
OURS = "adr"
RESAMPLES = 2000
LEAST_FOR_INTERVAL = 10  # medians of fewer resampled rounds take too few values


@dataclass(frozen=True)
class Speedup:
    """How many times faster the bundle is than another engine.

    Attributes:
        ratio: of the medians, theirs / ours.
        low, high: 95 % bootstrap interval over the rounds; None below 10 rounds.
    """

    ratio: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class EngineTimes:
    """One engine with some number of threads.

    Attributes:
        engine: ``adr`` or one of ``--against``.
        median_ms: of a run.
        times_ms: of all rounds, in order; the n-th times of all engines belong together.
        speedup: of the bundle over this engine; None for the bundle itself.
    """

    engine: str
    median_ms: float
    times_ms: list[float]
    speedup: Speedup | None


@dataclass(frozen=True)
class ThreadTimes:
    """All engines with one number of threads."""

    threads: int
    engines: list[EngineTimes]


@dataclass(frozen=True)
class EngineAccuracy:
    """One engine against ONNX Runtime in fp32, on all samples.

    Attributes:
        engine: ``onnxruntime`` itself is among them with ``top1``, whose value is its accuracy.
        max_relative_difference: largest |a - b| / largest |b|, the worst of the outputs.
        value: of the metric, on the first output.
        drop: what an accuracy budget limits: loss of top1, 1 - agreement, or the value itself.
    """

    engine: str
    max_relative_difference: float | None
    value: float | None
    drop: float | None


@dataclass(frozen=True)
class BenchResult:
    """A run of ``adr-bench``.

    Attributes:
        model, model_sha256: the ONNX file.
        bundle: the folder.
        processor, cores: of this machine; physical cores that this process may use.
        versions: of the programs, by name.
        batch: images of a run.
        runs: timed rounds.
        metric: ``top1``, ``agreement``, ``nmse`` or ``psnr``.
        samples: that the metric was measured on.
        accuracy: by engine.
        times: by number of threads.
        notes: for the reader, one sentence each.
        version: of the file format.
    """

    model: str
    model_sha256: str
    bundle: str
    processor: str
    cores: int
    versions: dict[str, str]
    batch: int
    runs: int
    metric: str
    samples: int
    accuracy: list[EngineAccuracy]
    times: list[ThreadTimes]
    notes: list[str] = field(default_factory=list)
    version: int = FORMAT_VERSION

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}


def engine_times(samples: dict[str, list[float]]) -> list[EngineTimes]:
    """Medians and speedups from the times of the rounds, in milliseconds by engine, ``adr`` among them."""
    ours = samples[OURS]
    return [
        EngineTimes(name, float(np.median(times)), times, None if name == OURS else speedup(times, ours))
        for name, times in samples.items()
    ]


def speedup(theirs: Sequence[float], ours: Sequence[float], seed: int = 0) -> Speedup:
    """Ratio of medians; the interval resamples rounds, so that what slows a whole round down cancels out."""
    a, b = np.asarray(theirs), np.asarray(ours)
    ratio = float(np.median(a) / np.median(b))
    if len(a) < LEAST_FOR_INTERVAL:
        return Speedup(ratio, None, None)
    rounds = np.random.default_rng(seed).integers(0, len(a), size=(RESAMPLES, len(a)))
    low, high = np.quantile(np.median(a[rounds], axis=1) / np.median(b[rounds], axis=1), [0.025, 0.975])
    return Speedup(ratio, float(low), float(high))
