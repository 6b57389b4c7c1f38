"""Networks that are one chain of layers, built as ONNX from NumPy weights; what the builders here share.

A layer is (operator, name, attributes). Its parameters are named for it: `conv1.weight` (M, C, KH, KW), `conv1.bias`
(M), `fc1.weight` (out, in), `bn1.scale` (C) and so on. Needs onnx only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Layer = tuple[str, str, dict[str, Any]]

_PARAMETERS = {
    "Conv": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "BatchNormalization": ("scale", "bias", "mean", "variance"),
}


def build_chain(
    name: str,
    layers: Sequence[Layer],
    weights: Mapping[str, np.ndarray],
    image: tuple[int, int, int],
    classes: int,
) -> onnx.ModelProto:
    """A network with input `x` (N, C, H, W) and output `logits` (N, classes), both float32, N symbolic.

    Opset 17, IR version 8; nodes are named as the layers, the last of which must be `logits`. A parameter that
    `weights` does not have is left out (a convolution before a batch norm has no bias). A Dropout's rate is its
    attribute `ratio`.
    """
    nodes, previous = [], "x"
    for op, layer, attributes in layers:
        names = [f"{layer}.{part}" for part in _PARAMETERS.get(op, ())]
        inputs = [previous, *(each for each in names if each in weights)]
        if op == "Dropout":
            ratio = helper.make_tensor(f"{layer}.ratio", TensorProto.FLOAT, [], [attributes["ratio"]])
            nodes.append(helper.make_node("Constant", [], [f"{layer}.ratio"], name=f"{layer}.ratio", value=ratio))
            inputs, attributes = [previous, f"{layer}.ratio"], {}
        nodes.append(helper.make_node(op, inputs, [layer], name=layer, **attributes))
        previous = layer
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *image])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(array, parameter) for parameter, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="adr_tvm")


def he_normal(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """float32 weights of std sqrt(2 / fan_in), in the order of `shapes`; biases and means 0, scales and variances 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            drawn = rng.standard_normal(shape, np.float32)
            weights[name] = drawn * np.float32(np.sqrt(2.0 / np.prod(shape[1:])))
        else:
            weights[name] = np.full(shape, name.endswith((".scale", ".variance")), np.float32)
    return weights
