"""FuseEpilogue: which epilogues move into the operator, which stay, and that the values do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from relax_modules import assert_equal, bind, bound, close, floats, operators
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from adr_tvm import ops
from adr_tvm._tvm import constant, tensor_type
from adr_tvm.activation import Activation
from adr_tvm.passes.fuse_epilogue import FuseEpilogue

X = floats(2, 5, 6, 3)
W, BIAS = floats(3, 3, 3, 8), floats(8)
Make = Callable[[relax.BlockBuilder, relax.Expr], relax.Expr]


def network(after: Make, layout: str = "NHWC") -> tvm.IRModule:
    """conv2d on X, then what ``after`` makes of its result."""
    shape, w = (X.shape, W) if layout == "NHWC" else ((2, 3, 5, 6), W.transpose(3, 2, 0, 1))
    kernel = "HWIO" if layout == "NHWC" else "OIHW"
    x = relax.Var("x", tensor_type(shape))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = relax.op.nn.conv2d(
                x, relax.const(np.ascontiguousarray(w)), padding=1, data_layout=layout, kernel_layout=kernel
            )
            out = builder.emit_output(after(builder, builder.emit(y)))
        builder.emit_func_output(out)
    return builder.get()


def plus(value: np.ndarray) -> Make:
    return lambda _, y: relax.op.add(y, relax.const(value))


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 1, 8), (1, 1, 1, 8), (), (1,)])
@pytest.mark.parametrize("first", [True, False])
def test_bias(shape, first):
    value = BIAS.reshape(shape) if np.prod(shape) == 8 else np.full(shape, 0.75, "float32")
    constant_ = relax.const(value)
    before = network(lambda _, y: relax.op.add(*((y, constant_) if first else (constant_, y))))
    after = FuseEpilogue()(before)
    assert operators(after) == ["adr.conv2d"]
    bias = constant(bound(after, "adr.conv2d")[0].args[2])
    np.testing.assert_array_equal(bias, np.broadcast_to(value.reshape(-1), 8))


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (5, 1, 1), (5, 6, 8), (1, 1, 1, 1, 8)])
def test_what_is_no_channel_bias_stays(shape):
    before = network(plus(floats(*shape)))
    assert operators(FuseEpilogue()(before)) == ["adr.conv2d", "add"]


@pytest.mark.parametrize(
    ("operator", "activation"),
    [
        (relax.op.nn.relu, Activation.relu()),
        (relax.op.nn.relu6, Activation.relu6()),
        (lambda y: relax.op.clip(y, -0.5, 0.25), Activation("clip", -0.5, 0.25)),
        (lambda y: relax.op.clip(y, 0, np.inf), Activation.relu()),
        (lambda y: relax.op.nn.leakyrelu(y, 0.25), Activation("leaky_relu", slope=0.25)),
    ],
)
def test_activations(operator, activation):
    before = network(lambda b, y: operator(b.emit(relax.op.add(y, relax.const(BIAS)))))
    after = FuseEpilogue()(before)
    assert operators(after) == ["adr.conv2d"]
    found = ops.activation_of(bound(after, "adr.conv2d")[0])
    assert (found.kind, found.low, found.slope) == (activation.kind, activation.low, activation.slope)
    assert found.high == pytest.approx(activation.high)


def test_values():
    leaky = lambda b, y: relax.op.nn.leakyrelu(b.emit(relax.op.add(y, relax.const(BIAS))), 0.25)  # noqa: E731
    assert_equal(before := network(leaky), FuseEpilogue()(before), X)


def test_clip_with_crossed_limits_stays():
    assert operators(FuseEpilogue()(network(lambda _, y: relax.op.clip(y, 1, -1)))) == ["adr.conv2d", "clip"]


def test_residual_is_not_swallowed():
    """conv + shortcut, then a constant: neither is the convolution's bias."""

    def residual(builder, y):
        total = builder.emit(relax.op.add(y, builder.emit(relax.op.exp(y))))
        return relax.op.nn.relu(builder.emit(relax.op.add(total, relax.const(BIAS))))

    assert operators(FuseEpilogue()(network(residual))) == ["adr.conv2d", "exp", "add", "add", "nn.relu"]


def test_second_reader_of_the_convolution():
    """The bias of one reader must not reach the other."""

    def two(builder, y):
        return relax.op.multiply(builder.emit(relax.op.add(y, relax.const(BIAS))), y)

    before = network(two)
    after = FuseEpilogue()(before)
    assert operators(after) == ["adr.conv2d", "add", "multiply"]
    assert_equal(before, after, X)


def test_second_reader_of_the_biased_value():
    def two(builder, y):
        biased = builder.emit(relax.op.add(y, relax.const(BIAS)))
        return relax.op.add(builder.emit(relax.op.nn.relu(biased)), biased)

    before = network(two)
    after = FuseEpilogue()(before)
    assert operators(after) == ["adr.conv2d", "nn.relu", "add"]
    close(constant(bound(after, "adr.conv2d")[0].args[2]), BIAS)
    assert_equal(before, after, X)


def test_bias_after_an_activation_stays():
    def late(builder, y):
        return relax.op.add(builder.emit(relax.op.nn.relu(y)), relax.const(BIAS))

    after = FuseEpilogue()(network(late))
    assert operators(after) == ["adr.conv2d", "add"]
    assert ops.activation_of(bound(after, "adr.conv2d")[0]).low == 0


def test_nchw_is_bracketed():
    before = network(lambda _, y: relax.op.nn.relu(y), layout="NCHW")
    after = FuseEpilogue()(before)
    assert operators(after) == ["permute_dims", "adr.conv2d", "permute_dims", "nn.relu"]
    assert_equal(before, after, floats(2, 3, 5, 6))


def test_grouped_convolution_stays():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 6, 4), "float32"), w: R.Tensor((3, 3, 2, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, w, groups=2, data_layout="NHWC", kernel_layout="HWIO")
                z = R.nn.relu(y)
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FuseEpilogue()(Before), Before)


@I.ir_module
class Matmuls:
    @R.function
    def main(x: R.Tensor((2, 7, 6), "float32"), w: R.Tensor((6, 8), "float32"), bias: R.Tensor((8,), "float32")):
        with R.dataflow():
            a = R.matmul(x, w)
            b = R.add(a, bias)
            c = R.nn.relu(b)
            t = R.permute_dims(c, [0, 2, 1])
            d = R.matmul(t, c)
            R.output(d)
        return d


def test_matmul_with_a_parameter_as_weights():
    """[K, M] weights may stay parameters; a bias that is one is added outside, and activations are not weights."""
    after = FuseEpilogue()(bind(Matmuls, bias=BIAS))
    assert operators(after) == ["adr.dense", "permute_dims", "matmul"]
    assert_equal(bind(Matmuls, bias=BIAS), after, floats(2, 7, 6), floats(6, 8))
    assert operators(FuseEpilogue()(Matmuls)) == ["adr.dense", "add", "nn.relu", "permute_dims", "matmul"]


def test_module_attributes_survive():
    before = network(plus(BIAS)).with_attr("a", 1)
    assert FuseEpilogue()(before).attrs["a"] == 1


def test_branches_are_left_alone():
    @I.ir_module
    class Before:
        @R.function
        def main(flag: R.Tensor((), "bool"), x: R.Tensor((2, 6), "float32"), w: R.Tensor((6, 6), "float32")):
            if flag:
                y = R.matmul(x, w)
                z = R.matmul(y, w)
            else:
                z = R.nn.relu(x)
            return z

    tvm.ir.assert_structural_equal(FuseEpilogue()(Before), Before)


def test_grouped_convolution_with_constant_weights():
    """It has an operator of its own, which never reuses."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 5, 6, 4), "float32"), w: R.Tensor((3, 3, 2, 4), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, w, groups=2, data_layout="NHWC", kernel_layout="HWIO")
                z = R.nn.relu(y)
                R.output(z)
            return z

    before = bind(Before, w=floats(3, 3, 2, 4))
    after = FuseEpilogue()(before)
    assert operators(after) == ["adr.grouped_conv2d"]
    assert_equal(before, after, floats(1, 5, 6, 4))
