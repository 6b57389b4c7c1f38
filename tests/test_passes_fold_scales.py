"""FoldScales: chains of scales and shifts, convolutions before them, and what stays."""

from __future__ import annotations

import numpy as np
from relax_modules import assert_equal, bound, close, floats, operators
from tvm import relax

from adr_tvm._tvm import constant, tensor_type
from adr_tvm.passes.fold_scales import FoldScales

X = floats(2, 3, 5, 6)
A, B = floats(4, 1, 1, seed=1), floats(1, 4, 1, 1, seed=2)


def network(steps, conv=True, read_twice=False):
    """conv2d (3 -> 4) or nothing, then (operator, constant) steps; perhaps their start is an output as well."""
    x = relax.Var("x", tensor_type(X.shape if conv else (2, 4, 5, 6)))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = first = builder.emit(relax.op.nn.conv2d(x, relax.const(floats(4, 3, 3, 3)), padding=1)) if conv else x
            for operator, value in steps:
                y = builder.emit(operator(y, relax.const(value)))
            if read_twice:
                y = builder.emit(relax.op.add(y, first))
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    return builder.get()


def test_a_chain_vanishes_into_the_convolution():
    before = network([(relax.op.multiply, A), (relax.op.add, B), (relax.op.multiply, B), (relax.op.add, A)])
    after = FoldScales()(before)
    assert operators(after) == ["nn.conv2d", "add"]
    scale, shift = A.reshape(-1) * B.reshape(-1), B.reshape(-1) ** 2 + A.reshape(-1)
    close(constant(bound(after, "nn.conv2d")[0].args[1]), floats(4, 3, 3, 3) * scale.reshape(-1, 1, 1, 1))
    close(constant(bound(after, "add")[0].args[1]).reshape(-1), shift)
    assert_equal(before, after, X)


def test_a_chain_elsewhere_is_one_step():
    before = network([(relax.op.multiply, A), (relax.op.add, B), (relax.op.multiply, np.float32(2))], conv=False)
    after = FoldScales()(before)
    assert operators(after) == ["multiply", "add"]
    assert_equal(before, after, floats(2, 4, 5, 6))


def test_a_convolution_with_another_reader_keeps_its_weights():
    before = network([(relax.op.multiply, A), (relax.op.add, B)], read_twice=True)
    after = FoldScales()(before)
    assert operators(after) == ["nn.conv2d", "multiply", "add", "add"]
    assert_equal(before, after, X)


def test_a_bias_stays():
    before = network([(relax.op.add, B)])
    assert operators(FoldScales()(before)) == ["nn.conv2d", "add"]
    assert_equal(before, FoldScales()(before), X)


def test_constants_along_other_axes_are_no_scales():
    rows = floats(5, 1)
    before = network([(relax.op.multiply, rows), (relax.op.add, B)])
    after = FoldScales()(before)
    assert operators(after) == ["nn.conv2d", "multiply", "add"]
    assert constant(bound(after, "multiply")[0].args[1]).shape == (1, 1, 5, 1), "but they get all axes"
    assert_equal(before, after, X)


def test_other_operators_get_all_axes():
    before = network([(relax.op.maximum, A)], conv=False)
    after = FoldScales()(before)
    assert constant(bound(after, "maximum")[0].args[1]).shape == (1, 4, 1, 1)
    assert_equal(before, after, floats(2, 4, 5, 6))
