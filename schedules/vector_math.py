"""Transcendental functions as expressions that vectorise; TVM's call the C library one element at a time.

exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln 2 / 2 and a polynomial for exp(r) (Cephes' coefficients);
its relative error is below 2e-7. Overflow gives infinity, values below 2^-126 give 0, NaN stays NaN.
"""

from __future__ import annotations

from tvm import tirx

LOG2E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts: products of small n with the first are exact
POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOWEST, HIGHEST = -87.33654, 88.72284  # where the result leaves the normal range


def exp(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """e^x of a float32 scalar or vector expression."""
    # Of two operands of which one is NaN, max and min give the second.
    clipped = tirx.max(_f(LOWEST), tirx.min(_f(HIGHEST), x))
    n = tirx.floor(clipped * _f(LOG2E) + _f(0.5))
    r = clipped - n * _f(LN2_HIGH) - n * _f(LN2_LOW)
    p = _f(POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = p * r + _f(coefficient)
    p = p * r * r + r + _f(1)
    # In two halves: 2^128 is no float32, but some products with it are.
    half = tirx.floor(n * _f(0.5))
    y = p * _power_of_two(half) * _power_of_two(n - half)
    return tirx.Select(x > _f(HIGHEST), _f(float("inf")), tirx.Select(x < _f(LOWEST), _f(0), y))


def sigmoid(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """1 / (1 + e^-x)."""
    return _f(1) / (_f(1) + exp(-x))


def _f(value: float) -> tirx.PrimExpr:
    return tirx.const(value, "float32")


def _power_of_two(n: tirx.PrimExpr) -> tirx.PrimExpr:
    bits = (tirx.Cast("int32", n) + tirx.const(127, "int32")) << tirx.const(23, "int32")
    return tirx.reinterpret("float32", bits)
