"""Layers of an ONNX model on their own, with the tensors that they get inside the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from adr_tvm.frontend.onnx_model import check_model
from benchmarks.networks import input_name

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class OnnxLayer:
    """A convolution or matrix product.

    Attributes:
        node: as in the model.
        weights: its constant inputs, by name; the first is the weight.
        x: the tensor that it gets inside the network.
    """

    node: onnx.NodeProto
    weights: dict[str, onnx.TensorProto]
    x: np.ndarray

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Dimensions of the weight."""
        return tuple(next(iter(self.weights.values())).dims)

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for layers of equal work: all but the values of weights and data."""
        attributes = sorted(attribute.SerializeToString() for attribute in self.node.attribute)
        return self.node.op_type, *attributes, self.x.shape, self.weight_shape, len(self.weights)

    def operations(self, y: np.ndarray) -> int:
        """Floating-point operations, two for each multiply-add, given the output."""
        if self.node.op_type == "ConvTranspose":
            return 2 * self.x.size * int(np.prod(self.weight_shape[1:]))
        if self.node.op_type == "Conv":
            return 2 * y.size * int(np.prod(self.weight_shape[1:]))
        return 2 * y.size * self.x.shape[-1]

    def shape_text(self, y: np.ndarray) -> str:
        """ "56x56x64 -> 128, 3x3/2": input image, output channels, kernel, stride (transposed: /0.5)."""
        if self.node.op_type not in ("Conv", "ConvTranspose") or self.x.ndim != 4:
            return f"{'x'.join(map(str, self.x.shape))} -> {y.shape[-1]}"
        attributes = {each.name: helper.get_attribute_value(each) for each in self.node.attribute}
        strides, group = attributes.get("strides", [1, 1]), attributes.get("group", 1)
        stride = str(strides[0]) if strides[0] == strides[1] else f"{strides[0]}x{strides[1]}"
        batch, channels, height, width = self.x.shape
        image = f"{height}x{width}x{channels}" if batch == 1 else f"{batch} x {height}x{width}x{channels}"
        up = " up" if self.node.op_type == "ConvTranspose" else ""
        kernel = "x".join(map(str, self.weight_shape[2:]))
        return f"{image} -> {y.shape[1]}, {kernel}/{stride}{up}" + (f", {group} groups" if group > 1 else "")

    def model(self) -> onnx.ModelProto:
        """The layer as a model: input ``x``, output ``y``, weights as in the network."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        node.input[0], node.output[0] = "x", "y"
        x = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(self.x.dtype), self.x.shape)
        y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "layer", [x], [y], list(self.weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def onnx_layers(path: Path, x: np.ndarray) -> list[OnnxLayer]:
    """All layers with constant weights, in network order.

    Args:
        path: the model.
        x: its input.
    """
    model = check_model(path, {input_name(path): x.shape}).proto
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if _is_layer(node, constants)]
    inputs = InnerTensors(model, [node.input[0] for node in nodes])(x)
    return [
        OnnxLayer(node, {name: constants[name] for name in node.input[1:] if name}, inputs[node.input[0]])
        for node in nodes
    ]


class InnerTensors:
    """Tensors of a network, by name, as ONNX Runtime computes them from an input.

    Args:
        model: the network.
        names: of the tensors; the input may be among them.
    """

    def __init__(self, model: onnx.ModelProto, names: Iterable[str]) -> None:
        import onnxruntime

        weights = {tensor.name for tensor in model.graph.initializer}
        self.input = next(value.name for value in model.graph.input if value.name not in weights)
        self.names = [name for name in dict.fromkeys(names) if name != self.input]
        extended = onnx.ModelProto()
        extended.CopyFrom(model)
        if self.names:
            del extended.graph.output[:]
            extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.names)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            extended.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors for one input."""
        inner = self._session.run(self.names, {self.input: x}) if self.names else []
        return {self.input: x, **dict(zip(self.names, inner, strict=True))}


def weight_bytes(weights: Mapping[str, onnx.TensorProto]) -> int:
    """Bytes of some constants."""
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in weights.values())


def distinct(layers: Sequence[OnnxLayer]) -> list[tuple[OnnxLayer, int]]:
    """The first layer of each kind, and how many there are of the kind."""
    kinds: dict[tuple[object, ...], list[OnnxLayer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return [(alike[0], len(alike)) for alike in kinds.values()]


def _is_layer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return (
        node.op_type in OPERATORS
        and node.input[0] not in constants
        and all(name in constants for name in node.input[1:] if name)
    )
