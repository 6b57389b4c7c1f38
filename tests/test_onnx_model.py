"""check_model: what it refuses in a graph and how it says so, and what it rewrites."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import MODELS, conv, make_model, refused, save, weights_of

from adr_tvm.frontend.onnx_model import check_model


@pytest.mark.parametrize("name", MODELS)
def test_small_models_pass(name, tmp_path):
    checked = check_model(save(MODELS[name](), tmp_path))
    assert checked.inputs[0].name == "x" and checked.inputs[0].shape[0] == "N"
    names = [node.name for node in checked.proto.graph.node]
    assert len(set(names)) == len(names)
    assert len(checked.sha256) == 64


def test_invalid_graph(tmp_path):
    node = helper.make_node("Relu", ["nowhere"], ["y"], "relu")
    refused(save(make_model([node], {"x": [1]}, {"y": [1]}), tmp_path), "not a valid ONNX model", "nowhere")
    node = helper.make_node("Relu", ["x"], ["y"], "relu", bogus=1)
    refused(save(make_model([node], {"x": [1]}, {"y": [1]}), tmp_path), "bogus")
    node = helper.make_node("Relu", ["x"], ["y"], "relu")
    refused(save(make_model([node], {"x": [1, 2]}, {"y": [1, 3]}), tmp_path), "dimension 1: (2) vs (3)")


def test_inferred_tensor_too_large(tmp_path):
    """Only shape inference shows that the middle of this network needs 3.8 GB."""
    nodes = [
        helper.make_node("Tile", ["x", "n"], ["t"], "tile"),
        helper.make_node("ReduceMean", ["t"], ["y"], "mean", axes=[0, 1], keepdims=0),
    ]
    weights = {"n": np.array([31000, 31000], "int64")}
    refused(save(make_model(nodes, {"x": [1, 1]}, {"y": []}, weights), tmp_path), "node 'tile' (Tile)", "3.6 GiB")


@pytest.mark.parametrize(
    ("attrs", "word"),
    [
        ({"strides": [0, 1]}, "strides"),
        ({"strides": [1, -1]}, "strides"),
        ({"dilations": [1, 2**40]}, "dimension"),
        ({"pads": [0, -1, 0, 0]}, "pads"),
        ({"pads": [0, 2**62, 0, 2**62]}, ""),
        ({"kernel_shape": [3, 5]}, "kernel"),
        ({"kernel_shape": [3]}, "kernel"),
        ({"group": 0}, "0 groups"),
        ({"group": 3}, "3 groups"),
        ({"bias": 3}, "bias"),
        ({"weight": (4, 2, 3, 3)}, "fit"),
        ({"weight": (4, 3, 9, 9)}, "y"),
        ({"auto_pad": "SAME"}, "auto_pad"),
    ],
)
def test_convolution_attributes(attrs, word, tmp_path):
    refused(save(conv(**attrs), tmp_path), "conv", word)


@pytest.mark.parametrize(
    ("op", "attrs", "word"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]}, "padding"),
        ("MaxPool", {"kernel_shape": [0, 2]}, "kernel_shape"),
        ("LRN", {"size": 4}, "odd"),
        ("LRN", {"size": 2**40 + 1}, "odd"),
        ("LeakyRelu", {"alpha": float("nan")}, "alpha is NaN"),
        ("Resize", {"mode": "square"}, "mode"),
    ],
)
def test_other_attributes(op, attrs, word, tmp_path):
    inputs = ["x", "", "s"] if op == "Resize" else ["x"]
    node = helper.make_node(op, inputs, ["y"], "layer", **attrs)
    weights = {"s": np.ones(4, "float32")} if op == "Resize" else {}
    model = make_model([node], {"x": ["N", 3, 8, 8]}, {"y": [None] * 4}, weights)
    refused(save(model, tmp_path), "layer", word)


def test_node_names_are_unique(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "same"),
        helper.make_node("Relu", ["b"], ["c"], "same"),
        helper.make_node("Relu", ["c"], ["y"], "Relu_0"),
    ]
    checked = check_model(save(make_model(nodes, {"x": [1]}, {"y": [1]}), tmp_path))
    assert [node.name for node in checked.proto.graph.node] == ["Relu_0_2", "same", "same_2", "Relu_0"]


def test_auto_pad_becomes_pads(tmp_path):
    pads = {}
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"):
        checked = check_model(save(conv(auto_pad=mode, strides=[2, 2]), tmp_path))
        attrs = {a.name: helper.get_attribute_value(a) for a in checked.proto.graph.node[0].attribute}
        assert "auto_pad" not in attrs
        pads[mode] = attrs["pads"]
    assert pads["SAME_UPPER"] == [0, 0, 1, 1] and pads["SAME_LOWER"] == [1, 1, 0, 0]
    assert pads["VALID"] == pads["NOTSET"] == [0, 0, 0, 0]


def test_shape_arithmetic_is_folded(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "one", "three"], ["hw"]),
        helper.make_node("Concat", ["first", "hw"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"], "reshape"),
    ]
    weights = {"one": np.array([1]), "three": np.array([3]), "first": np.array([-1])}
    checked = check_model(save(make_model(nodes, {"x": ["N", 4, 5]}, {"y": [None] * 3}, weights), tmp_path))
    assert [node.op_type for node in checked.proto.graph.node] == ["Reshape"]
    assert [t.name for t in checked.proto.graph.initializer] == ["target"]


def test_pads_computed_in_the_graph(tmp_path):
    """The shape of the convolution's input is known only after folding."""
    nodes = [
        helper.make_node("ConstantOfShape", ["two"], ["zeros"]),
        helper.make_node("Cast", ["zeros"], ["none"], to=TensorProto.INT64),
        helper.make_node("Concat", ["none", "ones", "none", "ones"], ["pads"], axis=0),
        helper.make_node("Pad", ["x", "pads"], ["p"], "pad"),
        helper.make_node("Conv", ["p", "w"], ["y"], "conv"),
    ]
    weights = weights_of(w=(4, 3, 3, 3)) | {"two": np.array([2]), "ones": np.array([1, 1])}
    model = make_model(nodes, {"x": ["N", 3, 8, 8]}, {"y": [None] * 4}, weights)
    checked = check_model(save(model, tmp_path))
    assert [node.op_type for node in checked.proto.graph.node] == ["Pad", "Conv"]
    assert checked.outputs[0].shape[1:] == (4, 8, 8)


def test_reshape_keeps_the_batch_free(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"], "reshape"),
    ]
    weights = {"first": np.array([0]), "rest": np.array([5, 4])}
    checked = check_model(save(make_model(nodes, {"x": ["N", 4, 5]}, {"y": [None] * 3}, weights), tmp_path))
    (node,), (target,) = checked.proto.graph.node, checked.proto.graph.initializer
    assert node.op_type == "Reshape" and numpy_helper.to_array(target).tolist() == [-1, 5, 4]


def test_constants_that_would_fill_the_memory(tmp_path):
    """Few bytes in the file; the importer would compute them before anything else."""
    nodes = [
        *(helper.make_node("ConstantOfShape", ["shape"], [f"c{i}"], f"fill{i}") for i in range(9)),
        helper.make_node("Sum", [f"c{i}" for i in range(9)], ["c"], "sum"),
        helper.make_node("Add", ["x", "c"], ["y"], "add"),
    ]
    weights = {"shape": np.array([2**28])}
    refused(save(make_model(nodes, {"x": [1]}, {"y": [None]}, weights), tmp_path), "'fill2'", "more than 2.0 GiB")
    nodes = [
        helper.make_node("Mod", ["a", "b"], ["m"], "mod"),
        helper.make_node("ConstantOfShape", ["m"], ["c"], "fill"),
        helper.make_node("Add", ["x", "c"], ["y"], "add"),
    ]
    weights = {"a": np.array([2**40]), "b": np.array([2**50])}
    refused(
        save(make_model(nodes, {"x": [1]}, {"y": [None]}, weights), tmp_path),
        "'fill'",
        "cannot be determined",
    )


def test_names_cannot_break_the_line(tmp_path):
    model = conv(strides=[-1, 1])
    model.graph.node[0].name = "evil\n\x1b[31mname"
    assert "\x1b" not in refused(save(model, tmp_path))
    model = conv()
    model.graph.node[0].name = "two\nlines"
    assert check_model(save(model, tmp_path)).proto.graph.node[0].name == "two lines"
