"""Predicted times of bare C: they order cores, settings and clusters, and refuse what bare C has not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from adr_tvm.bare_c.cost import BareCCost, neon_core
from adr_tvm.bare_c.int8_cost import Int8Cost
from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting
from adr_tvm.targets import TARGETS

LAYER = ConvGeometry(H=14, W=14, C=64, KH=5, KW=5, M=64)  # conv2 of CifarNet
RPI5 = BareCCost.of(TARGETS["rpi5"])
M4, M7 = BareCCost.of(TARGETS["cortex-m4"]), BareCCost.of(TARGETS["cortex-m7"])
PIXEL = ReuseSetting("pixel", L=16, H=8)


def test_what_it_is_of():
    assert M4.sha256 != M7.sha256
    assert "cortex-m4 at 168 MHz" in M4.source and "cortex-a76 at 2400 MHz" in RPI5.source


@pytest.mark.parametrize("model", [BareCCost, Int8Cost])
def test_vectors_and_dot_products_are_faster(model):
    times = [model.of(TARGETS[name]).dense_seconds(LAYER, 1) for name in ("cortex-m4", "cortex-a53", "rpi4", "rpi5")]
    assert times == sorted(times, reverse=True)
    unknown = replace(TARGETS["cortex-a53"], mcpu="cortex-a57", core=None)
    assert model.of(unknown).dense_seconds(LAYER, 1) == pytest.approx(times[1])  # taken for the slowest
    (ghz, cycles), (faster, fewer) = (neon_core(TARGETS[name]) for name in ("rpi4", "rpi5"))
    instructions = times[2] / times[3] / (cycles / ghz) * (fewer / faster)
    assert (instructions > 1.5) == (model is Int8Cost)


@pytest.mark.parametrize("setting", [PIXEL, ReuseSetting("segment", L=25, H=6), ReuseSetting("row", H=6)])
def test_more_clusters_and_slower_cores_take_longer(setting):
    few, many = (M4.reuse_seconds(LAYER, setting, r_c, 1) for r_c in (0.02, 0.5))
    assert M7.reuse_seconds(LAYER, setting, 0.02, 1) < few < many
    assert M4.cluster_seconds(LAYER, setting) > 0
    assert M4.reuse_seconds(LAYER, setting, 0.02, 3) == pytest.approx(3 * few)


def test_reuse_pays_where_vectors_repeat():
    dense = M4.dense_seconds(LAYER, 1)
    assert M4.reuse_seconds(LAYER, PIXEL, 0.05, 1) < dense / 2
    assert M4.reuse_seconds(LAYER, PIXEL, 1.0, 1) > dense


def test_what_bare_c_has_not_takes_for_ever():
    assert math.isinf(M4.reuse_seconds(LAYER, ReuseSetting("pixel", L=16, H=8, table="int8"), 0.1, 1))
    large = ConvGeometry(H=224, W=224, C=3, KH=3, KW=3, M=16)
    assert math.isinf(M4.reuse_seconds(large, PIXEL, 0.1, 1))
    assert math.isfinite(M4.dense_seconds(large, 1))
