"""Gradients of convolutions and dense layers against torch."""

from __future__ import annotations

import pytest
from conv_gradients import check
from kernel_harness import GEOMETRIES

from adr_tvm.geometry import ConvGeometry


@pytest.mark.parametrize("name", GEOMETRIES)
def test_against_torch(name):
    check(GEOMETRIES[name], batch=2)


@pytest.mark.parametrize(
    ("group", "groups"),
    [
        (ConvGeometry(7, 6, 3, 3, 3, 5, padding=(1, 1, 1, 1)), 4),
        (ConvGeometry(9, 8, 1, 3, 3, 1, strides=(2, 2), padding=(1, 1, 1, 1)), 20),
        (ConvGeometry(9, 8, 2, 3, 2, 4, strides=(1, 2), padding=(0, 1, 2, 0), dilation=(2, 1)), 3),
    ],
)
def test_groups(group, groups):
    check(group, batch=3, groups=groups)
