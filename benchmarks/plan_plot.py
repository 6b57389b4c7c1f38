"""Speed-up against metric, a figure for each network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.plan_rows import DENSE, FP32, INT8, Row

LOOKS = {DENSE: (plots.DENSE, "s"), FP32: (plots.ONNXRUNTIME, "o"), INT8: (plots.INT8, "D")}
LEAST_RANGE = {"top1": 2.0, "agreement": 4.0, "nmse": 0.01, "psnr": 10.0}  # of the axis, in its unit
LABELS = {DENSE: "dense", FP32: "ONNX Runtime", INT8: "ONNX Runtime int8"}
MOST_DB = 100.0  # stands for equal outputs


def plot_plans(rows: list[Row], folder: Path) -> list[Path]:
    """Speed-up over ONNX Runtime in fp32 against the metric, one file for each network."""
    files = []
    for network in dict.fromkeys(row.network for row in rows):
        part = [row for row in rows if row.network == network and math.isfinite(_place(row))]
        threads = sorted({row.threads for row in part})
        first, path = part[0], folder / f"plans-{network}.png"
        titles = [f"{count} thread{'' if count == 1 else 's'}" for count in threads]
        with plots.panels(path, titles, f"{network}, batch {first.batch}: {first.samples} unseen inputs") as axes:
            for axis, count in zip(axes, threads, strict=True):
                here = [row for row in part if row.threads == count]
                plans = sorted((row for row in here if row.budgets), key=_place)
                axis.plot([_place(r) for r in plans], [_speed(r) for r in plans], color=plots.OURS, zorder=2)
                for row in here:
                    colour, marker = LOOKS.get(row.engine, (plots.OURS, "o" if row.budgets else "^"))
                    ratio = row.speedups.get(FP32)
                    errors = None if ratio is None else [[ratio.median - ratio.low], [ratio.high - ratio.median]]
                    label = _label(row, plans)
                    style: dict[str, Any] = {"fmt": marker, "color": colour, "label": label, "zorder": 3}
                    axis.errorbar(_place(row), _speed(row), errors, elinewidth=1.2, capsize=3, **style)
                axis.axhline(1, color=plots.ONNXRUNTIME, linewidth=1, linestyle=":")
                axis.set_xlabel(_axis_title(first.metric))
                axis.set_xlim(*_range([_place(row) for row in part], first.metric))
                axis.locator_params(axis="x", nbins=6)
            axes[0].set_ylim(bottom=0)  # at the end: the panels share it
            axes[0].set_ylabel("times the speed of ONNX Runtime")
            plots.legend_below(axes)
        files.append(path)
    return files


def _label(row: Row, plans: list[Row]) -> str | None:
    if not row.budgets:
        return LABELS.get(row.engine, row.engine)
    return "plans by budget" if row is plans[0] else None


def _speed(row: Row) -> float:
    return 1.0 if row.engine == FP32 else row.speedups[FP32].median


def _place(row: Row) -> float:
    """Where a row stands on the axis of the metric."""
    if row.metric == "psnr":
        return MOST_DB if row.value is None else min(MOST_DB, row.value)
    value = row.value if row.value is not None else math.nan
    return value if row.metric == "nmse" else 100 * value


def _range(places: list[float], metric: str) -> tuple[float, float]:
    """Limits of the axis: never so narrow that a difference of one image looks large."""
    low, high = min(places), max(places)
    middle, half = (low + high) / 2, max((high - low) / 2, LEAST_RANGE[metric] / 2)
    return middle - 1.08 * half, middle + 1.08 * half


def _axis_title(metric: str) -> str:
    return {
        "top1": "top-1 accuracy, % (right is better)",
        "agreement": "top-1 agreement with fp32, % (right is better)",
        "nmse": "NMSE against fp32 (left is better)",
        "psnr": f"PSNR against fp32, dB, at most {MOST_DB:g} (right is better)",
    }[metric]
