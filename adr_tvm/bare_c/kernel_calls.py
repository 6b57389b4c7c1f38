"""Which C kernel runs each operator, with its parameters and packed constants.

One function for each kind of operator and dtype, in ``KERNELS``; those that only move entries are in ``copies.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adr_tvm.activation import Activation
from adr_tvm.bare_c.copies import copy_call
from adr_tvm.bare_c.graph import Graph, Operator
from adr_tvm.bare_c.kernel_call import KernelCall
from adr_tvm.geometry import ConvGeometry

CHANNEL_BLOCK = 4  # output channels that conv2d_f32.c does together
ACTIVATION_KINDS = {"linear": "ADR_LINEAR", "clip": "ADR_CLIP", "leaky_relu": "ADR_LEAKY_RELU"}

Maker = Callable[[Graph, Operator], KernelCall]
KERNELS: dict[tuple[str, str], Maker] = {}


def kernel(*kinds: str, dtype: str = "float32") -> Callable[[Maker], Maker]:
    """Register the maker of the calls of some kinds of operators whose input has a dtype."""

    def register(make: Maker) -> Maker:
        KERNELS.update({(kind, dtype): make for kind in kinds})
        return make

    return register


def kernel_call(graph: Graph, operator: Operator) -> KernelCall:
    """How an operator of a graph runs."""
    return KERNELS[operator.kind, graph.tensors[operator.inputs[0]].dtype](graph, operator)


def activation_fields(activation: Activation) -> dict[str, Any]:
    """``adr_activation``."""
    return {
        "kind": ACTIVATION_KINDS[activation.kind],
        "low": np.float32(activation.low),
        "high": np.float32(activation.high),
        "slope": np.float32(activation.slope),
    }


def window_fields(g: ConvGeometry) -> dict[str, int]:
    """``adr_window`` of a convolution."""
    return {
        "height": g.H,
        "width": g.W,
        "channels": g.C,
        "out_height": g.OH,
        "out_width": g.OW,
        "out_channels": g.M,
        "kernel_height": g.KH,
        "kernel_width": g.KW,
        "stride_y": g.strides[0],
        "stride_x": g.strides[1],
        "dilation_y": g.dilation[0],
        "dilation_x": g.dilation[1],
        "pad_top": g.padding[0],
        "pad_left": g.padding[1],
    }


def as_rows(g: ConvGeometry) -> ConvGeometry:
    """A 1x1 convolution as one over a single row of pixels, which leaves fewer of them over in the last tile."""
    plain = g.KH == g.KW == 1 and g.strides == (1, 1) and not any(g.padding)
    return ConvGeometry(H=1, W=g.H * g.W, C=g.C, KH=1, KW=1, M=g.M) if plain else g


def pack_channels(weight: np.ndarray) -> np.ndarray:
    """Weights [..., M] as [ceil(M / 4), K, 4], with zeros behind the last channel."""
    matrix = weight.reshape(-1, weight.shape[-1])
    K, M = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -M % CHANNEL_BLOCK)))
    return np.ascontiguousarray(padded.reshape(K, -1, CHANNEL_BLOCK).transpose(1, 0, 2))


def convolution_fields(operator: Operator) -> dict[str, Any]:
    """``adr_conv2d``."""
    geometry = as_rows(operator.attributes["geometry"])
    return {"window": window_fields(geometry), "activation": activation_fields(operator.attributes["activation"])}


def packed_weights(constants: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight and bias as the kernels of convolutions take them."""
    return {"weight": pack_channels(constants["weight"]), "bias": constants["bias"]}


@kernel("conv2d", "dense")
def _conv2d(_graph: Graph, operator: Operator) -> KernelCall:
    x, *residual = operator.inputs
    return KernelCall(
        "adr_conv2d_f32",
        ("conv2d_f32.c",),
        "adr_conv2d",
        convolution_fields(operator),
        (x, residual[0] if residual else None),
        packed_weights(operator.constants),
        in_place=tuple(residual),
    )


@kernel("grouped_conv2d")
def _grouped_conv2d(graph: Graph, operator: Operator) -> KernelCall:
    g, groups = operator.attributes["geometry"], operator.attributes["groups"]
    depthwise = g.C == 1 and g.M == 1
    window = window_fields(g) | {"channels": g.C * groups, "out_channels": g.M * groups}
    name = "depthwise_conv2d_f32" if depthwise else "grouped_conv2d_f32"
    activation = activation_fields(operator.attributes["activation"])
    fields = {"window": window, "groups": groups, "activation": activation}
    constants = {part: operator.constants[part] for part in ("weight", "bias")}
    return KernelCall(f"adr_{name}", (f"{name}.c",), "adr_grouped_conv2d", fields, operator.inputs, constants)


@kernel("max_pool2d", "avg_pool2d")
def _pool2d(graph: Graph, operator: Operator) -> KernelCall:
    window, count_pads = operator.attributes["window"], operator.attributes["count_pads"]
    (_, H, W, C), (_, OH, OW, _) = (graph.tensors[name].shape for name in (operator.inputs[0], operator.output))
    fields = {
        "height": H,
        "width": W,
        "channels": C,
        "out_height": OH,
        "out_width": OW,
        "out_channels": C,
        "kernel_height": window.size[0],
        "kernel_width": window.size[1],
        "stride_y": window.strides[0],
        "stride_x": window.strides[1],
        "dilation_y": window.dilation[0],
        "dilation_x": window.dilation[1],
        "pad_top": window.padding[0],
        "pad_left": window.padding[1],
    }
    parameters = {"window": fields, "count_pads": count_pads}
    return KernelCall(f"adr_{operator.kind}_f32", ("pool2d_f32.c",), "adr_pool2d", parameters, operator.inputs)


def _rows(graph: Graph, operator: Operator) -> tuple[int, int]:
    """Rows and channels of an operator's input [1, ..., channels]."""
    *rows, channels = graph.tensors[operator.inputs[0]].shape
    return math.prod(rows), channels


@kernel("mean")
def _mean(graph: Graph, operator: Operator) -> KernelCall:
    rows, channels = _rows(graph, operator)
    return KernelCall(
        "adr_mean_f32", ("mean_f32.c",), "adr_mean", {"rows": rows, "channels": channels}, operator.inputs
    )


@kernel("lrn")
def _lrn(graph: Graph, operator: Operator) -> KernelCall:
    pixels, channels = _rows(graph, operator)
    fields = {"pixels": pixels, "channels": channels, **operator.attributes}
    return KernelCall("adr_lrn_f32", ("lrn_f32.c",), "adr_lrn", fields, operator.inputs)


@kernel("softmax", "log_softmax")
def _softmax(graph: Graph, operator: Operator) -> KernelCall:
    rows, size = _rows(graph, operator)
    function, fields = f"adr_{operator.kind}_f32", {"rows": rows, "size": size}
    return KernelCall(function, ("softmax_f32.c",), "adr_softmax", fields, operator.inputs, in_place=operator.inputs)


@kernel("unary")
def _unary(graph: Graph, operator: Operator) -> KernelCall:
    fields = {
        "size": graph.tensors[operator.output].elements,
        "function": f"ADR_{operator.attributes['function'].upper()}",
        "activation": activation_fields(operator.attributes["activation"]),
    }
    return KernelCall("adr_unary_f32", ("unary_f32.c",), "adr_unary", fields, operator.inputs, in_place=operator.inputs)


@kernel("binary")
def _binary(graph: Graph, operator: Operator) -> KernelCall:
    size = graph.tensors[operator.output].elements
    operand = operator.constants.get("operand")
    fields = {
        "size": size,
        "period": size if operand is None else operand.size,
        "function": f"ADR_{operator.attributes['function'].upper()}",
        "swapped": operator.attributes["swapped"],
    }
    return KernelCall(
        "adr_binary_f32",
        ("binary_f32.c",),
        "adr_binary",
        fields,
        operator.inputs,
        operator.constants,
        in_place=operator.inputs,
    )


for _kind in ("transpose", "strided_slice", "pad", "concat_part"):
    KERNELS[_kind, "float32"] = copy_call


@kernel("view")
def _view(_graph: Graph, operator: Operator) -> KernelCall:
    return KernelCall("", inputs=operator.inputs)
