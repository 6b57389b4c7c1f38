"""Estimates of repetition from a bounded sample, against all vectors."""

from __future__ import annotations

import numpy as np
import pytest

from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import analyse, make_planes
from adr_tvm.hashing.vector_statistics import VectorStatistics
from adr_tvm.hashing.vectors import neuron_vectors, vectors_at
from adr_tvm.planner import repetition as module
from adr_tvm.planner.repetition import Sample, draw_sample, repetition
from adr_tvm.settings import ReuseSetting

CONV = ConvGeometry(12, 10, 20, 3, 3, 8, strides=(2, 1), padding=(1, 0, 1, 2))
SETTINGS = [
    ReuseSetting(L=8, H=5),
    ReuseSetting(L=8, H=5, scope="batch"),
    ReuseSetting("segment", L=18, H=6),
    ReuseSetting("row", H=4, scope="batch"),
    ReuseSetting("row", L=1, H=1, hash="exact"),
    ReuseSetting("pixel", L=8, H=1, hash="exact", scope="batch"),
]


def data(count: int, geometry: ConvGeometry = CONV, kinds: int = 6) -> np.ndarray:
    """Images of few kinds of pixels, some with noise, with zeros, a NaN and an infinity."""
    rng = np.random.default_rng(1)
    some = rng.standard_normal((kinds, geometry.C))
    x = some[rng.integers(kinds, size=(count, geometry.H, geometry.W))]
    x[:, ::3] += 0.2 * rng.standard_normal(x[:, ::3].shape)
    x[:, 2:4, 2:4] = 0
    x[0, 5, 5, 3], x[1, 6, 1, 0] = np.nan, np.inf
    return x.astype(np.float32)


def planes_of(vectors: np.ndarray, setting: ReuseSetting):
    statistics = VectorStatistics(*vectors.shape[1:], 0)
    statistics.update(vectors)
    return make_planes(setting.hash, setting.H, statistics, 0)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_all_vectors(setting):
    x = data(4)
    vectors = neuron_vectors(x, CONV, setting)
    planes = planes_of(vectors, setting)
    sample = draw_sample(CONV, setting, len(x), 0)
    assert len(sample.positions) == CONV.positions(setting) and len(sample.segments) == CONV.segments(setting)
    found = repetition(x, CONV, setting, sample, planes)
    expected = analyse(vectors, planes, len(x) if setting.scope == "image" else 1)
    # r_c counts; sums of squares in fp32 products and another order.
    assert found == pytest.approx(expected, rel=1e-4) and (found[0] < 1 or setting.granularity == "row")


@pytest.mark.parametrize("setting", SETTINGS[:4], ids=str)
def test_some_vectors_are_those_of_all(setting):
    x, rng = data(3), np.random.default_rng(2)
    every = neuron_vectors(x, CONV, setting).reshape(3, CONV.positions(setting), CONV.segments(setting), -1)
    positions = np.sort(rng.choice(every.shape[1], 7, replace=False))
    segments = np.arange(every.shape[2])[-1:]
    np.testing.assert_array_equal(
        vectors_at(x, CONV, setting, positions, segments), every[:, positions][:, :, segments]
    )


def test_samples_are_bounded():
    wide = ConvGeometry(480, 640, 256, 3, 3, 64, padding=(1, 1, 1, 1))
    for setting in (ReuseSetting(L=16), ReuseSetting("segment", L=9), ReuseSetting("row")):
        sample = draw_sample(wide, setting, 2, 0)
        entries = 2 * len(sample.positions) * len(sample.segments) * wide.vector_length(setting)
        assert entries <= module.MOST_ENTRIES and len(sample.segments) == min(4, wide.segments(setting))
        assert (np.diff(sample.positions) > 0).all() and sample.positions[-1] < wide.positions(setting)
    again, other = (draw_sample(wide, ReuseSetting(L=16), 2, seed) for seed in (0, 1))
    assert not np.array_equal(again.segments, other.segments) or not np.array_equal(again.positions, other.positions)


@pytest.mark.parametrize("kinds", [10, 400])
def test_clusters_of_a_part_are_carried_on(kinds):
    """Few kinds are all seen in a quarter of the pixels; of many, more come with every pixel."""
    g = ConvGeometry(64, 64, 16, 3, 3, 8, padding=(1, 1, 1, 1))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((kinds, 16)).astype(np.float32)[rng.integers(kinds, size=(2, 64, 64))]
    setting = ReuseSetting(L=16, H=10)
    planes = planes_of(neuron_vectors(x, g, setting), setting)
    whole = repetition(x, g, setting, draw_sample(g, setting, 2, 0), planes)
    quarter = Sample(np.array([0]), np.sort(rng.choice(4096, 1024, replace=False)))
    part = repetition(x, g, setting, quarter, planes)
    assert part[0] == pytest.approx(whole[0], rel=0.25)
    assert (
        part[0]
        < 0.5
        * repetition(
            x[:, :32, :32], ConvGeometry(32, 32, 16, 1, 1, 8), setting, Sample(np.array([0]), np.arange(1024)), planes
        )[0]
    ), "the share that the part has itself is far from it"


def test_nothing_that_is_finite():
    x = np.full((2, 12, 10, 20), np.nan, np.float32)
    for setting in (SETTINGS[0], SETTINGS[5]):
        planes = planes_of(neuron_vectors(data(2), CONV, setting), setting)
        assert repetition(x, CONV, setting, draw_sample(CONV, setting, 2, 0), planes) == (1.0, 0.0)
