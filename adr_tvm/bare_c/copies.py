"""Operators that move entries (transposes, slices, pads, concatenations) as one strided copy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from adr_tvm.bare_c.graph import Graph, Operator
from adr_tvm.bare_c.kernel_call import KernelCall
from adr_tvm.errors import ModelError

MAX_RANK = 6  # ADR_MAX_RANK


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides of a tensor, in entries."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def copy_fields(
    layer: str, shape: Sequence[int], x: tuple[int, Sequence[int]], y: tuple[int, Sequence[int]]
) -> dict[str, Any]:
    """``adr_copy`` with as few axes as possible.

    Args:
        layer: whose copy it is, for errors.
        shape: of what is copied.
        x, y: start and strides, in entries.

    Raises:
        ModelError: there are too many axes.
    """
    axes: list[tuple[int, int, int]] = []
    for size, x_stride, y_stride in zip(shape, x[1], y[1], strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1:] == (size * x_stride, size * y_stride):
            size *= axes.pop()[0]
        axes.append((size, x_stride, y_stride))
    axes = axes or [(1, 1, 1)]
    if len(axes) > MAX_RANK:
        raise ModelError(f"{layer}: no C code for copies of {len(axes)} axes")
    padded = [*axes, *itertools.repeat((1, 0, 0), MAX_RANK - len(axes))]
    sizes, x_strides, y_strides = zip(*padded, strict=True)
    return {
        "rank": len(axes),
        "shape": sizes,
        "x_start": x[0],
        "x_strides": x_strides,
        "y_start": y[0],
        "y_strides": y_strides,
    }


def copy_parameters(graph: Graph, operator: Operator) -> dict[str, Any]:
    """``adr_copy`` of a ``transpose``, ``strided_slice``, ``pad`` or ``concat_part``."""
    a, x, y = operator.attributes, graph.tensors[operator.inputs[0]].shape, graph.tensors[operator.output].shape
    x_strides, y_strides = row_major(x), row_major(y)
    if operator.kind == "transpose":
        return copy_fields(operator.name, y, (0, [x_strides[axis] for axis in a["axes"]]), (0, y_strides))
    if operator.kind == "strided_slice":
        start = sum(begin * stride for begin, stride in zip(a["begin"], x_strides, strict=True))
        steps = [step * stride for step, stride in zip(a["strides"], x_strides, strict=True)]
        return copy_fields(operator.name, y, (start, steps), (0, y_strides))
    before = a["before"] if operator.kind == "pad" else [0] * a["axis"] + [a["start"]]
    start = sum(first * stride for first, stride in zip(before, y_strides, strict=False))
    return copy_fields(operator.name, x, (0, x_strides), (start, y_strides))


def copy_call(graph: Graph, operator: Operator) -> KernelCall:
    """How such an operator runs in float32."""
    fields = copy_parameters(graph, operator)
    if operator.kind != "pad":
        return KernelCall("adr_copy_f32", ("copy_f32.c",), "adr_copy", fields, operator.inputs)
    size, value = graph.tensors[operator.output].elements, operator.attributes["value"]
    padded = {"copy": fields, "size": size, "value": value}
    return KernelCall("adr_pad_f32", ("copy_f32.c",), "adr_pad", padded, operator.inputs)
