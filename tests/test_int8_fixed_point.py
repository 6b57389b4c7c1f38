"""Rounding and rescaling of integers, against exact fractions; scales of activations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adr_tvm.int8.fixed_point import requantise, rescale_by, round_divide, round_shift
from adr_tvm.int8.ranges import RangeObserver
from adr_tvm.int8.reuse import quantise_planes

SUMS = st.integers(-(2**31), 2**31 - 1)


@given(SUMS, st.integers(1, 30))
def test_shifts_round_to_even(value, shift):
    assert round_shift(np.array(value), shift) == round(Fraction(value, 2**shift))


@given(st.integers(-(2**20), 2**20), st.integers(1, 5000))
def test_divisions_round_to_even(value, count):
    assert round_divide(np.array(value), count) == round(Fraction(value, count))


@given(SUMS, st.floats(1e-9, 0.2499))
def test_rescaling_is_one_rounding_of_a_factor_of_31_bits(total, factor):
    rescale = rescale_by(np.array([factor]))
    held = Fraction(int(rescale.multiplier[0]), 2 ** (32 + int(rescale.shift[0])))
    assert abs(held - Fraction(factor)) <= Fraction(factor) / 2**30 + Fraction(1, 2**62)
    expected = min(127, max(-128, round(total * held)))
    assert requantise(np.array([total]), rescale)[0] == expected


@pytest.mark.parametrize("factor", [-0.1, 0.25, 1.0, np.nan, np.inf])
def test_factors_out_of_range(factor):
    with pytest.raises(ValueError, match="factors of a rescaling"):
        rescale_by(np.array([factor]))


def test_scales_hold_what_is_spread_evenly():
    even, nothing = RangeObserver(), RangeObserver()
    for batch in np.split(np.random.default_rng(0).uniform(-3, 3, 20_000), 10):
        even.update(batch)
    nothing.update(np.zeros(5))
    assert even.scale() == pytest.approx(3 / 127, rel=0.02)
    assert nothing.scale() == 1 / 127


def test_a_scale_is_the_best_of_many():
    values = np.random.default_rng(1).laplace(0, 1, 50_000).astype(np.float32)
    observer = RangeObserver()
    for start, end in ((0, 100), (100, 20_000), (20_000, 50_000)):  # the range grows on the way
        observer.update(values[start:end])

    def error(scale):
        return float(np.square(values - np.clip(np.rint(values / scale), -127, 127) * scale).mean())

    best = min(error(top / 127) for top in np.linspace(0.5, observer.largest, 200))
    assert error(observer.scale()) <= 1.02 * best < error(observer.largest / 127)


def test_planes_keep_the_side_of_a_vector():
    rng = np.random.default_rng(2)
    planes, thresholds = rng.standard_normal((3, 8, 5)), rng.normal(0, 1, (3, 5))
    thresholds[1, 2] = np.inf
    integer = quantise_planes(planes, thresholds, 0.02)
    vectors = rng.integers(-128, 128, (4000, 3, 8))
    dots = np.einsum("nsl,slh->nsh", vectors * 0.02, planes)
    bits = np.einsum("nsl,slh->nsh", vectors, integer.planes.astype(int)) > integer.thresholds
    assert integer.planes.dtype == np.int8 and integer.thresholds.dtype == np.int32
    assert np.mean(bits == (dots > thresholds)) > 0.99 and not bits[:, 1, 2].any()
