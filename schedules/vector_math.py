"""Transcendental functions as expressions that vectorise; TVM's call the C library one element at a time.

exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln 2 / 2 and a polynomial for exp(r) (Cephes' coefficients);
its relative error is below 2e-7. Overflow gives infinity, values below 2^-126 give 0, NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

LOG2E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts: products of small n with the first are exact
POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOGARITHM = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    *(2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
FOURTH_ROOT = 0x4F584000  # 5/4 of the bits of 1, and what makes the largest error smallest
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
    inside = tirx.Select(x < _f(LOWEST), _splat(0, x), y)
    return tirx.Select(x > _f(HIGHEST), _splat(float("inf"), x), inside)


def sigmoid(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """1 / (1 + e^-x)."""
    return _f(1) / (_f(1) + exp(-x))


def _f(value: float) -> tirx.PrimExpr:
    return tirx.const(value, "float32")


def _power_of_two(n: tirx.PrimExpr) -> tirx.PrimExpr:
    bits = (tirx.Cast(_like("int32", n), n) + tirx.const(127, "int32")) << tirx.const(23, "int32")
    return tirx.reinterpret(_like("float32", n), bits)


def log(x: tirx.PrimExpr, bind: Callable[[tirx.PrimExpr], tirx.PrimExpr]) -> tirx.PrimExpr:
    """Natural logarithm of a normal positive float32 scalar or vector expression (Cephes' polynomial); NaN stays.

    Args:
        bind: names an expression that is used more than once.
    """
    bits = bind(tirx.reinterpret(_like("int32", x), x) & _i(0x7FFFFFFF))
    # x = 2^n m with sqrt(1/2) <= m < sqrt(2).
    offset = bind(bits - _i(0x3F3504F3))
    n = bind(tirx.Cast(_like("float32", x), offset >> _i(23)))
    m = bind(tirx.reinterpret(_like("float32", x), bits - (offset & _i(-(1 << 23)))) - _f(1))
    p = _f(LOGARITHM[0])
    for coefficient in LOGARITHM[1:]:
        p = p * m + _f(coefficient)
    y = p * m * m * m + n * _f(LN2_LOW) - _f(0.5) * m * m
    return tirx.Select(tirx.isnan(x), x, m + y + n * _f(LN2_HIGH))


def inverse_fourth_root(x: tirx.PrimExpr, bind: Callable[[tirx.PrimExpr], tirx.PrimExpr]) -> tirx.PrimExpr:
    """x^(-1/4) of a normal positive float32 scalar or vector expression, by multiplications alone.

    A guess from the bits (within 3.3 %), then Newton's step y + y (1 - x y^4) / 4 three times: relative error 3e-7. A
    division and two square roots, which it replaces, take five times as long.

    Args:
        bind: names an expression that is used more than once.
    """
    bits = tirx.reinterpret(_like("int32", x), x)
    y = bind(tirx.reinterpret(_like("float32", x), _i(FOURTH_ROOT) - (bits >> _i(2))))
    for _ in range(3):
        square = bind(y * y)
        y = bind(y * (_f(1.25) - _f(0.25) * x * (square * square)))
    return y


def inverse_power(
    x: tirx.PrimExpr, exponent: float, bind: Callable[[tirx.PrimExpr], tirx.PrimExpr]
) -> tuple[tirx.PrimExpr, tirx.PrimExpr]:
    """x^-exponent and x^-1 of a normal positive float32 scalar or vector expression.

    Args:
        exponent: multiples of 1/4 up to 1 need no logarithm.
        bind: names an expression that is used more than once.
    """
    if exponent in (0.25, 0.5, 0.75):
        root = inverse_fourth_root(x, bind)
        square = bind(root * root)
        powers = {0.25: root, 0.5: square, 0.75: square * root}
        return bind(powers[exponent]), bind(square * square)
    inverse = bind(_f(1) / x)
    return inverse if exponent == 1 else bind(exp(bind(_f(-exponent) * log(x, bind)))), inverse


def _i(value: int) -> tirx.PrimExpr:
    return tirx.const(value, "int32")


def _splat(value: float, x: tirx.PrimExpr) -> tirx.PrimExpr:
    """A constant in as many lanes as x has."""
    lanes = str(x.ty.dtype).partition("x")[2]
    return tirx.Broadcast(_f(value), int(lanes)) if lanes else _f(value)


def _like(dtype: str, x: tirx.PrimExpr) -> str:
    """A type of as many lanes as x has."""
    lanes = str(x.ty.dtype).partition("x")[2]
    return f"{dtype}x{lanes}" if lanes else dtype
