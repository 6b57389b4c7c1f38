"""Which C kernel runs each operator, with its parameters and packed constants.

One function for each kind of operator and dtype, in ``KERNELS``; those that only move entries are in ``copies.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from adr_tvm.bare_c.copies import copy_call
from adr_tvm.bare_c.graph import Graph, Operator
from adr_tvm.bare_c.kernel_call import KernelCall
from adr_tvm.bare_c.packing import (
    activation_fields,
    convolution_fields,
    packed_weights,
    pooling_fields,
    window_fields,
)
from adr_tvm.bare_c.reuse_calls import reuse_call

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
    parameters = {"window": pooling_fields(graph, operator), "count_pads": operator.attributes["count_pads"]}
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


for _kind in ("reuse_conv2d", "reuse_dense"):
    KERNELS[_kind, "float32"] = reuse_call
for _kind in ("transpose", "strided_slice", "pad", "concat_part"):
    KERNELS[_kind, "float32"] = copy_call


@kernel("view")
def _view(_graph: Graph, operator: Operator) -> KernelCall:
    return KernelCall("", inputs=operator.inputs)
