"""Gradients of operators that are no layers, each against torch's autograd in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional as F
from tvm import relax
from tvm.relax import op

from adr_tvm.geometry import ConvGeometry
from adr_tvm.gradients import batch_norm, dropout, lrn, pooling
from adr_tvm.gradients.loss import cross_entropy
from adr_tvm.schedules.lrn import Lrn
from tests.gradient_check import check, differentiated, expected, nchw, run, sample, weights

NHWC = {"layout": "NHWC"}
nn = op.nn


def of_tuple(bb, call, index=0):
    return bb.emit(relax.TupleGetItem(bb.emit(call), index))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "classes"), [(7, 10), (3, 1000)])
def test_cross_entropy(rows, classes, smoothing):
    labels = np.random.default_rng(1).integers(0, classes, rows).astype(np.int32)
    check(
        lambda bb, x, t: cross_entropy(x, t, smoothing),
        lambda x, t: F.cross_entropy(x, t.long(), label_smoothing=smoothing),
        [5 * sample(rows, classes), labels],
        integer=[1],
    )


def test_cross_entropy_of_a_label_out_of_range_is_nan():
    labels = np.array([0, 10, 3], np.int32)
    arrays = [sample(3, 10), labels]
    loss, (gradient,) = run(differentiated(lambda bb, x, t: cross_entropy(x, t), arrays, [1]), arrays)
    assert math.isnan(loss)
    assert np.isnan(gradient[1]).all() and np.isfinite(gradient[[0, 2]]).all()


@pytest.mark.parametrize(
    ("shape", "size", "alpha", "beta", "bias"),
    [
        ((2, 5, 3, 64), 9, 0.001, 0.75, 1.0),
        ((2, 4, 3, 21), 5, 2.0, 0.75, 2.0),
        ((1, 3, 3, 7), 4, 1.0, 0.5, 1.0),
        ((1, 3, 3, 16), 5, 1.0, 1.0, 0.5),
        ((2, 3, 3, 19), 3, 1.0, 0.6, 1.5),
    ],
)
def test_lrn(shape, size, alpha, beta, bias):
    """torch's window reaches size // 2 back, ONNX's (size - 1) // 2: they differ for even sizes."""
    norm = Lrn(size // 2, (size - 1) // 2, alpha, beta, bias)
    check(
        lambda bb, x: lrn.lrn(x, norm),
        nchw(lambda x: F.local_response_norm(x, size, alpha, beta, bias)),
        [sample(*shape)],
    )


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "pad", "dilation", "ceil"),
    [
        ((2, 9, 8, 64), 3, 2, 1, 1, False),
        ((2, 10, 9, 21), 3, 2, 0, 1, True),
        ((2, 9, 9, 17), 2, 1, 1, 2, False),
        ((1, 12, 12, 70), 3, 3, 1, 1, False),
        ((2, 7, 7, 5), 2, 3, 0, 1, False),
    ],
)
def test_max_pool(shape, kernel, stride, pad, dilation, ceil):
    """Entries repeat, so that windows have several largest."""
    x = np.round(2 * sample(*shape)) / 2
    function = nchw(lambda t: F.max_pool2d(t, kernel, stride, pad, dilation, ceil_mode=ceil))
    _, OH, OW, C = function(torch.tensor(x)).shape
    over = [(o - 1) * stride + dilation * (kernel - 1) + 1 - s - pad for o, s in zip((OH, OW), shape[1:3], strict=True)]
    padding = (pad, pad, max(pad, over[0]), max(pad, over[1]))
    g = ConvGeometry(*shape[1:], kernel, kernel, C, (stride, stride), padding, (dilation, dilation))
    check(lambda bb, t: of_tuple(bb, pooling.max_pool2d(t, g)), function, [x])


def test_max_pool_lets_nan_through():
    """In every window that has one, as torch; its gradient flows to the NaN."""
    x = sample(1, 6, 6, 20)
    x[0, 2, 3, 4] = np.nan
    g = ConvGeometry(6, 6, 20, 3, 3, 20, (2, 2), (1, 1, 1, 1))
    loss, (gradient,) = run(differentiated(lambda bb, t: of_tuple(bb, pooling.max_pool2d(t, g)), [x]), [x])
    _, (wanted,) = expected(nchw(lambda t: F.max_pool2d(t, 3, 2, 1)), [x])
    assert math.isnan(loss)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "pad", "ceil"),
    [((2, 9, 8, 20), 3, 2, 1, False), ((2, 8, 8, 33), 2, 2, 0, False), ((2, 8, 8, 5), 3, 2, 1, True)],
)
def test_avg_pool(shape, kernel, stride, pad, ceil, counted):
    options = {"ceil_mode": ceil, "count_include_pad": counted}
    check(
        lambda bb, x: nn.avg_pool2d(x, (kernel, kernel), (stride, stride), (pad,) * 4, **options, **NHWC),
        nchw(lambda x: F.avg_pool2d(x, kernel, stride, pad, **options)),
        [sample(*shape)],
    )


@pytest.mark.parametrize("shape", [(3, 5, 4, 20), (300, 7), (2, 30, 20, 64)])
def test_batch_norm(shape):
    """Gradients are differences of sums over rows: a few roundings more. Values are far from 0: sums could cancel."""
    C = shape[-1]
    check(
        lambda bb, x, g, b: of_tuple(bb, batch_norm.batch_norm(x, g, b, 1e-3)),
        lambda x, g, b: F.batch_norm(x.reshape(-1, C), None, None, g, b, True, 0, 1e-3).reshape(x.shape),
        [3 * sample(*shape) + 20, sample(C, seed=1), sample(C, seed=2)],
        tolerance=1e-5,
    )


def test_batch_statistics():
    x = sample(50, 30, 40, 6) + 100  # the mean is 100 deviations away: sums of squares would lose all digits
    arrays = [x, np.ones(6, np.float32), np.zeros(6, np.float32)]
    for index, wanted in ((1, x.mean((0, 1, 2), np.float64)), (2, x.var((0, 1, 2), np.float64))):
        build = differentiated(lambda bb, *a, i=index: of_tuple(bb, batch_norm.batch_norm(*a), i), arrays)
        loss, _ = run(build, arrays)
        assert loss == pytest.approx(float((wanted * weights([6])).sum()), rel=1e-5)


def test_dropout():
    rate, x = 0.3, np.ones(100_003, np.float32)

    def kept(seed, stream=1):
        seed = relax.const(np.array([seed], np.int64), "int64")
        return differentiated(lambda bb, t: dropout.dropout(t, seed, rate, stream), [x])

    _, (gradient,) = run(kept(1 << 40 | 7), [x])
    mask = gradient != 0
    assert abs(mask.mean() - 0.7) < 0.006  # four standard deviations
    np.testing.assert_allclose(gradient[mask], weights(x.shape)[mask] / (1 - rate), rtol=1e-6)
    # Neighbours, lanes and other seeds and streams are independent: shared kept entries are about .49 of all.
    for other in (
        np.roll(mask, 1),
        np.roll(mask, 16),
        *(run(kept(*k), [x])[1][0] != 0 for k in ((7,), (1 << 40 | 7, 2))),
    ):
        assert abs((mask & other).mean() - 0.49) < 0.007


TORCH = {
    "flatten": (lambda bb, x: op.flatten(x), lambda x: x.flatten(), [(2, 3, 4)]),
    "squeeze": (lambda bb, x: op.squeeze(x, [1]), lambda x: x.squeeze(1), [(2, 1, 4)]),
    "pad": (lambda bb, x: nn.pad(x, [0, 0, 1, 2, 0, 3]), lambda x: F.pad(x, (0, 3, 1, 2)), [(2, 3, 4)]),
    "slice": (lambda bb, x: op.strided_slice(x, [1], [1], [3]), lambda x: x[:, 1:3], [(2, 4, 4)]),
    "slice_steps": (
        lambda bb, x: op.strided_slice(x, [1, 2], [0, -3], [9, 9], [2, 1]),
        lambda x: x[:, 0:9:2, -3:],
        [(2, 9, 4)],
    ),
    "slice_long_step": (lambda bb, x: op.strided_slice(x, [1], [1], [9], [3]), lambda x: x[:, 1:9:3], [(2, 10, 4)]),
    "stack": (lambda bb, x, y: op.stack([x, y], 1), lambda x, y: torch.stack([x, y], 1), [(2, 3), (2, 3)]),
    "relu": (lambda bb, x: nn.relu(x), F.relu, [(9, 11)]),
    "relu6": (lambda bb, x: nn.relu6(op.multiply(x, relax.const(4.0))), lambda x: F.relu6(4 * x), [(9, 11)]),
    "clip": (lambda bb, x: op.clip(x, -0.5, 0.7), lambda x: F.hardtanh(x, -0.5, 0.7), [(9, 11)]),
    "leaky_relu": (lambda bb, x: nn.leakyrelu(x, 0.1), lambda x: F.leaky_relu(x, 0.1), [(9, 11)]),
    "gelu": (lambda bb, x: nn.gelu(x), F.gelu, [(9, 11)]),
    "gelu_tanh": (lambda bb, x: nn.gelu_tanh(x), lambda x: F.gelu(x, approximate="tanh"), [(9, 11)]),
    "erf": (lambda bb, x: op.erf(x), torch.erf, [(9, 11)]),
    "square": (lambda bb, x: op.square(x), torch.square, [(9, 11)]),
    "rsqrt": (lambda bb, x: op.rsqrt(op.exp(x)), lambda x: torch.rsqrt(torch.exp(x)), [(9, 11)]),
    "softplus": (lambda bb, x: nn.softplus(x, 2.0), lambda x: F.softplus(x, 2.0), [(9, 11)]),
    "hardswish": (
        lambda bb, x: op.multiply(x, op.clip(op.add(op.divide(x, relax.const(6.0)), relax.const(0.5)), 0, 1)),
        F.hardswish,
        [(9, 11)],
    ),
    "max": (lambda bb, x: op.max(x, [1]), lambda x: x.amax(1), [(4, 5, 6)]),
    "min": (lambda bb, x: op.min(x, [0, 2], keepdims=True), lambda x: x.amin((0, 2), keepdim=True), [(4, 5, 6)]),
    "mean": (lambda bb, x: op.mean(x, [1, 2]), lambda x: x.mean((1, 2)), [(2, 8, 9, 20)]),
    "adaptive_avg_pool": (
        lambda bb, x: nn.adaptive_avg_pool2d(x, (2, 3), layout="NHWC"),
        nchw(lambda x: F.adaptive_avg_pool2d(x, (2, 3))),
        [(2, 8, 9, 20)],
    ),
    "layer_norm": (
        lambda bb, x, g, b: nn.layer_norm(x, g, b, axes=[-1]),
        lambda x, g, b: F.layer_norm(x, (20,), g, b),
        [(3, 7, 20), (20,), (20,)],
    ),
    "layer_norm_two_axes": (
        lambda bb, x, g, b: nn.layer_norm(x, g, b, axes=[-2, -1], epsilon=1e-2),
        lambda x, g, b: F.layer_norm(x, (5, 4), g, b, 1e-2),
        [(3, 5, 4), (5, 4), (5, 4)],
    ),
    "rms_norm": (
        lambda bb, x, g: nn.rms_norm(x, g, axes=[-1]),
        lambda x, g: F.rms_norm(x, (20,), g, 1e-5),
        [(3, 7, 20), (20,)],
    ),
    "group_norm": (
        lambda bb, x, g, b: nn.group_norm(x, g, b, num_groups=3, channel_axis=3, axes=[1, 2]),
        lambda x, g, b: F.group_norm(x.permute(0, 3, 1, 2), 3, g, b).permute(0, 2, 3, 1),
        [(2, 4, 5, 12), (12,), (12,)],
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_compositions(name):
    """Chains of some ten operations, hence roundings; exp and erf are polynomials of relative error 2e-7."""
    build, function, shapes = TORCH[name]
    check(build, function, [sample(*shape, seed=i) for i, shape in enumerate(shapes)], tolerance=1e-5)


def test_kinks_are_those_of_torch():
    """At 0 and at the edges of clip."""
    x = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
    for build, function in (
        (lambda bb, t: nn.relu(t), F.relu),
        (lambda bb, t: nn.leakyrelu(t, 0.1), lambda t: F.leaky_relu(t, 0.1)),
        (lambda bb, t: op.clip(t, 0, 1), lambda t: F.hardtanh(t, 0, 1)),
    ):
        check(build, function, [x])


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("method", ["linear", "nearest_neighbor"])
@pytest.mark.parametrize("size", [(10, 14), (3, 11)])
def test_resize_is_the_transpose_of_the_forward_operator(size, method, mode):
    """<resize(x), w> = <x, gradient> for a linear map; x and w of order 1, hence a sum of some 100 roundings."""
    x = sample(2, 5, 7, 18)
    rounding = "floor" if mode == "asymmetric" else "round_prefer_floor"
    options = {
        "method": method,
        "coordinate_transformation_mode": mode,
        "rounding_method": "" if method == "linear" else rounding,
    }
    loss, (gradient,) = run(
        differentiated(lambda bb, t: op.image.resize2d(t, size, layout="NHWC", **options), [x]), [x]
    )
    assert loss == pytest.approx(float((x.astype(np.float64) * gradient).sum()), abs=2e-3)
    if mode != "asymmetric" and method == "linear":
        align = mode == "align_corners"
        _, (wanted,) = expected(nchw(lambda t: F.interpolate(t, size, mode="bilinear", align_corners=align)), [x])
        np.testing.assert_allclose(gradient, wanted, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(("stride", "pad", "extra", "groups"), [(1, 0, 0, 1), (2, 1, 1, 1), (2, 1, 0, 2)])
def test_conv_transpose(stride, pad, extra, groups):
    x, w = sample(2, 5, 6, 8), sample(8, 10 // groups, 3, 3, seed=1)
    check(
        lambda bb, x, w: nn.conv2d_transpose(
            x,
            w,
            strides=stride,
            padding=(pad,) * 4,
            output_padding=extra,
            groups=groups,
            data_layout="NHWC",
            kernel_layout="IOHW",
        ),
        lambda x, w: F.conv_transpose2d(x.permute(0, 3, 1, 2), w, None, stride, pad, extra, groups).permute(0, 2, 3, 1),
        [x, w],
        tolerance=1e-5,
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_same_bytes_at_any_number_of_threads(threads, monkeypatch):
    """Sums are partitioned by shape: what differs is only who computes them."""
    x = sample(8, 40, 40, 64)
    arrays = [x, sample(64, seed=1), sample(64, seed=2)]
    mod = differentiated(lambda bb, *a: of_tuple(bb, batch_norm.batch_norm(*a)), arrays)
    configure = tvm.get_global_func("runtime.config_threadpool")
    try:
        configure(1, threads)
        _, found = run(mod, arrays)
        configure(1, 1)
        _, alone = run(mod, arrays)
    finally:
        configure(1, 0)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found, alone, strict=True))
