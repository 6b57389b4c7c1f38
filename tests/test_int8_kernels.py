"""The C kernels of int8 networks give the bytes of the NumPy reference, in all of their forms."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
from int8_kernels import (
    Add,
    Average,
    Layer,
    Logits,
    Output,
    Pointer,
    Reuse,
    Scale,
    library,
    reuse_fields,
    window,
)

from adr_tvm.bare_c.int8_packing import (
    convolution_matrix,
    pack_planes,
    pack_weights,
    rescale_table,
    reuse_matrix,
    reuse_memory,
)
from adr_tvm.geometry import ConvGeometry
from adr_tvm.int8 import operators, reuse
from adr_tvm.int8.fixed_point import Rescale, requantise, rescale_by, round_shift
from adr_tvm.settings import ReuseSetting

GEOMETRIES = (
    ConvGeometry(7, 6, 3, 3, 3, 5, padding=(1, 1, 1, 1)),
    ConvGeometry(8, 8, 16, 3, 3, 16, strides=(2, 2), padding=(0, 0, 1, 1)),
    ConvGeometry(5, 9, 8, 1, 1, 12),
    ConvGeometry(9, 7, 4, 5, 5, 8, padding=(2, 2, 2, 2)),
    ConvGeometry(11, 10, 6, 3, 2, 3, strides=(2, 1), padding=(3, 2, 2, 1), dilation=(2, 3)),
    ConvGeometry(1, 13, 1, 1, 4, 2, strides=(1, 2), padding=(0, 4, 0, 5)),
    ConvGeometry(4, 4, 10, 3, 3, 9, padding=(1, 1, 1, 1)),
)
FORMS = pytest.mark.parametrize("form", ["portable", "simd", "neon", "dotprod"])


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape).astype(np.int8)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-127, 128, shape).astype(np.int8)


def some_rescale(rng: np.random.Generator, M: int, K: int) -> Rescale:
    return rescale_by(rng.uniform(0.2, 2, M) / (60 * np.sqrt(K) + 60))


@FORMS
@pytest.mark.parametrize("g", GEOMETRIES)
@pytest.mark.parametrize("residual", [False, True])
def test_convolution(g: ConvGeometry, residual: bool, form: str) -> None:
    rng = np.random.default_rng(g.K)
    x, w = integers(rng, 1, g.H, g.W, g.C), weights(rng, g.KH, g.KW, g.C, g.M)
    bias = rng.integers(-5000, 5000, g.M).astype(np.int32)
    rescale, other = some_rescale(rng, g.M, g.K), integers(rng, 1, g.OH, g.OW, g.M)
    sums, extra = operators.conv2d_sums(x, w, bias, g), None
    if residual:
        extra = rng.integers(1 << 20, 1 << 23, g.M).astype(np.int32), rng.integers(12, 24, g.M).astype(np.int32)
        sums = sums + round_shift(other.astype(np.int64) * extra[0], extra[1])
    expected = requantise(sums, rescale, -100, 90)
    table = rescale_table(bias, rescale, extra)
    found = Output(expected.size, np.int8)
    weight = pack_weights(convolution_matrix(w))
    scratch = Output(8 * -(-g.K // 4) + 8 * -(-g.M // 2), np.int32)
    library(form).adr_conv2d_i8(
        byref(Layer(window(g), -100, 90, table.shape[1])),
        Pointer(x),
        Pointer(other if residual else None),
        Pointer(weight),
        Pointer(table),
        Pointer(found.memory),
        Pointer(scratch.memory),
    )
    assert scratch.values is not None
    np.testing.assert_array_equal(found.values.reshape(expected.shape), expected)


@FORMS
@pytest.mark.parametrize("g", GEOMETRIES)
def test_depthwise(g: ConvGeometry, form: str) -> None:
    rng = np.random.default_rng(g.K)
    g = ConvGeometry(g.H, g.W, g.C, g.KH, g.KW, g.C, g.strides, g.padding, g.dilation)
    x, w = integers(rng, 1, g.H, g.W, g.C), weights(rng, g.KH, g.KW, g.C)
    bias, rescale = rng.integers(-500, 500, g.C).astype(np.int32), some_rescale(rng, g.C, g.KH * g.KW)
    expected = requantise(operators.depthwise_sums(x, w, bias, g), rescale, -128, 127)
    found, table = Output(expected.size, np.int8), rescale_table(bias, rescale)
    library(form).adr_depthwise_i8(
        byref(Layer(window(g), -128, 127, 3)), Pointer(x), Pointer(w), Pointer(table), Pointer(found.memory)
    )
    np.testing.assert_array_equal(found.values.reshape(expected.shape), expected)


@FORMS
@pytest.mark.parametrize("K, M", [(1, 1), (4, 2), (10, 3), (64, 10), (67, 7)])
def test_dense(K: int, M: int, form: str) -> None:
    rng = np.random.default_rng(K)
    g = ConvGeometry(1, 1, K, 1, 1, M)
    x, w, bias = weights(rng, 1, 1, 1, K), weights(rng, 1, 1, K, M), rng.integers(-500, 500, M).astype(np.int32)
    rescale, scale = some_rescale(rng, M, K), rng.uniform(1e-4, 1e-3, M).astype(np.float32)
    sums = operators.conv2d_sums(x, w, bias, g)
    found, logits = Output(M, np.int8), Output(M, np.float32)
    weight, table = pack_weights(convolution_matrix(w)), rescale_table(bias, rescale)
    scratch = Output(2 * -(-K // 4) + M + M % 2, np.int32)
    rest = Pointer(found.memory), Pointer(scratch.memory)
    library(form).adr_dense_i8(
        byref(Layer(window(g), -128, 127, 3)), Pointer(x), Pointer(weight), Pointer(table), *rest
    )
    rest = Pointer(scale), Pointer(logits.memory), Pointer(scratch.memory)
    library(form).adr_logits_i8(byref(Logits(K, M)), Pointer(x), Pointer(weight), Pointer(bias), *rest)
    assert scratch.values is not None
    np.testing.assert_array_equal(found.values, requantise(sums, rescale).reshape(-1))
    np.testing.assert_array_equal(logits.values, operators.dequantise(sums, scale).reshape(-1))


@pytest.mark.parametrize("g", GEOMETRIES)
def test_pools(g: ConvGeometry) -> None:
    rng = np.random.default_rng(g.K)
    x, out = integers(rng, 1, g.H, g.W, g.C), g.OH * g.OW * g.C
    largest, average = Output(out, np.int8), Output(out, np.int8)
    library().adr_max_pool_i8(byref(window(g)), Pointer(x), Pointer(largest.memory))
    np.testing.assert_array_equal(largest.values, operators.max_pool(x, g).reshape(-1))
    rescale = rescale_by(np.array([1.3 / (g.KH * g.KW * 6)]))
    fields = window(g), int(rescale.multiplier[0]), int(rescale.shift[0]), -128, 120
    library().adr_average_pool_i8(byref(Average(*fields)), Pointer(x), Pointer(average.memory))
    np.testing.assert_array_equal(average.values, operators.average_pool(x, g, rescale, -128, 120).reshape(-1))


def test_elementwise() -> None:
    rng = np.random.default_rng(1)
    a, b, found = integers(rng, 999), integers(rng, 999), Output(999, np.int8)
    library().adr_add_i8(
        byref(Add(999, 3_000_001, 1_234_568, 22, -7, 100)), Pointer(a), Pointer(b), Pointer(found.memory)
    )
    np.testing.assert_array_equal(found.values, operators.add(a, b, (3_000_001, 1_234_568), 22, -7, 100))
    halves = np.arange(-300, 300, 0.5)
    x = np.concatenate([halves * 0.25, rng.normal(0, 30, 300), [np.nan, np.inf, -np.inf, 1e30]]).astype(np.float32)
    for scale in (0.25, 0.37):
        found, back = Output(x.size, np.int8), Output(x.size, np.float32)
        library().adr_quantise_i8(byref(Scale(x.size, np.float32(1 / scale))), Pointer(x), Pointer(found.memory))
        np.testing.assert_array_equal(found.values, operators.quantise(x, scale))
        library().adr_dequantise_i8(byref(Scale(x.size, scale)), Pointer(found.memory), Pointer(back.memory))
        np.testing.assert_array_equal(back.values, operators.dequantise(found.values, np.float32(scale)))


def repeating(rng: np.random.Generator, g: ConvGeometry) -> np.ndarray:
    """Images whose pixels are a few vectors with noise, and some zeros."""
    kinds = integers(rng, 6, g.C)
    kinds[0] = 0
    picked = kinds[rng.integers(0, 6, (2, g.H, g.W))]
    noisy = np.clip(picked.astype(int) + rng.integers(-6, 7, picked.shape), -128, 127).astype(np.int8)
    return np.where(rng.random((2, g.H, g.W, 1)) < 0.7, picked, noisy)


def planes_of(rng: np.random.Generator, g: ConvGeometry, setting: ReuseSetting) -> reuse.IntegerPlanes | None:
    if setting.hash == "exact":
        return None
    S, L = g.segments(setting), g.vector_length(setting)
    planes = rng.standard_normal((S, L, setting.H)).astype(np.float32)
    thresholds = rng.normal(0, 0.5, (S, setting.H)).astype(np.float32)
    thresholds[0, 0] = np.inf
    return reuse.quantise_planes(planes, thresholds, 0.02)


@FORMS
@pytest.mark.parametrize("g", GEOMETRIES)
@pytest.mark.parametrize(
    "setting",
    [
        ReuseSetting("pixel", 4, 5, "gaussian"),
        ReuseSetting("pixel", 16, 8, "pca"),
        ReuseSetting("pixel", 3, 3, "learned"),
        ReuseSetting("pixel", 8, 1, "exact"),
        ReuseSetting("pixel", 4, 6, "pca", max_clusters=14),
        ReuseSetting("segment", 10, 6, "learned"),
        ReuseSetting("segment", 7, 3, "pca"),
        ReuseSetting("segment", 4, 1, "exact"),
        ReuseSetting("segment", 9, 4, "gaussian", max_clusters=40),
        ReuseSetting("row", 1, 1, "exact"),
        ReuseSetting("row", 1, 1, "exact", max_clusters=20),
    ],
    ids=str,
)
def test_reuse(g: ConvGeometry, setting: ReuseSetting, form: str) -> None:
    rng = np.random.default_rng(g.K)
    S, L, bits = g.segments(setting), g.vector_length(setting), 0 if setting.hash == "exact" else setting.H
    w, bias = weights(rng, g.KH, g.KW, g.C, g.M), rng.integers(-5000, 5000, g.M).astype(np.int32)
    shift = -1 if setting.hash == "exact" else reuse.table_shift_of(w, g, setting)
    rescale, planes, memory = some_rescale(rng, g.M, g.K), planes_of(rng, g, setting), reuse_memory(g, setting, shift)
    weight, table = pack_weights(reuse_matrix(w, setting.granularity, S, L)), rescale_table(bias, rescale)
    packed = None if planes is None else pack_planes(planes.planes)
    layer = Layer(window(g), -128, 127, 3)
    for image in repeating(rng, g):
        expected = reuse.reuse_conv2d(image[None], w, bias, g, setting, planes, shift)
        found, scratch, counts = (
            Output(g.rows * g.M, np.int8),
            Output(memory.scratch // 4, np.int32),
            Output(2, np.int32),
        )
        getattr(library(form), f"adr_reuse_{setting.granularity}_i8")(
            byref(Reuse(layer, S, L, bits, *reuse_fields(memory))),
            *map(Pointer, (image, weight, table, packed, None if planes is None else planes.thresholds)),
            *map(Pointer, (found.memory, scratch.memory, counts.memory)),
        )
        assert scratch.values is not None
        np.testing.assert_array_equal(found.values, requantise(expected.sums, rescale).reshape(-1))
        assert counts.values.tolist() == [int(expected.seen[0]), int(expected.reused[0])]
