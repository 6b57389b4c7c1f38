"""Small ONNX models for tests, built in memory: a classifier, an image-to-image network, a token network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_model import check_model

Shape = Sequence[int | str]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape | None],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 13,
) -> onnx.ModelProto:
    """A model of float32 inputs and outputs; an output of shape None has no declared shape."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weights_of(**shapes: Sequence[int]) -> dict[str, np.ndarray]:
    """Reproducible float32 weights by name."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) / max(np.prod(shape[1:]), 1) ** 0.5).astype("float32")
        for name, shape in shapes.items()
    }


def save(model: onnx.ModelProto | bytes, folder: Path) -> Path:
    """Write the model to ``model.onnx`` in the folder."""
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(path: Path, *words: str, **kwargs) -> str:
    """``check_model`` must refuse the file in one line that holds all the words; returns the line."""
    with pytest.raises(ModelError) as caught:
        check_model(path, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def conv(shape=("N", 3, 8, 8), weight=(4, 3, 3, 3), opset=13, bias=None, **attrs) -> onnx.ModelProto:
    """One convolution of x to y with weights w and perhaps a bias b."""
    weights = weights_of(w=weight) | ({} if bias is None else {"b": np.zeros(bias, "float32")})
    node = helper.make_node("Conv", ["x", *weights], ["y"], "conv", **attrs)
    return make_model([node], {"x": shape}, {"y": [None] * len(shape)}, weights, opset)


def classifier(batch: int | str = "N") -> onnx.ModelProto:
    """Conv, BatchNorm, pools, grouped Conv, LRN, Gemm, Softmax on [batch, 3, 12, 12] -> [batch, 5]."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], "norm1", epsilon=1e-3),
        node("Relu", ["n1"], ["r1"], "relu1"),
        node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
        node("LRN", ["p1"], ["l1"], "lrn1", size=5, alpha=1e-2),
        node("Conv", ["l1", "w2"], ["c2"], "conv2", pads=[1, 0, 1, 2], group=2, dilations=[1, 2]),
        node("Add", ["c2", "p1"], ["a2"], "add2"),
        node("AveragePool", ["a2"], ["p2"], "pool2", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p2"], ["f"], "flatten"),
        node("Dropout", ["f"], ["d"], "dropout"),
        node("Gemm", ["d", "w3", "b3"], ["g"], "fc", transB=1, alpha=0.5),
        node("Softmax", ["g"], ["y"], "softmax", axis=-1),
    ]
    weights = weights_of(w1=(8, 3, 3, 3), b1=(8,), w2=(8, 4, 3, 2), w3=(5, 72), b3=(5,))
    weights |= weights_of(scale=(8,), shift=(8,), mean=(8,)) | {"var": np.linspace(0.5, 2, 8, dtype="float32")}
    return make_model(nodes, {"x": [batch, 3, 12, 12]}, {"y": [batch, 5]}, weights)


def image_to_image(batch: int | str = "N") -> onnx.ModelProto:
    """Pad, Conv, InstanceNorm, ConvTranspose, Resize, Concat, Slice, Clip on [batch, 3, 8, 8] -> 16x16."""
    node = helper.make_node
    nodes = [
        node("Pad", ["x", "pads"], ["p"], "pad", mode="reflect"),
        node("Conv", ["p", "w1", "b1"], ["c1"], "conv1"),
        node("InstanceNormalization", ["c1", "scale", "shift"], ["i1"], "norm1"),
        node("LeakyRelu", ["i1"], ["l1"], "leaky1", alpha=0.1),
        node("ConvTranspose", ["l1", "w2", "b2"], ["t"], "up", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Resize", ["x", "", "scales"], ["z"], "resize", mode="nearest"),
        node("Concat", ["t", "z"], ["k"], "concat", axis=1),
        node("Slice", ["k", "starts", "ends", "axes"], ["s"], "slice"),
        node("Clip", ["s", "low", "high"], ["h"], "clip"),
        node("DepthToSpace", ["h"], ["d"], "shuffle", blocksize=2),
        node("SpaceToDepth", ["d"], ["y"], "unshuffle", blocksize=2),
    ]
    weights = weights_of(w1=(4, 3, 3, 3), b1=(4,), scale=(4,), shift=(4,), w2=(4, 3, 4, 4), b2=(3,))
    weights |= {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], "int64"),
        "scales": np.array([1, 1, 2, 2], "float32"),
        "starts": np.array([1], "int64"),
        "ends": np.array([5], "int64"),
        "axes": np.array([1], "int64"),
        "low": np.array(-1, "float32"),
        "high": np.array(1, "float32"),
    }
    return make_model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 4, 16, 16]}, weights)


def tokens(batch: int | str = "N") -> onnx.ModelProto:
    """One attention block with shape arithmetic on [batch, 6, 8] -> [batch, 8]."""
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "scale", "shift"], ["n"], "norm", axis=-1),
        node("MatMul", ["n", "wqkv"], ["qkv"], "qkv"),
        node("Add", ["qkv", "bqkv"], ["qkvb"], "qkv_bias"),
        node("Split", ["qkvb", "parts"], ["q", "k", "v"], "split", axis=2),
        node("Shape", ["q"], ["shape"], "shape"),
        node("Gather", ["shape", "zero"], ["rows"], "batch"),
        node("Unsqueeze", ["rows", "first"], ["n0"], "batch_1d"),
        node("Concat", ["n0", "heads"], ["target"], "target", axis=0),
        *(node("Reshape", [t, "target"], [t + "4"], t + "_heads") for t in "qkv"),
        *(node("Transpose", [t + "4"], [t + "t"], t + "_swap", perm=[0, 2, 1, 3]) for t in "qv"),
        node("Transpose", ["k4"], ["kt"], "k_swap", perm=[0, 2, 3, 1]),
        node("MatMul", ["qt", "kt"], ["qk"], "scores"),
        node("Softmax", ["qk"], ["soft"], "softmax", axis=-1),
        node("MatMul", ["soft", "vt"], ["mix"], "mix"),
        node("ConstantOfShape", ["fill"], ["ones"], "ones", value=numpy_helper.from_array(np.ones(1, "f4"))),
        node("Mul", ["mix", "ones"], ["scaled"], "scale_mix"),
        node("Erf", ["scaled"], ["e"], "erf"),
        node("ReduceMean", ["e"], ["m"], "mean", axes=[2], keepdims=0),
        node("Unsqueeze", ["m", "last"], ["u"], "unsqueeze"),
        node("Tile", ["u", "repeats"], ["tiled"], "tile"),
        node("Expand", ["tiled", "wide"], ["e5"], "expand"),
        node("ReduceSum", ["e5", "last"], ["r"], "sum", keepdims=0),
        node("Flatten", ["r"], ["y"], "flatten"),
    ]
    weights = weights_of(scale=(8,), shift=(8,), wqkv=(8, 24), bqkv=(24,))
    weights |= {
        "parts": np.array([8, 8, 8], "int64"),
        "zero": np.array(0, "int64"),
        "first": np.array([0], "int64"),
        "heads": np.array([6, 2, 4], "int64"),
        "fill": np.array([2, 6, 4], "int64"),
        "last": np.array([3], "int64"),
        "repeats": np.array([1, 1, 1, 2], "int64"),
        "wide": np.array([1, 2, 4, 2], "int64"),
    }
    return make_model(nodes, {"x": [batch, 6, 8]}, {"y": [batch, 8]}, weights, opset=17)


MODELS = {"classifier": classifier, "image_to_image": image_to_image, "tokens": tokens}


def conv_mean_dense(shape: Sequence[int], channels: int, outputs: int) -> onnx.ModelProto:
    """x [N, C, H, W] -> conv1, 3x3 with ReLU -> the mean of each channel -> fc -> y [N, outputs]."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu1"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w2"], ["y"], "fc", transB=1),
    ]
    weights = weights_of(w1=(channels, shape[1], 3, 3), w2=(outputs, channels))
    return make_model(nodes, {"x": shape}, {"y": [shape[0], outputs]}, weights)
