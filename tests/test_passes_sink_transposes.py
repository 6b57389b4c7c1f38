"""SinkTransposes, rule by rule: each network has transposes in the middle before, and none or one at its end after."""

from __future__ import annotations

import numpy as np
import pytest
from relax_modules import assert_equal, bound, floats, operators
from tvm import relax

from adr_tvm._tvm import tensor_type
from adr_tvm.passes.sink_transposes import SinkTransposes

SHAPE = (2, 5, 7, 4)  # NHWC
AXES = [0, 3, 1, 2]
op = relax.op

RULES = {
    "relu": lambda x, y: op.nn.relu(x),
    "cast": lambda x, y: op.astype(op.astype(x, "float64"), "float32"),
    "add of two": lambda x, y: op.add(x, y),
    "constant": lambda x, y: op.multiply(x, relax.const(floats(1, 4, 1, 1))),
    "scalar": lambda x, y: op.divide(relax.const(np.float32(3)), op.exp(x)),
    "concat": lambda x, y: op.concat([x, y, x], axis=1),
    "concat, from the end": lambda x, y: op.concat([x, y], axis=-1),
    "pad": lambda x, y: op.nn.pad(x, [0, 0, 1, 2, 3, 0, 0, 4], "constant", 1.5),
    "softmax": lambda x, y: op.nn.softmax(x, axis=1),
    "mean, kept": lambda x, y: op.mean(x, axis=[2, 3], keepdims=True),
    "mean": lambda x, y: op.mean(x, axis=[2, 3]),
    "sum over channels": lambda x, y: op.sum(x, axis=[1]),
    "largest over rows": lambda x, y: op.max(x, axis=[-2]),
    "resize": lambda x, y: op.image.resize2d(x, (9, 11), layout="NCHW", method="linear"),
    "reshape": lambda x, y: op.reshape(x, (2, 4, 35)),
}


def network(rule, back=None):
    """The rule between transposes of its two inputs and, perhaps, of its result."""
    x, y = (relax.Var(name, tensor_type(SHAPE)) for name in "xy")
    builder = relax.BlockBuilder()
    with builder.function("main", [x, y]):
        with builder.dataflow():
            inputs = [builder.emit(op.permute_dims(v, AXES)) for v in (x, y)]
            found = builder.emit(rule(*inputs))
            if back is not None:
                found = builder.emit(op.permute_dims(found, back))
            out = builder.emit_output(found)
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.parametrize("name", RULES)
def test_values_stay(name):
    before = network(RULES[name])
    after = SinkTransposes()(before)
    found = operators(after)
    assert "permute_dims" not in found[:-1], found
    assert_equal(before, after, floats(*SHAPE), floats(*SHAPE, seed=1))


@pytest.mark.parametrize("name", ["relu", "add of two", "constant", "concat", "pad", "softmax", "mean, kept", "resize"])
def test_inverse_pairs_meet(name):
    before = network(RULES[name], [0, 2, 3, 1])
    after = SinkTransposes()(before)
    assert "permute_dims" not in operators(after)
    assert_equal(before, after, floats(*SHAPE), floats(*SHAPE, seed=1))


def test_tensors_transposed_otherwise_stay():
    def mixed(x, y):
        return op.add(x, op.permute_dims(op.permute_dims(y, [0, 2, 3, 1]), [0, 3, 1, 2]))

    before = network(lambda x, y: op.add(x, op.reshape(y, (2, 4, 5, 7))))
    after = SinkTransposes()(before)
    assert_equal(before, after, floats(*SHAPE), floats(*SHAPE, seed=1))
    assert operators(SinkTransposes()(network(mixed))) == ["add", "permute_dims"]


def test_a_flattening_of_channels_first_keeps_its_transpose():
    before = network(lambda x, y: op.reshape(x, (2, 140)))
    after = SinkTransposes()(before)
    assert operators(after) == ["permute_dims", "reshape"]
    assert [int(a) for a in bound(after, "permute_dims")[0].attrs.axes] == AXES
