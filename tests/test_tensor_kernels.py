"""Kernels without a layer: transposes of all forms, depthwise tiles, and that all compile for other processors."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from onnx import helper
from onnx_graphs import make_model, save, weights_of
from relax_modules import TARGET, floats
from tvm.target import Target

from adr_tvm.activation import Activation
from adr_tvm.build import build_module, canonical_module
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.lowering_permute import swapped_runs
from adr_tvm.reference import conv2d
from adr_tvm.schedules.depthwise_conv2d import depthwise_conv2d, pack_depthwise_weights
from adr_tvm.schedules.permute import permute
from adr_tvm.schedules.register_tile import AVX2, AVX512, NEON, SSE, isa_of
from adr_tvm.schedules.sliding_window import rows_per_task, spans_of

MATRICES = [
    *((1, 3, 1000, 1), (2, 1000, 3, 1), (1, 1, 40, 1), (3, 4, 34, 1), (1, 6, 17, 1), (2, 20, 5, 1)),
    *((1, 16, 16, 1), (2, 37, 50, 1), (1, 1000, 17, 1), (5, 7, 9, 1), (2, 7, 100, 1), (1, 9, 2, 6), (2, 3, 4, 40)),
]


def kernel_of(func):
    return tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), TARGET)["main"]


@pytest.mark.parametrize(("outer", "R", "C", "K"), MATRICES)
def test_permute(outer, R, C, K):
    x = floats(2, outer, R, C, K)
    y = tvm.runtime.tensor(np.full((2, outer * R * C * K), np.nan, "float32"))
    kernel_of(permute(outer, R, C, K))(tvm.runtime.tensor(x.reshape(2, -1)), y)
    np.testing.assert_array_equal(y.numpy().reshape(2, outer, C, R, K), x.transpose(0, 1, 3, 2, 4))


def test_swapped_runs():
    assert swapped_runs([2, 3, 1]) == ([], [1], [2, 3], [])
    assert swapped_runs([1, 2, 4, 3]) == ([1, 2], [3], [4], [])
    assert swapped_runs([1, 3, 2, 4, 5]) == ([1], [2], [3], [4, 5])
    assert swapped_runs([3, 2, 1]) is None
    assert swapped_runs([2, 1, 4, 3]) is None
    assert swapped_runs([1, 2]) is None, "nothing moves"


DEPTHWISE = {
    "3x3": ConvGeometry(9, 21, 37, 3, 3, 37, padding=(1, 1, 1, 1)),
    "3x3/2": ConvGeometry(12, 33, 16, 3, 3, 16, strides=(2, 2), padding=(0, 0, 1, 1)),
    "5x5": ConvGeometry(7, 6, 40, 5, 5, 40, padding=(2, 2, 2, 2)),
    "few channels": ConvGeometry(5, 40, 3, 3, 3, 3, padding=(1, 1, 1, 1)),
    "dilated": ConvGeometry(9, 30, 20, 3, 3, 20, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "no padding": ConvGeometry(40, 20, 8, 3, 1, 8, strides=(1, 2)),
    "wide padding": ConvGeometry(3, 2, 17, 3, 3, 17, padding=(4, 5, 3, 4)),
}


@pytest.mark.parametrize("isa", [AVX512, AVX2, SSE], ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name, isa):
    g = DEPTHWISE[name]
    x, w, bias = floats(2, g.H, g.W, g.C), floats(g.KH, g.KW, 1, g.C), floats(g.C)
    y = tvm.runtime.tensor(np.full((2, g.OH, g.OW, g.C), np.nan, "float32"))
    run = kernel_of(depthwise_conv2d(g, Activation.relu6(), isa))
    run(*map(tvm.runtime.tensor, (x, pack_depthwise_weights(w, isa.lanes), bias)), y)
    one = ConvGeometry(g.H, g.W, 1, g.KH, g.KW, 1, g.strides, g.padding, g.dilation)
    for c in range(g.C):
        expected = conv2d(x[..., c : c + 1], w[..., c : c + 1], bias[c : c + 1], one, Activation.relu6())
        np.testing.assert_allclose(y.numpy()[..., c : c + 1], expected, rtol=1e-5, atol=1e-5)


def test_spans_cover_a_row_and_ask_only_at_its_ends():
    for g in DEPTHWISE.values():
        for isa in (AVX512, AVX2, NEON, SSE):
            spans = spans_of(g, isa)
            assert (spans.count - 1) * spans.pixels < g.OW <= spans.count * spans.pixels
            for s in range(spans.first, spans.last):
                left = s * spans.pixels * g.strides[1] - g.padding[1]
                right = ((s + 1) * spans.pixels - 1) * g.strides[1] - g.padding[1] + (g.KW - 1) * g.dilation[1]
                assert left >= 0 and right < g.W and (s + 1) * spans.pixels <= g.OW


def test_tasks_are_worth_starting():
    assert rows_per_task(56, 72576) == 7
    assert rows_per_task(6, 7000) == 6, "a small image is one task"
    assert rows_per_task(13, 100_000) == 7


OTHERS = {
    "aarch64": ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}, NEON),
    "x86-64-v2": ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"}, SSE),
    "x86-64-v3": ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"}, AVX2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_processors(name, tmp_path):
    description, isa = OTHERS[name]
    target = Target(description)
    assert isa_of(target) == isa
    module = canonical_module(check_model(save(everything(), tmp_path)), target)
    build_module(module, target)


def everything():
    """A network with each of the kernels."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        node("InstanceNormalization", ["c1", "scale", "shift"], ["n1"], "norm"),
        node("Conv", ["n1", "w2"], ["c2"], "depthwise", group=12, pads=[1, 1, 1, 1]),
        node("MaxPool", ["c2"], ["p1"], "pool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        node("LRN", ["p1"], ["l1"], "lrn", size=3),
        node("Pad", ["l1", "pads"], ["d1"], "pad", mode="reflect"),
        node("AveragePool", ["d1"], ["a1"], "average", kernel_shape=[2, 2]),
        node("Sigmoid", ["a1"], ["s1"], "sigmoid"),
        node("Conv", ["s1", "w3"], ["c3"], "grouped", group=3),
        node("GlobalAveragePool", ["c3"], ["g1"], "global"),
        node("Flatten", ["g1"], ["f1"], "flat"),
        node("Softmax", ["f1"], ["y"], "softmax", axis=1),
    ]
    weights = weights_of(w1=(12, 3, 3, 3), w2=(12, 1, 3, 3), w3=(9, 4, 1, 1), scale=(12,), shift=(12,))
    weights["pads"] = np.array([0, 0, 1, 1, 0, 0, 2, 1], "int64")
    return make_model(nodes, {"x": ["N", 3, 21, 18]}, {"y": ["N", 9]}, weights)
