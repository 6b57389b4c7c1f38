"""Geometry of the report's plots: error against time of the settings tried for one layer.

Only positions and labels are computed here, in the units of an SVG view box; the template draws, so that the
plots follow the page's light and dark colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from adr_tvm.report.formats import milliseconds, number, percent, setting_text
from adr_tvm.report.results import LayerResult

WIDTH, HEIGHT = 320.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 308.0, 12.0, 168.0


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One candidate; ``text`` is its tooltip."""

    x: float
    y: float
    text: str
    chosen: bool
    pareto: bool


@dataclass(frozen=True)
class Scatter:
    """Error (logarithmic) against time (linear, from 0) for one layer.

    Attributes:
        points: the chosen one last, so that it is drawn on top.
        front: the Pareto front as the ``points`` of an SVG polyline; empty with fewer than two points on it.
        dense_x: where the dense time lies, or None.
    """

    points: list[Point]
    front: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dense_x: float | None


def scatter(layer: LayerResult) -> Scatter | None:
    """The plot of a layer, or None where no candidate has both a finite time and a finite error."""
    tried = [
        (each, each.time_ms, each.error)
        for each in sorted(layer.candidates, key=lambda each: each.chosen)
        if _known(each.time_ms) and _known(each.error)
    ]
    if not tried:
        return None
    dense = layer.time_dense_ms if _known(layer.time_dense_ms) else None
    longest = max([time_ms for _, time_ms, _ in tried] + ([] if dense is None else [dense])) or 1.0
    positive = [error for _, _, error in tried if error > 0] or [1.0]
    low, high = min(positive), max(positive)
    has_zero = any(error <= 0 for _, _, error in tried)
    bottom = math.log10(low) - (0.8 if has_zero else 0.12)
    top = max(math.log10(high) + 0.12, bottom + 0.5)

    def x(time_ms: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * time_ms / (1.06 * longest), 1)

    def y(error: float) -> float:
        share = (math.log10(error) - bottom) / (top - bottom) if error > 0 else 0.0
        return round(BOTTOM - (BOTTOM - TOP) * share, 1)

    points = [
        Point(
            x(time_ms),
            y(error),
            f"{setting_text(each.setting)}: {milliseconds(time_ms)} ms, NMSE {number(error)}, r_c {percent(each.r_c)}",
            each.chosen,
            each.pareto,
        )
        for each, time_ms, error in tried
    ]
    front = sorted((point.x, point.y) for point in points if point.pareto)
    return Scatter(
        points,
        " ".join(f"{px},{py}" for px, py in front) if len(front) > 1 else "",
        [Tick(x(value), f"{value:g}") for value in linear_ticks(1.06 * longest)],
        [Tick(y(value), f"{value:g}") for value in log_ticks(bottom, top, low)]
        + ([Tick(BOTTOM, "0")] if has_zero else []),
        None if dense is None else x(dense),
    )


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def linear_ticks(end: float) -> list[float]:
    """0 and three to five round numbers up to ``end``."""
    step = 10 ** math.floor(math.log10(end))
    step = next(step * share for share in (2, 1, 0.5, 0.25) if end / (step * share) >= 3)
    return [step * index for index in range(int(end / step) + 1)]


def log_ticks(bottom: float, top: float, low: float) -> list[float]:
    """Up to five round numbers between the powers of ten ``bottom`` and ``top``, none far below ``low``."""
    bottom = max(bottom, math.log10(low) - 0.12)
    decades = range(math.floor(bottom), math.ceil(top) + 1)
    for digits in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if bottom <= math.log10(tick) <= top]
        if len(ticks) <= 5:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 5)]
