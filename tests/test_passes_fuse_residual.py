"""Residual sums inside of convolutions, and concatenations that convolutions write into themselves."""

from __future__ import annotations

import numpy as np
import pytest
from relax_modules import TARGET, floats
from test_passes_lowering import call_tirs
from tvm import relax, tirx

from adr_tvm import ops
from adr_tvm._tvm import calls, tensor_type
from adr_tvm.build import build_module
from adr_tvm.passes.fuse_residual import FuseResidual
from adr_tvm.passes.lower_operators import LowerOperators


def network(build, batch=None):
    """``main(x [B, 6, 5, 8])`` with the body ``build(builder, x, conv)``; conv(x, M) is a 3x3 convolution."""
    x = relax.Var("x", tensor_type([tirx.Var("B", "int64") if batch is None else batch, 6, 5, 8]))
    builder, seeds = relax.BlockBuilder(), iter(range(100))

    def conv(y, M, activation=None):
        channels = int(y.ty.shape[3])
        w, bias = floats(3, 3, channels, M, seed=next(seeds)), floats(M, seed=next(seeds))
        call = ops.conv2d(y, relax.const(w), relax.const(bias), name="c", padding=(1, 1, 1, 1), activation=activation)
        return builder.emit(call)

    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(build(builder, x, conv))
        builder.emit_func_output(out)
    return builder.get()


def outputs(mod, x):
    import tvm

    machine = relax.VirtualMachine(build_module(mod, TARGET), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


def block(builder, x, conv):
    """relu(conv + shortcut), then a sum that cannot be fused: both convolutions have another reader."""
    shortcut = conv(x, 8)
    y = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(conv(x, 8), shortcut))))
    z = conv(y, 8)
    return relax.op.add(builder.emit(relax.op.add(z, y)), builder.emit(relax.op.exp(z)))


@pytest.mark.parametrize("batch", [None, 2])
def test_fused_sums_have_the_bytes_of_unfused_ones(batch, monkeypatch):
    mod, x = network(block, batch), floats(2, 6, 5, 8)
    fused = FuseResidual()(mod)["main"]
    assert [len(calls(fused, name)) for name in (ops.CONV2D, ops.CONV2D_ADD, "relax.add")] == [2, 1, 2]
    assert ops.activation_of(calls(fused, ops.CONV2D_ADD)[0]).low == 0
    found = outputs(mod, x)
    monkeypatch.setattr("adr_tvm.passes.pipeline.FuseResidual", lambda: relax.transform.DeadCodeElimination())
    np.testing.assert_array_equal(found, outputs(mod, x))


def test_a_broadcast_sum_stays():
    def build(builder, x, conv):
        mean = builder.emit(relax.op.mean(x, [1, 2], keepdims=True))
        return relax.op.add(conv(x, 8), mean)

    assert not calls(FuseResidual()(network(build))["main"], ops.CONV2D_ADD)


def test_a_convolution_with_an_activation_stays():
    from adr_tvm.activation import Activation

    mod = network(lambda builder, x, conv: relax.op.add(conv(x, 8, Activation.relu()), x))
    assert not calls(FuseResidual()(mod)["main"], ops.CONV2D_ADD)


def joined(builder, x, conv):
    """Two convolutions of which one is read again, the input, and a convolution of an odd number of channels."""
    a, b, c = conv(x, 16), conv(x, 20), conv(x, 7)
    both = builder.emit(relax.op.concat([a, x, b, c], 3))
    return relax.op.add(both, builder.emit(relax.op.concat([c, a, x, b], 3)))


@pytest.mark.parametrize("batch", [None, 1])
def test_concatenations_are_written_in_place(batch):
    def split(builder, x, conv):
        a, b, c = conv(x, 16), conv(x, 20), conv(x, 7)
        return relax.op.concat([a, x, b, c], 3)

    mod, x = network(split, batch), floats(1, 6, 5, 8)
    assert call_tirs(LowerOperators(TARGET)(mod)) == ["adr_conv2d", "adr_concat", "adr_conv2d1", "adr_conv2d2"]
    parts = [
        outputs(network(lambda _b, x, conv, which=i: [conv(x, m) for m in (16, 20, 7)][which], batch), x)
        for i in range(3)
    ]
    np.testing.assert_array_equal(outputs(mod, x), np.concatenate([parts[0], x, parts[1], parts[2]], 3))


def test_inputs_with_other_readers_are_copied():
    mod, x = network(joined), floats(2, 6, 5, 8)
    assert sum(name.startswith("adr_concat") for name in call_tirs(LowerOperators(TARGET)(mod))) == 8
    found = outputs(mod, x)
    parts = [
        outputs(network(lambda _b, x, conv, which=i: [conv(x, m) for m in (16, 20, 7)][which]), x) for i in range(3)
    ]
    expected = np.concatenate([parts[0], x, parts[1], parts[2]], 3) + np.concatenate(
        [parts[2], parts[0], x, parts[1]], 3
    )
    np.testing.assert_array_equal(found, expected)
