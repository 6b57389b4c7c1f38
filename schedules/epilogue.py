"""The epilogue of a GEMM: bias, then activation, on the accumulator that is still in registers."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from adr_tvm.activation import Activation

LIMIT = 3.0e38  # a bound beyond is none


def activation_expr(activation: Activation) -> Callable[[tirx.PrimExpr], tirx.PrimExpr]:
    """The activation as a function of one TIR expression (float32 scalar or vector)."""
    if activation.kind == "clip":
        return lambda v: _bounded(v, activation.low, activation.high)
    if activation.kind == "leaky_relu":
        return lambda v: tirx.Select(v > 0, v, v * tirx.const(activation.slope, "float32"))
    return lambda v: v


def _bounded(v: tirx.PrimExpr, low: float, high: float) -> tirx.PrimExpr:
    # Bounds at the edge of float32 are not there at all: a plain ReLU must not cost a second comparison.
    if low > -LIMIT:
        v = tirx.max(v, tirx.const(low, "float32"))
    if high < LIMIT:
        v = tirx.min(v, tirx.const(high, "float32"))
    return v
