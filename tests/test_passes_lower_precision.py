"""Networks in other data types: where casts are and where none is, rounded weights, and rounding emulated in fp32."""

from __future__ import annotations

import numpy as np
import pytest
from relax_modules import TARGET, evaluate, floats, operators
from test_passes_fuse_residual import network
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import calls, constant, cuda_target
from adr_tvm.build import build_module
from adr_tvm.errors import ModelError
from adr_tvm.passes import pipeline
from adr_tvm.passes.emulate_precision import EmulatePrecision
from adr_tvm.passes.lower_precision import LowerPrecision, check_weights
from adr_tvm.precision import PRECISIONS
from adr_tvm.reference import conv2d

HALF = ("fp16", "bf16")


def branches(builder, x, conv):
    """Layers, operators that move data, and a chain that may not fit 16 bits."""
    y = conv(x, 8)
    pooled = builder.emit(relax.op.nn.max_pool2d(y, (3, 3), padding=(1, 1), layout="NHWC"))
    both = builder.emit(relax.op.concat([pooled, conv(y, 8)], axis=3))
    squares = builder.emit(relax.op.multiply(both, both))
    seen = builder.emit(relax.op.squeeze(builder.emit(relax.op.expand_dims(squares, 0)), 0))
    return relax.op.add(conv(builder.emit(relax.op.sqrt(seen)), 16), both)


@pytest.mark.parametrize("name", HALF)
def test_casts_are_where_layers_begin_and_end(name):
    mod = network(branches)
    lowered = LowerPrecision(PRECISIONS[name])(mod)
    expected = ["astype", "adr.conv2d", "nn.max_pool2d", "adr.conv2d", "concat", "astype", "multiply", "expand_dims"]
    expected += ["squeeze", "sqrt", "astype", "adr.conv2d", "astype", "add"]
    assert operators(lowered) == expected
    storage = PRECISIONS[name].storage
    for call in calls(lowered["main"], ops.CONV2D):
        x, w, bias = (str(arg.ty.dtype) for arg in call.args)
        assert (x, w, bias, str(call.ty.dtype)) == (storage, storage, "float32", storage)
        assert ops.precision_of(call) == PRECISIONS[name]
    (chain,) = calls(lowered["main"], "relax.sqrt")
    assert str(chain.ty.dtype) == "float32"
    before, after = mod["main"], lowered["main"]
    assert [str(f.params[0].ty.dtype) for f in (before, after)] == [str(f.ret_ty.dtype) for f in (before, after)]


def test_tf32_changes_weights_alone():
    mod = network(branches)
    lowered = LowerPrecision(PRECISIONS["tf32"])(mod)
    assert operators(lowered) == operators(mod)
    for before, after in zip(*(calls(m["main"], ops.CONV2D) for m in (mod, lowered)), strict=True):
        w = constant(after.args[1])
        np.testing.assert_array_equal(w, PRECISIONS["tf32"].rounded(constant(before.args[1])))
        assert not (w.view(np.uint32) & 0x1FFF).any() and ops.precision_of(after) == PRECISIONS["tf32"]
        np.testing.assert_array_equal(constant(after.args[2]), constant(before.args[2]))


def test_weights_that_do_not_fit():
    def body(builder, x, conv):
        return ops.conv2d(x, relax.const(floats(1, 1, 8, 4) * 1e6), relax.const(floats(4)), name="block/conv7")

    mod = network(body)
    with pytest.raises(ModelError, match=r"layer 'block/conv7': a weight of .*e\+06 is beyond fp16, whose.* is 65504"):
        check_weights(mod, PRECISIONS["fp16"])
    with pytest.raises(ModelError, match="beyond fp16"):
        build_module(mod, cuda_target("sm_80"), precision=PRECISIONS["fp16"])
    check_weights(mod, PRECISIONS["bf16"])


def test_no_kernels_on_processors():
    with pytest.raises(ValueError, match="bf16 has no kernels for llvm"):
        pipeline.lower(TARGET, PRECISIONS["bf16"])


@pytest.mark.parametrize("name", PRECISIONS)
def test_rounding_emulated(name):
    """A convolution of rounded data and weights, and in 16 bits a rounded result."""
    precision, weights = PRECISIONS[name], {}

    def body(builder, x, conv):
        weights["w"], weights["b"] = floats(3, 3, 8, 16), floats(16)
        return ops.conv2d(x, relax.const(weights["w"]), relax.const(weights["b"]), name="c", padding=(1, 1, 1, 1))

    mod, x = network(body), floats(2, 6, 5, 8, seed=9) * 100
    factors = [precision.rounded(each).astype(np.float32) for each in (x, weights["w"])]
    (call,) = calls(mod["main"], ops.CONV2D)
    exact = conv2d(*factors, weights["b"], ops.geometry_of(call))
    found = evaluate(EmulatePrecision(precision)(mod), x)
    if name in HALF:
        np.testing.assert_array_equal(precision.rounded(found).astype(np.float32), found)
    step = {"fp16": 2.0**-10, "bf16": 2.0**-7, "tf32": 1e-6}[name]
    np.testing.assert_allclose(found, exact, rtol=0, atol=step * np.abs(exact).max())
