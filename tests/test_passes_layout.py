"""ChannelsLast, SinkTransposes, FoldShapes and ReshapeViews."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from onnx import helper
from onnx_graphs import make_model, save, weights_of
from relax_modules import TARGET, assert_equal, bind, bound, floats, named, operators
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from adr_tvm._tvm import constant, node_name, tensor_type
from adr_tvm.frontend.importer import import_onnx
from adr_tvm.frontend.onnx_model import check_model
from adr_tvm.passes import pipeline
from adr_tvm.passes.channels_last import ChannelsLast
from adr_tvm.passes.fold_shapes import FoldShapes
from adr_tvm.passes.reshape_views import ReshapeViews
from adr_tvm.passes.sink_transposes import SinkTransposes


def image_network():
    """Convolutions with instance norm, leaky ReLU, pools and a concatenation between them."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        node("InstanceNormalization", ["c1", "scale", "shift"], ["i1"], "norm"),
        node("LeakyRelu", ["i1"], ["l1"], "leaky", alpha=0.2),
        node("MaxPool", ["l1"], ["p1"], "pool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
        node("Concat", ["p1", "l1"], ["k"], "concat", axis=1),
        node("AveragePool", ["k"], ["p2"], "mean", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p2", "w2"], ["c2"], "second", group=2),
        node("Clip", ["c2", "low", "high"], ["h"], "clip"),
        node("Conv", ["h", "w3"], ["y"], "third"),
    ]
    weights = weights_of(w1=(4, 3, 3, 3), scale=(4,), shift=(4,), w2=(6, 4, 1, 1), w3=(5, 6, 1, 1))
    weights |= {"low": np.array(-1, "f4"), "high": np.array(1, "f4")}
    return make_model(nodes, {"x": ["N", 3, 8, 6]}, {"y": ["N", 5, 4, 3]}, weights)


def test_channels_last_on_a_network(tmp_path):
    before = import_onnx(check_model(save(image_network(), tmp_path)))
    before = tvm.relax.transform.DecomposeOpsForInference()(before)
    after = ChannelsLast()(before)
    found = operators(after)
    assert found[0] == found[-1] == "permute_dims" and found.count("permute_dims") == 2, found
    convolutions = bound(after, "nn.conv2d")
    assert [node_name(call) for call in convolutions] == ["first", "second", "third"]
    assert all((c.attrs.data_layout, c.attrs.kernel_layout) == ("NHWC", "HWIO") for c in convolutions)
    assert_equal(before, after, floats(2, 3, 8, 6))


def test_names_survive_in_every_function():
    """Names are put back function by function, whatever the order of the functions in the module."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 4, 4), "float32"), w: R.Tensor((3, 3, 1, 1), "float32")):
            with R.dataflow():
                a = R.nn.conv2d(x, w)
                b = R.nn.conv2d(a, w)
                R.output(b)
            return b

    first = named(Before, ["one", "two"])
    second = named(Before, ["three", "four"])["main"].with_attr("global_symbol", "another")
    after = ChannelsLast()(tvm.IRModule({"main": first["main"], "another": second}))
    assert [node_name(call) for call in bound(after, "nn.conv2d")] == ["one", "two"]
    assert [node_name(call) for call in bound(after, "nn.conv2d", "another")] == ["three", "four"]


def test_transposes_sink_and_cancel():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                a = R.permute_dims(x, [0, 3, 1, 2])
                b = R.nn.leakyrelu(a, 0.1)
                c = R.clip(b, R.prim_value(-1.0), R.prim_value(1.0))
                d = R.permute_dims(c, [0, 2, 3, 1])
                R.output(d)
            return d

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                a = R.nn.leakyrelu(x, 0.1)
                b = R.clip(a, R.prim_value(-1.0), R.prim_value(1.0))
                R.output(b)
            return b

    # One run moves every transpose down; those that met are then gone, and what they joined is bound to itself.
    after = tvm.relax.transform.CanonicalizeBindings()(SinkTransposes()(Before))
    tvm.ir.assert_structural_equal(after, Expected)


def test_transposes_that_do_not_cancel_are_one():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                a = R.permute_dims(x, [0, 3, 1, 2])
                b = R.permute_dims(a, [0, 3, 1, 2])
                c = R.cumsum(a, axis=3)
                R.output(b, c)
            return b, c

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "float32")):
            with R.dataflow():
                a = R.permute_dims(x, [0, 3, 1, 2])
                b = R.permute_dims(x, [0, 2, 3, 1])
                c = R.cumsum(a, axis=3)
                R.output(b, c)
            return b, c

    tvm.ir.assert_structural_equal(SinkTransposes()(Before), Expected)


def test_default_axes_reverse():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4), "float32")):
            with R.dataflow():
                a = R.permute_dims(x)
                b = R.nn.leakyrelu(a, 0.1)
                c = R.permute_dims(b)
                R.output(c)
            return c

    assert operators(SinkTransposes()(Before)) == ["nn.leakyrelu"]


def test_fold_shapes():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 12), "float32"), w: R.Tensor((2, 3, 4), "float32")):
            n = T.int64()
            with R.dataflow():
                a = R.permute_dims(w, [2, 0, 1])
                b = R.reshape(a, (1, 24))
                c = R.expand_dims(R.permute_dims(w), axis=0)
                d = R.squeeze(c, axis=[0])
                e = R.reshape(x, (n, 3, 4))
                R.output(b, d, e)
            return b, d, e

    w = floats(2, 3, 4)
    after = FoldShapes()(bind(Before, w=w))
    assert operators(after) == ["reshape"], "only the activation is still reshaped"
    folded = [constant(field) for field in after["main"].body.body.fields[:2]]
    np.testing.assert_array_equal(folded[0], w.transpose(2, 0, 1).reshape(1, 24))
    np.testing.assert_array_equal(folded[1], w.transpose())


@pytest.mark.parametrize("operator", ["expand_dims", "squeeze", "flatten"])
def test_views(operator):
    x = tvm.relax.Var("x", tensor_type((2, 1, 3)))
    call = {
        "expand_dims": lambda: tvm.relax.op.expand_dims(x, 1),
        "squeeze": lambda: tvm.relax.op.squeeze(x, [1]),
        "flatten": lambda: tvm.relax.op.flatten(x),
    }[operator]()
    builder = tvm.relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(call)
        builder.emit_func_output(out)
    before = builder.get()
    after = ReshapeViews()(before)
    assert operators(after) == ["reshape"]
    assert after["main"].ret_ty == before["main"].ret_ty
    lowered = pipeline.run(pipeline.lower(TARGET), before, TARGET)
    assert operators(lowered) == ["reshape"], "the virtual machine runs it without a kernel"
