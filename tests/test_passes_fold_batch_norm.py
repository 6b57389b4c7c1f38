"""FoldBatchNorm: what it folds, what it leaves, and that the values stay."""

from __future__ import annotations

import numpy as np
import tvm
from relax_modules import assert_equal, bound, close, floats, operators
from tvm import relax

from adr_tvm._tvm import constant, tensor_type
from adr_tvm.passes.fold_batch_norm import FoldBatchNorm

NORM = {
    "gamma": floats(4, seed=1),
    "beta": floats(4, seed=2),
    "mean": floats(4, seed=3),
    "var": np.abs(floats(4, seed=4)) + 0.5,
}
X = floats(2, 3, 5, 6)


def network(bias=None, two_readers=False, norm=NORM, axis=1, conv=True, kernel_layout="OIHW", **attrs) -> tvm.IRModule:
    """conv2d (3 -> 4), perhaps + bias, then a batch norm."""
    x = relax.Var("x", tensor_type(X.shape if conv else (2, 4, 5, 6)))
    given = [relax.Var(name, tensor_type([4])) for name in NORM] if norm is None else map(relax.const, norm.values())
    parameters = list(given)
    builder = relax.BlockBuilder()
    with builder.function("main", [x, *(p for p in parameters if isinstance(p, relax.Var))]):
        with builder.dataflow():
            y = x
            if conv:
                weight = floats(4, 3, 3, 3) if kernel_layout == "OIHW" else floats(1, 1, 3, 4)
                padding = 1 if kernel_layout == "OIHW" else 0
                y = builder.emit(
                    relax.op.nn.conv2d(x, relax.const(weight), padding=padding, kernel_layout=kernel_layout)
                )
            if bias is not None:
                y = builder.emit(relax.op.add(y, bias))
            found = builder.emit(relax.op.nn.batch_norm(y, *parameters, axis=axis, **attrs))
            out = builder.emit(relax.TupleGetItem(found, 0))
            if two_readers:
                out = builder.emit(relax.op.add(out, y))
            out = builder.emit_output(out)
        builder.emit_func_output(out)
    return builder.get()


def test_conv_then_norm():
    before = network(epsilon=1e-3)
    after = FoldBatchNorm()(before)
    assert operators(after) == ["nn.conv2d", "add"]
    a = NORM["gamma"] / np.sqrt(NORM["var"] + 1e-3)
    weight = constant(bound(after, "nn.conv2d")[0].args[1])
    close(weight, floats(4, 3, 3, 3) * a.reshape(-1, 1, 1, 1))
    assert_equal(before, after, X)


def test_norm_without_scale_or_shift():
    a = 1 / np.sqrt(NORM["var"] + 1e-5)
    after = FoldBatchNorm()(network(scale=False))
    close(constant(bound(after, "nn.conv2d")[0].args[1]), floats(4, 3, 3, 3) * a.reshape(-1, 1, 1, 1))
    after = FoldBatchNorm()(network(center=False))
    close(constant(bound(after, "add")[0].args[1]).reshape(-1), -NORM["mean"] * a * NORM["gamma"])


def test_bias_between():
    before = network(bias=relax.const(floats(1, 4, 1, 1)))
    after = FoldBatchNorm()(before)
    assert operators(after) == ["nn.conv2d", "add"]
    assert_equal(before, after, X)


def test_bias_that_is_no_channel_vector_stays():
    before = network(bias=relax.const(floats(1, 4, 5, 6)))
    after = FoldBatchNorm()(before)
    assert operators(after) == ["nn.conv2d", "add", "multiply", "add"]
    assert_equal(before, after, X)


def test_second_reader_keeps_the_convolution():
    before = network(two_readers=True)
    after = FoldBatchNorm()(before)
    assert operators(after) == ["nn.conv2d", "multiply", "add", "add"]
    close(constant(bound(after, "nn.conv2d")[0].args[1]), floats(4, 3, 3, 3))
    assert_equal(before, after, X)


def test_norm_alone():
    before = network(conv=False)
    after = FoldBatchNorm()(before)
    assert operators(after) == ["multiply", "add"]
    assert_equal(before, after, floats(2, 4, 5, 6))


def test_norm_of_parameters_stays():
    before = network(norm=None)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(before), before)


def test_norm_over_another_axis_stays():
    norm = {name: np.abs(floats(6)) for name in NORM}
    before = network(norm=norm, axis=3)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(before), before)


def test_convolution_of_another_layout_is_not_scaled():
    """Its first weight axis is not the output channel."""
    after = FoldBatchNorm()(network(kernel_layout="HWIO"))
    assert operators(after) == ["nn.conv2d", "multiply", "add"]


def test_half_precision_stays():
    half = {name: v.astype("float16") for name, v in NORM.items()}
    x = relax.Var("x", tensor_type((2, 4, 5, 6), "float16"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            norm = builder.emit(relax.op.nn.batch_norm(x, *map(relax.const, half.values()), axis=1))
            out = builder.emit_output(relax.TupleGetItem(norm, 0))
        builder.emit_func_output(out)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(builder.get()), builder.get())
