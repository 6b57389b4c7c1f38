"""The nine ImageNet architectures inside the onnx wheel, with random weights in place of their fillers.

`onnx/backend/test/data/light/` holds AlexNet, DenseNet-121, Inception v1 and v2, ResNet-50, ShuffleNet,
SqueezeNet, VGG-19 and ZFNet-512 as graphs whose large weights are `ConstantOfShape(0.02)`.  Here *every*
parameter is replaced by a seeded one (the small trained vectors left in the files do not fit random
weights: one batch norm's variances reach 5e4, another's 5e-45).  The nets are untrained: good for speed,
shapes and numeric agreement, meaningless for accuracy.

So that activations neither explode nor vanish with depth:

    weight (M, C/g, KH, KW) or (M, K)   He-normal, std = sqrt(2 / fan_in); sqrt(1 / fan_in) where no ReLU
                                        lies between it and the operator before (ShuffleNet)
    batch norm                          y = scale (x - mean) / sqrt(variance) + bias with
                                        scale in [.9, 1.1], variance in [.8, 1.25]: E[gain^2] ~ 1
    a batch norm that a residual sum reads has its scale halved: a block that would double the variance
    multiplies it by 1.25, and one with a projection shortcut by .5
    bias, mean                          normal, std 0.05
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LIGHT_NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)

_BATCH_NORM_ROLES = ("", "scale", "bias", "mean", "variance")


def light_model(name: str, seed: int = 0, softmax: bool = False) -> onnx.ModelProto:
    """One of `LIGHT_NAMES` with seeded float32 weights as initializers; input (1, 3, 224, 224) float32.

    Opset 9 as in the wheel, IR version 8.  The output has 1,000 values: the logits, or their softmax with
    `softmax` (DenseNet's file has none: always logits).  VGG-19 has 575 MB of weights, AlexNet 244 MB.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: this onnx installation was stripped of its backend test data.
    """
    if name not in LIGHT_NAMES:
        raise ValueError(f"no light model {name!r}; choose from {', '.join(LIGHT_NAMES)}")
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; the wheel of onnx >= 1.21 from PyPI holds it")
    model = onnx.load(path)
    graph = model.graph

    rng = np.random.default_rng(seed)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    parameters = {
        parameter: numpy_helper.from_array(_draw(rng, role, shape), parameter)
        for parameter, role, shape in _parameters(graph)
    }
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    if not softmax and nodes[-1].op_type == "Softmax":
        graph.output[0].name = nodes.pop().input[0]
    used = {tensor for node in nodes for tensor in node.input}
    kept = [tensor for tensor in constants.values() if tensor.name in used - parameters.keys()]
    inputs = [value for value in graph.input if value.name in used - constants.keys()]

    _replace(graph.node, nodes)
    _replace(graph.initializer, [*kept, *parameters.values()])
    _replace(graph.input, inputs)
    model.ir_version = 8  # from version 4 on, initializers need not be graph inputs
    return model


def _parameters(graph: onnx.GraphProto) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, role, shape) of every float parameter, in the order of the nodes that read them."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {
        tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            filled = numpy_helper.to_array(constants[node.input[0]])
            shapes[node.output[0]] = tuple(int(size) for size in filled)
    writer = {tensor: node.op_type for node in graph.node for tensor in node.output}
    reader = {tensor: node.op_type for node in graph.node for tensor in node.input}
    for node in graph.node:
        for index, tensor in enumerate(node.input):
            if tensor in shapes:
                role = _role(node, index, writer.get(node.input[0], ""), reader.get(node.output[0], ""))
                yield tensor, role, shapes[tensor]


def _role(node: onnx.NodeProto, index: int, before: str, after: str) -> str:
    """What input `index` of `node` is, given the operators that write its data and read its result."""
    if node.op_type == "BatchNormalization":
        role = _BATCH_NORM_ROLES[index]
        return "residual scale" if role == "scale" and after == "Sum" else role
    if node.op_type == "Unsqueeze":  # DenseNet and Inception v2 follow a batch norm by Mul and Add
        return "scale" if after == "Mul" else "bias"
    if node.op_type == "Reshape":  # Inception v1 stores its dense weight (1, 1, M, K)
        return "dense weight"
    if index == 2:
        return "bias"
    return "linear weight" if before == "BatchNormalization" else "weight"


def _draw(rng: np.random.Generator, role: str, shape: tuple[int, ...]) -> np.ndarray:
    if role == "scale":
        return rng.uniform(0.9, 1.1, shape).astype(np.float32)
    if role == "residual scale":
        return rng.uniform(0.45, 0.55, shape).astype(np.float32)
    if role == "variance":
        return rng.uniform(0.8, 1.25, shape).astype(np.float32)
    variance = {
        "weight": 2.0 / np.prod(shape[1:]),
        "linear weight": 1.0 / np.prod(shape[1:]),
        "dense weight": 2.0 / shape[-1],
    }
    std = np.sqrt(variance.get(role, 0.05**2))  # a bias or mean
    return rng.standard_normal(shape, np.float32) * np.float32(std)


def _replace(field, values) -> None:
    """Set a repeated protobuf field, which has no assignment of its own."""
    del field[:]
    field.extend(values)
