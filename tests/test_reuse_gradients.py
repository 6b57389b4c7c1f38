"""Backward kernels of reused layers against the reference, given the kernels' own ids."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from conv_gradients import expected as dense_gradients
from kernel_harness import GEOMETRIES, Layer, sample_input, sample_tensors
from reuse_gradients import check, run, run_dense
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import cpu_features, cpu_target, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.build import build_module
from adr_tvm.geometry import ConvGeometry, dense_geometry
from adr_tvm.gradients import register_all
from adr_tvm.schedules import gradient_layout
from adr_tvm.schedules.gradient_layout import GradientLayout
from adr_tvm.schedules.register_tile import AVX512
from adr_tvm.settings import ReuseSetting

PIXEL = ReuseSetting("pixel", L=8, H=4)
SEGMENT = ReuseSetting("segment", L=10, H=4)
ROW = ReuseSetting("row", H=4)
WIDE = ConvGeometry(6, 7, 40, 3, 3, 70, padding=(1, 1, 1, 1))
SHARED = ConvGeometry(9, 7, 20, 2, 2, 70, padding=(1, 0, 0, 1))


@pytest.mark.parametrize(
    ("geometry", "setting", "scope"),
    [
        ("stride_over_kernel", PIXEL, "batch"),
        ("asymmetric", PIXEL, "batch"),
        ("dilation2", PIXEL, "image"),
        ("wide_padding", PIXEL, "batch"),
        ("5x5_stride2", SEGMENT, "image"),
        ("asymmetric", SEGMENT, "batch"),
        ("asymmetric", ROW, "image"),
    ],
)
def test_geometries(geometry, setting, scope):
    check(Layer(GEOMETRIES[geometry], replace(setting, scope=scope), Activation.relu()))


@pytest.mark.parametrize(
    ("setting", "activation"),
    [
        (replace(PIXEL, L=20, scope="batch"), Activation("leaky_relu", slope=0.25)),
        (replace(PIXEL, L=16, H=13, hash="gaussian", scope="batch", table="bfloat16"), Activation.relu6()),
        (replace(SEGMENT, L=37, scope="batch"), Activation()),
        (replace(ROW, scope="batch"), Activation("leaky_relu", slope=0.1)),
    ],
)
def test_several_blocks_of_channels_lengths_and_activations(setting, activation):
    check(Layer(WIDE, setting, activation))


def test_exact():
    check(Layer(GEOMETRIES["3x3"], ReuseSetting("pixel", L=8, hash="exact", scope="batch"), Activation.relu()))


@pytest.mark.parametrize(("rank", "setting"), [(2, PIXEL), (3, replace(SEGMENT, scope="batch"))])
def test_dense_layers(rank, setting):
    check(Layer(dense_geometry(1 if rank == 2 else 5, 37, 21), setting, Activation.relu(), rank=rank), batch=6)


@pytest.mark.parametrize("input_gradient", ["straight-through", "sampled"])
def test_dense_input_gradients(input_gradient):
    layer = Layer(GEOMETRIES["asymmetric"], replace(PIXEL, scope="batch"), Activation.relu())
    check(layer, input_gradient, batch=6)


def test_blocks_that_hold_bands_of_an_image(monkeypatch):
    """Bands of few rows, with strides and padding, as large images have them."""
    monkeypatch.setattr(gradient_layout, "BLOCK_BYTES", 4000)
    g, setting = ConvGeometry(19, 10, 9, 3, 2, 20, strides=(2, 1), padding=(2, 0, 1, 1)), replace(PIXEL, scope="batch")
    layout = GradientLayout(g, setting, 3, AVX512)
    assert layout.bands > 2 and layout.unit_chunks > layout.bands
    check(Layer(g, setting, Activation.relu()))


def test_vectors_of_eight():
    """AVX2 has half the lanes and half the registers: other blocks, and taps in two goes."""
    if "avx2" not in cpu_features(cpu_target()):
        pytest.skip("no AVX2 here")
    g = ConvGeometry(6, 5, 19, 5, 5, 21, padding=(2, 2, 2, 2))
    check(Layer(g, replace(PIXEL, L=16, scope="batch"), Activation.relu(), mcpu="haswell"))


def test_fewer_bits_than_compiled():
    layer = Layer(GEOMETRIES["3x3"], replace(PIXEL, scope="batch"))
    tensors = sample_tensors(layer)
    off = tensors.thresholds.copy()
    off[:, 2:] = np.inf
    ids = check(layer, tensors=replace(tensors, thresholds=off))[1]
    assert ids.max() <= 4 < check(layer, tensors=tensors)[1].max()


def test_non_finite_vectors_are_left_out():
    layer = Layer(GEOMETRIES["3x3"], replace(PIXEL, scope="batch"))
    x = sample_input(layer.geometry, 3, seed=5)
    x[1, 2, 3, 4], x[0, 0, 0, 12] = np.nan, np.inf
    dx = check(layer, x=x)[2]
    assert (dx[1, 2, 3, :8] == 0).all() and (dx[1, 2, 3, 8:] != 0).any()


def test_an_all_zero_vector_has_a_gradient():
    layer = Layer(GEOMETRIES["3x3"], replace(PIXEL, scope="batch"))
    x = sample_input(layer.geometry, 3, seed=5)
    x[1, 2, 3] = 0
    assert (check(layer, x=x)[2][1, 2, 3] != 0).any()


def _digest() -> str:
    """SHA-256 of the gradients of layers that several tasks share."""
    found = hashlib.sha256()
    for setting in (replace(PIXEL, scope="batch"), SEGMENT):
        layer, g = Layer(SHARED, setting, Activation.relu()), SHARED
        dy = np.random.default_rng(1).standard_normal((3, g.OH, g.OW, g.M)).astype(np.float32)
        for array in run(layer, sample_tensors(layer), sample_input(g, 3), dy):
            found.update(array.tobytes())
    return found.hexdigest()


def test_the_number_of_threads_never_changes_a_byte():
    processes = [
        subprocess.Popen(
            [sys.executable, Path(__file__)],
            env=os.environ | {"TVM_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "2")
    ]
    outputs = [process.communicate(timeout=900)[0].split()[-1] for process in processes]
    assert len(outputs[0]) == 64 and outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("setting", "input_gradient", "message"),
    [
        (replace(PIXEL, gain=True), "averaged", "layer: gain has no gradient"),
        (replace(PIXEL, max_clusters=5), "averaged", "layer: max_clusters=5"),
        (ReuseSetting("row", hash="exact"), "averaged", "layer: hash=exact with granularity=row"),
        (PIXEL, "dense", "layer: input_gradient is 'dense', expected one of averaged, sampled, straight-through"),
    ],
)
def test_what_cannot_be_trained_is_refused(setting, input_gradient, message):
    x, w, bias = (relax.Var(n, tensor_type(s)) for n, s in (("x", [2, 8]), ("w", [8, 4]), ("b", [4])))
    planes, thresholds = np.zeros((1, 8, setting.H), np.float32), np.zeros((1, setting.H), np.float32)
    call = ops.dense(x, w, bias, name="layer")
    with pytest.raises(ValueError, match=message):
        ops.with_reuse(call, setting, planes, thresholds, training=True, input_gradient=input_gradient)


def test_a_network_through_relax_gradient():
    """Two layers, a loss, and TVM's own differentiation; equal to the layers' gradients chained by hand."""
    register_all()
    first, second = ConvGeometry(6, 5, 4, 3, 3, 8, padding=(1, 1, 1, 1)), ConvGeometry(6, 5, 8, 3, 3, 5)
    layers = [Layer(g, replace(PIXEL, L=4, scope="batch"), Activation.relu()) for g in (first, second)]
    tensors = [sample_tensors(layer) for layer in layers]
    arrays = [a for t in tensors for a in (t.w, t.bias, t.planes, t.thresholds)]
    parameters = [relax.Var(f"p{i}", tensor_type(a.shape)) for i, a in enumerate(arrays)]
    x, r = relax.Var("x", tensor_type([3, 6, 5, 4])), relax.Var("r", tensor_type([3, 4, 3, 5]))
    bb = relax.BlockBuilder()
    with bb.function("main", [x, *parameters, r]):
        with bb.dataflow():
            y = x
            for i, layer in enumerate(layers):
                w, bias, planes, thresholds = parameters[4 * i : 4 * i + 4]
                conv = ops.conv2d(y, w, bias, name=f"c{i}", padding=layer.geometry.padding, activation=layer.activation)
                reused = bb.emit(ops.with_reuse(conv, layer.setting, planes, thresholds, training=True))
                y = bb.emit(relax.TupleGetItem(reused, 0))
            loss = bb.emit_output(relax.op.sum(relax.op.multiply(y, r)))
        bb.emit_func_output(loss)
    wanted = [x, *(parameters[i] for i in (0, 1, 4, 5))]
    mod = relax.transform.Gradient("main", wanted)(bb.get())
    names = [b.value.op.name for block in mod["main_adjoint"].body.blocks for b in block.bindings
             if isinstance(b.value, relax.Call) and isinstance(b.value.op, tvm.ir.Op)]  # fmt: skip
    assert names.count("relax.adr.reuse_grad") == 2
    target = cpu_target()
    machine = relax.VirtualMachine(build_module(mod, target), tvm.cpu())
    x0 = sample_input(first, 3, seed=2)
    r0 = np.random.default_rng(3).standard_normal((3, 4, 3, 5)).astype(np.float32)
    _, gradients = machine["main_adjoint"](*(tvm.runtime.tensor(a) for a in (x0, *arrays, r0)))
    hidden = run(layers[0], tensors[0], x0, np.zeros((3, 6, 5, 8), np.float32))[0]
    _, _, dhidden, dw1, db1 = run(layers[1], tensors[1], hidden, r0)
    _, _, dx, dw0, db0 = run(layers[0], tensors[0], x0, dhidden)
    for found, expected in zip(gradients, (dx, dw0, db0, dw1, db1), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected)


if __name__ == "__main__":
    print(_digest())


@pytest.mark.parametrize(
    ("layer", "input_gradient"),
    [
        (Layer(GEOMETRIES["asymmetric"], replace(PIXEL, scope="batch"), Activation.relu()), "averaged"),
        (Layer(GEOMETRIES["5x5_stride2"], SEGMENT, Activation.relu()), "straight-through"),
        (Layer(GEOMETRIES["asymmetric"], ROW, Activation.relu()), "averaged"),
        (Layer(dense_geometry(5, 37, 21), replace(PIXEL, scope="batch"), Activation.relu(), rank=3), "averaged"),
    ],
)
def test_backward_only(layer, input_gradient):
    """The result has the bytes of the dense layer's; ids and gradients are those of the reused one."""
    y, *_ = check(layer, input_gradient, backward_only=True)
    tensors, x = sample_tensors(layer), sample_input(layer.geometry, len(y), seed=5)
    np.testing.assert_array_equal(y, run_dense(layer, tensors, x))


@pytest.mark.parametrize(
    "layer",
    [
        Layer(GEOMETRIES["asymmetric"], replace(PIXEL, scope="batch", table="int8"), Activation.relu()),
        Layer(dense_geometry(1, 37, 21), replace(SEGMENT, scope="batch"), Activation.relu(), rank=2),
    ],
)
def test_forward_only(layer):
    """The result is that of reuse, the gradients those of the dense layer at that result."""
    g, tensors, x = layer.geometry, sample_tensors(layer), sample_input(layer.geometry, 4, seed=5)
    dy = np.random.default_rng(2).standard_normal((4, g.OH, g.OW, g.M)).astype(np.float32)
    reused, *_ = run(layer, tensors, x, dy, "straight-through")
    y, _, dx, dw, dbias = run(layer, tensors, x, dy, "straight-through", forward_only=True)
    np.testing.assert_array_equal(y, reused)
    dz = np.where(y > 0, dy, 0)
    wanted_dw, wanted_dx = dense_gradients(g, x, tensors.w, dz)
    for found, wanted in ((dw, wanted_dw), (dx, wanted_dx), (dbias, dz.sum((0, 1, 2), dtype=np.float64))):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def test_backward_only_is_for_training():
    g = GEOMETRIES["3x3"]
    image, weight = tensor_type([2, g.H, g.W, g.C]), tensor_type([g.KH, g.KW, g.C, g.M])
    x, w, bias = (relax.Var(n, t) for n, t in (("x", image), ("w", weight), ("b", tensor_type([g.M]))))
    tensors = sample_tensors(Layer(g, PIXEL, Activation()))
    with pytest.raises(ValueError, match="for training"):
        ops.with_reuse(
            ops.conv2d(x, w, bias, name="layer", strides=g.strides, padding=g.padding, dilation=g.dilation),
            PIXEL,
            tensors.planes,
            tensors.thresholds,
            backward_only=True,
        )
