"""Geometry of curves over the steps of a training run, in the units of an SVG view box; the template draws.

Long series are averaged in as many equal pieces as the plot has room for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from adr_tvm.report.charts import Tick, linear_ticks, log_ticks

WIDTH, HEIGHT = 640.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 628.0, 12.0, 222.0
MOST_POINTS = 300
COLOURS = 6


@dataclass(frozen=True)
class Series:
    """Values over steps; ``dots`` marks each one (few, as of epochs), ``colour`` is 0 to ``COLOURS`` - 1."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    colour: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Dot:
    """A marked value; ``text`` is its tooltip."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A drawn series: ``points`` of an SVG polyline."""

    name: str
    colour: int
    points: str
    dots: list[Dot]


@dataclass(frozen=True)
class Curves:
    """A plot; ``marks`` are positions of vertical lines, where stages begin."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[float]


def curves(
    title: str,
    series: Sequence[Series],
    last_step: int,
    marks: Sequence[int] = (),
    log: bool = False,
    top: float | None = None,
) -> Curves | None:
    """The plot of some series, or None where there is nothing to draw.

    Args:
        last_step: right end of the axis.
        marks: steps at which stages begin.
        log: of the values, which are then positive; others are left out.
        top: upper end of the axis; None: the largest value.
    """
    drawn = [_averaged(each) for each in series]
    if log:
        drawn = [_positive(each) for each in drawn]
    drawn = [each for each in drawn if each.values]
    if not drawn:
        return None
    low, high = min(min(each.values) for each in drawn), max(max(each.values) for each in drawn)
    if log:
        bottom = math.log10(low) - 0.08
        upper = max(math.log10(high) + 0.08, bottom + 0.5)
        ticks = log_ticks(bottom, upper, low)
    else:
        bottom, upper = min(0.0, low), (top or 1.05 * high or 1.0)
        ticks = linear_ticks(upper)

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / max(1, last_step), 1)

    def y(value: float) -> float:
        share = ((math.log10(value) if log else value) - bottom) / (upper - bottom)
        return round(BOTTOM - (BOTTOM - TOP) * min(1.0, share), 1)

    lines = [
        Line(
            each.name,
            each.colour,
            " ".join(f"{x(step)},{y(value)}" for step, value in zip(each.steps, each.values, strict=True)),
            [
                Dot(x(step), y(value), f"{each.name} {value:.4g} after step {step}")
                for step, value in zip(each.steps, each.values, strict=True)
                if each.dots
            ],
        )
        for each in drawn
    ]
    return Curves(
        title,
        lines,
        [Tick(x(step), f"{step:,.0f}".replace(",", " ")) for step in linear_ticks(max(1, last_step))],
        [Tick(y(value), f"{value:g}") for value in ticks],
        [x(step) for step in marks if step > 0],
    )


def _averaged(series: Series) -> Series:
    """At most ``MOST_POINTS`` points, each the mean of a piece."""
    count = len(series.values)
    if count <= MOST_POINTS:
        return series
    cuts = [round(index * count / MOST_POINTS) for index in range(MOST_POINTS + 1)]
    pieces = list(pairwise(cuts))
    steps = [series.steps[(start + end) // 2] for start, end in pieces]
    values = [sum(series.values[start:end]) / (end - start) for start, end in pieces]
    return Series(series.name, steps, values, series.colour, series.dots)


def _positive(series: Series) -> Series:
    kept = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value > 0]
    return Series(series.name, [s for s, _ in kept], [v for _, v in kept], series.colour, series.dots)
