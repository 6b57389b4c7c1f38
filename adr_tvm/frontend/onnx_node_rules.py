"""What the attributes and operands of a node must satisfy beyond what onnx's own checker looks at.

TVM aborts, divides by zero or builds absurd loops on some graphs that pass onnx's checker. Each rule gets the
node, its attributes and the inferred shapes, and returns the reason for refusing the node, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx

from adr_tvm.errors import ModelError
from adr_tvm.frontend.onnx_limits import Dim, Limits, node_label, quoted, size_text, tensor_bytes
from adr_tvm.frontend.onnx_rewrites import attributes

_AUTO_PADS: dict[str, tuple[str, ...]] = {"auto_pad": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")}
_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"), _AUTO_PADS),
    "DepthToSpace": {"mode": ("DCR", "CRD")},
    "Pad": {"mode": ("constant", "reflect", "edge")},
    "Resize": {
        "mode": ("nearest", "linear", "cubic"),
        "coordinate_transformation_mode": (
            *("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"),
            *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
        ),
        "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    },
    "RoiAlign": {"mode": ("avg",)},
    "Upsample": {"mode": ("nearest", "linear", "bilinear")},
}

Shapes = Mapping[str, tuple[Dim, ...]]
Rule = Callable[[onnx.NodeProto, Mapping[str, Any], Shapes, Limits], str | None]

MAX_UNROLLED = 1024
"""Outputs of one Split, terms of one Einsum and the like: TVM emits code for each."""

MAX_SCATTERED = 1 << 20
"""Indices of a scatter: TVM's importer makes a table with a row for each."""


def check_nodes(where: str, graph: onnx.GraphProto, shapes: Shapes, limits: Limits) -> None:
    """Apply the rules to every node.

    Raises:
        ModelError: naming the node and the reason.
    """
    for node in graph.node:
        attrs = attributes(node)
        reason = _not_finite(attrs) or _unknown_choice(node, attrs)
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if reason is None and rule is not None:
            reason = rule(node, attrs, shapes, limits)
        if reason is not None:
            raise ModelError(f"{where}: {node_label(node)}: {reason}; check the export of this layer")


def check_constants(where: str, graph: onnx.GraphProto, shapes: Shapes, limits: Limits) -> None:
    """Bound what is computed from constants alone: the importer evaluates it at once.

    Raises:
        ModelError: the results are too large together, or the size of one cannot be told.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    constants, total = {tensor.name for tensor in graph.initializer}, 0
    for node in graph.node:
        if not all(name in constants for name in node.input if name):
            continue
        constants.update(node.output)
        for name in filter(None, node.output):
            shape = shapes.get(name)
            if shape is None or not all(isinstance(dim, int) for dim in shape):
                raise ModelError(
                    f"{where}: {node_label(node)}: the shape of this constant cannot be determined; fold "
                    "constants before export (onnxsim, or the exporter's own option)"
                )
            total += tensor_bytes(f"{where}: {node_label(node)}", types[name], shape, limits)
            if total > limits.initializer_bytes:
                raise ModelError(
                    f"{where}: {node_label(node)}: constants computed in the model take more than "
                    f"{size_text(limits.initializer_bytes)}"
                )


def _unknown_choice(node: onnx.NodeProto, attrs: Mapping[str, Any]) -> str | None:
    for name, choices in _CHOICES.get(node.op_type, {}).items():
        if attrs.get(name, choices[0]) not in choices:
            return f"{name} is {quoted(str(attrs[name]))}, supported are {', '.join(choices)}"
    return None


def _not_finite(attrs: Mapping[str, Any]) -> str | None:
    for name, value in attrs.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and math.isnan(number):
                return f"attribute {name} is NaN"
    epsilon = attrs.get("epsilon", 1e-5)
    if isinstance(epsilon, float) and not 0 <= epsilon < math.inf:
        return f"epsilon is {epsilon}, expected a small number of 0 or more"
    return None


def _shape(node: onnx.NodeProto, index: int, shapes: Shapes) -> tuple[Dim, ...] | None:
    return shapes.get(node.input[index]) if index < len(node.input) and node.input[index] else None


def _window(attrs: Mapping[str, Any], rank: int, limits: Limits) -> str | None:
    """Kernel, strides, dilations: one per spatial dimension, 1 to the limit; pads two, 0 to the limit."""
    for name in ("kernel_shape", "strides", "dilations", "output_shape"):
        values = attrs.get(name)
        if values is None:
            continue
        if len(values) != rank:
            return f"{name} has {len(values)} entries for {rank} spatial dimensions"
        if not all(1 <= v <= limits.window for v in values) and name != "output_shape":
            return f"{name} is {values}, expected 1 to {limits.window}"
    for name, count in (("pads", 2 * rank), ("output_padding", rank)):
        values = attrs.get(name, [0] * count)
        if len(values) != count:
            return f"{name} has {len(values)} entries, expected {count}"
        if not all(0 <= v <= limits.window for v in values):
            return f"{name} is {values}, expected 0 to {limits.window}"
    return None


def _conv(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    data, weight, bias = (_shape(node, index, shapes) for index in range(3))
    if data is None or weight is None:
        return "the shape of its input or weights cannot be determined"
    if not 3 <= len(data) <= 5 or len(weight) != len(data):
        return f"input {list(data)} with weights {list(weight)} is no 1-d, 2-d or 3-d convolution"
    channels, group = data[1], attrs.get("group", 1)
    sizes = [d for d in weight if isinstance(d, int) and d >= 1]
    if not isinstance(channels, int) or len(sizes) != len(weight):
        return f"channels or weights are not static (input {list(data)}, weights {list(weight)})"
    if max(sizes[2:]) > limits.window:
        return f"the kernel is {list(weight[2:])}, expected 1 to {limits.window}"
    reason = _window(attrs, len(data) - 2, limits)
    if reason is not None:
        return reason
    if list(attrs.get("kernel_shape", weight[2:])) != list(weight[2:]):
        return f"kernel_shape is {attrs['kernel_shape']}, the weights have {list(weight[2:])}"
    if node.op_type == "Conv":
        taken, made, grouped = weight[1] * group, weight[0], weight[0]
    else:
        taken, made, grouped = weight[0], weight[1] * group, weight[0]
        padding, ones = attrs.get("output_padding", []), [1] * (len(data) - 2)
        steps = zip(attrs.get("strides", ones), attrs.get("dilations", ones), strict=True)
        if any(p >= max(pair) for p, pair in zip(padding, steps, strict=False)):
            return f"output_padding is {padding}, expected less than the strides"
    if group < 1 or taken != channels or grouped % group:
        return f"{channels} input channels do not fit weights {list(weight)} in {group} groups"
    if bias is not None and tuple(bias) != (made,):
        return f"the bias has shape {list(bias)}, expected [{made}]"
    return None


def _pool(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    data = _shape(node, 0, shapes)
    if data is None or not 3 <= len(data) <= 5:
        return "its input is not of 3 to 5 known dimensions"
    rank = len(data) - 2
    reason = _window(attrs, rank, limits)
    if reason is not None:
        return reason
    kernel, dilations = attrs["kernel_shape"], attrs.get("dilations", [1] * rank)
    pads = attrs.get("pads", [0] * 2 * rank)
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if any(pad >= window for pad, window in zip(pads, windows + windows, strict=True)):
        return f"pads {pads} are as wide as the window {windows}, which would hold nothing but padding"
    if len(node.output) > 1 and node.output[1]:
        return "the second output (Indices) is not supported"
    return None


def _lrn(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    data = _shape(node, 0, shapes)
    if data is None or len(data) not in (3, 4):
        return "its input is not of 3 or 4 known dimensions"
    size = attrs["size"]
    if not (1 <= size <= limits.window and size % 2):
        return f"size is {size}, expected an odd number of 1 to {limits.window}"
    return None


def _per_channel(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    """Normalisations with one parameter per channel (dimension 1)."""
    data = _shape(node, 0, shapes)
    if data is None or len(data) < 2 or not isinstance(data[1], int):
        return "its input has no known number of channels"
    for index in range(1, len(node.input)):
        parameter = _shape(node, index, shapes)
        if parameter is not None and tuple(parameter) != (data[1],):
            return f"input {index} has shape {list(parameter)}, expected [{data[1]}]"
    if attrs.get("training_mode", 0) or attrs.get("spatial", 1) != 1:
        return "only inference with one statistic per channel is supported (export in eval mode)"
    if node.op_type == "BatchNormalization" and any(node.output[1:]):
        return "outputs other than the first belong to training (export in eval mode)"
    return None


def _split(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    if len(node.output) > MAX_UNROLLED:
        return f"it has {len(node.output)} outputs; at most {MAX_UNROLLED} are supported"
    if any(0 in shapes.get(name, ()) for name in node.output):
        return "one of its outputs is empty"
    return None


def _rms(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    data = _shape(node, 0, shapes)
    if data is None or attrs.get("axis", -1) in (0, -len(data)):
        return "normalising over all dimensions, the batch included, is not supported"
    return None


def _is_inf(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    if attrs.get("detect_negative", 1) != 1 or attrs.get("detect_positive", 1) != 1:
        return "telling the signs of infinities apart is not supported"
    return None


def _scatter(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    indices = _shape(node, 1, shapes)
    sizes = [dim for dim in indices or () if isinstance(dim, int)]
    if indices is None or len(sizes) != len(indices):
        return "the shape of its indices is not static"
    if math.prod(sizes) > MAX_SCATTERED:
        return f"it has {math.prod(sizes)} indices; at most {MAX_SCATTERED} are supported"
    return None


def _positive_scales(values: Sequence[float], limits: Limits) -> bool:
    return all(0 < value <= limits.window for value in values)


def _upsample(node: onnx.NodeProto, attrs: Mapping[str, Any], shapes: Shapes, limits: Limits) -> str | None:
    if "scales" in attrs and not _positive_scales(attrs["scales"], limits):
        return f"scales are {attrs['scales']}, expected more than 0 and at most {limits.window}"
    return None


_RULES: dict[str, Rule] = {
    "AveragePool": _pool,
    "BatchNormalization": _per_channel,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "InstanceNormalization": _per_channel,
    "IsInf": _is_inf,
    "LRN": _lrn,
    "LpPool": _pool,
    "MaxPool": _pool,
    "RMSNormalization": _rms,
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "Split": _split,
    "Upsample": _upsample,
}
