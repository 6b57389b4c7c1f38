"""Rescaling of int32 sums to int8 by an integer multiplication (``docs/algorithm.md``, I3).

A real factor f in (0, 1/4) is held as ``multiplier / 2^(32 + shift)``, the multiplier in [2^30, 2^31), so that its
error is at most 2^-31 of f. One product of 64 bits and one rounding, to nearest, ties to even; the upper 32 bits of
the product and a shift are all that a 32-bit processor needs for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_SHIFT = 30
LARGEST_FACTOR = 0.249999


@dataclass(frozen=True, eq=False)
class Rescale:
    """Factors of the channels of one tensor.

    Attributes:
        multiplier: int32 [M].
        shift: int32 [M], 1 to 30: the product is divided by 2^(32 + shift).
    """

    multiplier: np.ndarray
    shift: np.ndarray

    @property
    def factor(self) -> np.ndarray:
        """What is multiplied by, float64 [M]."""
        return np.ldexp(self.multiplier.astype(np.float64), -32 - self.shift)


def rescale_by(factors: np.ndarray) -> Rescale:
    """Fixed-point form of real factors [M].

    Raises:
        ValueError: a factor is negative, not finite, or 1/4 or more.
    """
    factors = np.asarray(factors, np.float64).reshape(-1)
    if not (np.isfinite(factors).all() and (factors >= 0).all() and (factors <= LARGEST_FACTOR).all()):
        raise ValueError(f"factors of a rescaling must lie in [0, 1/4), found {factors.min()} to {factors.max()}")
    _, exponent = np.frexp(factors)
    shift = np.clip(-1 - exponent, 1, MAX_SHIFT)
    multiplier = np.rint(np.ldexp(factors, 32 + shift)).astype(np.int64)
    carried = multiplier == 1 << 31
    return Rescale(np.where(carried, 1 << 30, multiplier).astype(np.int32), (shift - carried).astype(np.int32))


def round_shift(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """value / 2^shift to nearest, ties to even, of int64 value; shift >= 1."""
    value, shift = np.asarray(value, np.int64), np.asarray(shift, np.int64)
    odd = (value >> shift) & 1
    return (value + (np.int64(1) << (shift - 1)) - 1 + odd) >> shift


def round_divide(value: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """value / count to nearest, ties to even, of int64 value and count > 0."""
    value, count = np.asarray(value, np.int64), np.asarray(count, np.int64)
    quotient, rest = np.divmod(value, count)
    up = (2 * rest > count) | ((2 * rest == count) & (quotient & 1 == 1))
    return quotient + up


def requantise(sums: np.ndarray, rescale: Rescale, low: int = -128, high: int = 127) -> np.ndarray:
    """int8 of int32 sums [..., M]: rescaled, rounded, limited to [low, high]."""
    product = np.asarray(sums, np.int64) * rescale.multiplier.astype(np.int64)
    return np.clip(round_shift(product, 32 + rescale.shift.astype(np.int64)), low, high).astype(np.int8)
