"""Dynamic loss scaling, and the checks and kernels that it decides by."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from cuda_emulator import emulated_cuda

from adr_tvm._tvm import cpu_target
from adr_tvm.schedules.cuda import finite_check as cuda_finite_check
from adr_tvm.schedules.finite_check import CHUNK, finite_check
from adr_tvm.train.loss_scaling import LossScaling, ScalingRule
from tests.test_cuda_kernels import compiled, on_device

RULE = ScalingRule(start=64, grow_after=3, least=1, most=128)


def scales(answers: str) -> list[float]:
    """Scales after each step; ``.`` is a good one, ``x`` an overflow."""
    scaling = LossScaling.begin(RULE)
    found = []
    for answer in answers:
        scaling.observe(answer == ".")
        found.append(scaling.scale)
    return found


def test_an_overflow_halves_and_good_steps_in_a_row_double():
    assert scales("..") == [64, 64]
    assert scales("...") == [64, 64, 128]
    assert scales("..x...") == [64, 64, 32, 32, 32, 64], "an overflow begins the count anew"
    assert scales("......") == [64, 64, 128, 128, 128, 128], "never above the most"
    assert scales("xxxxxxxx")[-3:] == [1, 1, 1], "never below the least"


def test_what_was_skipped_is_counted():
    scaling = LossScaling.begin(RULE)
    for finite in (True, False, True, False, True):
        scaling.observe(finite)
    assert (scaling.skipped, scaling.good, scaling.scale) == (2, 1, 16)


@pytest.mark.parametrize(
    "wrong", [{"start": 0.0}, {"least": 2.0**20}, {"most": 2.0}, {"grow_after": 0}, {"least": float("nan")}]
)
def test_rules_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"(scales|grow_after)"):
        ScalingRule(**wrong)


SIZE = CHUNK + 37  # two tasks, the last of them no multiple of a vector
PLACES = {"all finite": None, "first": 0, "in a vector": 100, "in the tail": SIZE - 1}


def test_one_entry_that_is_not_finite_is_found():
    """Large, small and subnormal numbers are finite; the rest of control stays."""
    gradient = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    gradient[3:7] = 3e38, -3e38, 1e-45, 0
    control = np.array([0.1, 3, 0.5, 1], np.float32)
    here = tvm.compile(finite_check(SIZE).with_attr("global_symbol", "main"), cpu_target())["main"]
    with emulated_cuda():
        there = compiled(cuda_finite_check.finite_check(SIZE))
        for place, at in PLACES.items():
            for value in (np.inf, -np.inf, np.nan):
                given = gradient.copy()
                if at is not None:
                    given[at] = value
                found, on_gpu = tvm.runtime.tensor(control), on_device(given, control)
                here(tvm.runtime.tensor(given), found)
                there(*on_gpu)
                for each in (found, on_gpu[1]):
                    np.testing.assert_array_equal(each.numpy(), [*control[:3], float(at is None)], err_msg=place)
