"""Numbers and settings in words: the terminal table, the log and the HTML report say them the same way."""

from __future__ import annotations

import math

from adr_tvm.geometry import ConvGeometry
from adr_tvm.report.results import NetworkResult
from adr_tvm.settings import ReuseSetting

MISSING = "-"
_DROP_NAMES = {"top1": "top-1 drop", "agreement": "agreement drop", "nmse": "NMSE", "psnr": "PSNR"}


def significant(value: float, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent from 0.0001 to 100000: 12.3, 0.0456, 1234."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def milliseconds(value: float | None) -> str:
    """Three significant digits, trailing zeros kept so that columns line up; no unit."""
    if value is None:
        return MISSING
    if 0 < value < 0.01:
        return significant(value, 2)
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"


def percent(fraction: float | None) -> str:
    """0.0123 -> "1.23 %"; whole numbers without a point."""
    return MISSING if fraction is None else f"{significant(100 * fraction)} %"


def factor(value: float | None) -> str:
    """2.064 -> "2.06x"."""
    return MISSING if value is None else f"{value:.2f}x"


def number(value: float | None) -> str:
    """Three significant digits."""
    return MISSING if value is None else significant(value)


def multiply_adds(value: int | None) -> str:
    """1.23 G, 45.6 M, 789 k."""
    if value is None:
        return MISSING
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{significant(value / scale)}{unit}"
    return str(value)


def window_text(text: str, kernel: tuple[int, int], strides: tuple[int, int]) -> str:
    """``text`` and the window behind it: "..., 3x3/2"; strides that differ are both named."""
    stride = str(strides[0]) if strides[0] == strides[1] else f"{strides[0]}x{strides[1]}"
    return f"{text}, {kernel[0]}x{kernel[1]}/{stride}"


def geometry_text(geometry: ConvGeometry) -> str:
    """ "56x56x64 -> 64, 3x3/1"; a dense layer's is "4096 -> 384", or "49x768 -> 768" with 49 tokens."""
    g = geometry
    if g.W == 1 and (g.KH, g.KW) == (1, 1) and g.strides == (1, 1):
        return f"{g.C if g.H == 1 else f'{g.H}x{g.C}'} -> {g.M}"
    return window_text(f"{g.H}x{g.W}x{g.C} -> {g.M}", (g.KH, g.KW), g.strides)


def setting_text(setting: ReuseSetting | None) -> str:
    """ "pixel L=16 H=8 pca", with the options that are not the default."""
    if setting is None:
        return MISSING
    words: list[str] = [setting.granularity]
    if setting.granularity != "row":
        words.append(f"L={setting.L}")
    if setting.hash != "exact":
        words.append(f"H={setting.H}")
    words.append(setting.hash)
    if setting.scope != "image":
        words.append(f"scope={setting.scope}")
    if setting.gain:
        words.append("gain")
    if setting.table != "float32":
        words.append(setting.table)
    return " ".join(words)


def metric_name(metric: str) -> str:
    """What ``NetworkResult.drop`` is called."""
    return _DROP_NAMES.get(metric, f"{metric} drop")


def metric_value(metric: str, value: float | None) -> str:
    """A drop, bound or budget in the unit of its metric."""
    if value is None:
        return MISSING
    if metric in ("top1", "agreement"):
        return percent(value)
    return f"{significant(value)} dB" if metric == "psnr" else significant(value)


def within_budget(result: NetworkResult) -> bool | None:
    """Whether the bound (without one, the drop) keeps the budget; None where either is unknown."""
    reached = result.drop if result.bound is None else result.bound
    if reached is None or result.budget is None:
        return None
    return reached >= result.budget if result.metric == "psnr" else reached <= result.budget


def accuracy_text(result: NetworkResult) -> str:
    """ "agreement drop 0.2 % (90 % bound 0.8 % <= 1 %)"; empty where nothing was measured."""
    if result.drop is None:
        return ""
    text = f"{metric_name(result.metric)} {metric_value(result.metric, result.drop)}"
    details = []
    if result.bound is not None:
        details.append(f"90 % bound {metric_value(result.metric, result.bound)}")
    if result.budget is not None:
        kept, broken = (">=", "<") if result.metric == "psnr" else ("<=", ">")
        sign = kept if within_budget(result) else broken
        details.append(f"{sign} {metric_value(result.metric, result.budget)}")
    return f"{text} ({' '.join(details)})" if details else text


def reused_text(result: NetworkResult) -> str:
    """ "1 of 5 layers reused"."""
    return f"{len(result.reused)} of {len(result.layers)} layer{'' if len(result.layers) == 1 else 's'} reused"


def summary_line(result: NetworkResult) -> str:
    """The one line that says what came out.

    For example ``cifarnet: 2.31 ms dense -> 1.12 ms (2.06x), agreement drop 0.2 % (90 % bound 0.8 % <= 1 %),
    1 of 5 layers reused``.
    """
    predicted = " predicted, not measured" if result.predicted else ""
    if result.dense_ms is None:
        time = "not timed"
    elif result.reuse_ms is None or not result.reused:
        time = f"{milliseconds(result.dense_ms)} ms dense{predicted}"
    else:
        speedup = factor(result.speedup)
        time = f"{milliseconds(result.dense_ms)} ms dense -> {milliseconds(result.reuse_ms)} ms ({speedup}){predicted}"
    parts = [time, accuracy_text(result) if result.reused else "", reused_text(result)]
    return f"{result.model}: {', '.join(part for part in parts if part)}"
