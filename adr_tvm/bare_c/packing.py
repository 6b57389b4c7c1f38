"""Fields of the kernels' structs, and constants in the order that kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adr_tvm.activation import Activation
from adr_tvm.bare_c.graph import Graph, Operator
from adr_tvm.geometry import ConvGeometry

CHANNEL_BLOCK = 4  # output channels that conv2d_f32.c does together
ACTIVATION_KINDS = {"linear": "ADR_LINEAR", "clip": "ADR_CLIP", "leaky_relu": "ADR_LEAKY_RELU"}


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


def pooling_fields(graph: Graph, operator: Operator) -> dict[str, int]:
    """``adr_window`` of a pooling."""
    window = operator.attributes["window"]
    (_, H, W, C), (_, OH, OW, _) = (graph.tensors[name].shape for name in (operator.inputs[0], operator.output))
    KH, KW = window.size
    geometry = ConvGeometry(H, W, C, KH, KW, C, window.strides, window.padding, window.dilation)
    return window_fields(geometry) | {"out_height": OH, "out_width": OW}


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
