"""Runs a graph of int8 in NumPy, on batches: what its C code computes, byte by byte where all is integer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adr_tvm.bare_c.graph import Graph, Operator
from adr_tvm.int8 import operators
from adr_tvm.int8.fixed_point import requantise, round_shift
from adr_tvm.int8.float_operators import group_geometry, moved, pool_geometry, run_operator
from adr_tvm.int8.reuse import IntegerPlanes, IntegerReuse, reuse_conv2d

Arrays = Sequence[np.ndarray]


def run_integer(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors [B, ...] by name."""
    values = {name: np.asarray(inputs[name], np.float32) for name in graph.inputs}
    for operator in graph.operators:
        values[operator.output] = run_integer_operator(graph, operator, values)
    return values


def run_integer_operator(graph: Graph, operator: Operator, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Result [B, ...] of one operator, integer or not, on the tensors so far."""
    arrays = [values[name] for name in operator.inputs]
    shape, y = (len(arrays[0]), *graph.tensors[operator.output].shape[1:]), None
    if graph.tensors[operator.inputs[0]].dtype == "int8":
        y = moved(operator, arrays, shape, values.get(operator.output))
        y = INTEGER[operator.kind](operator, arrays) if y is None else y
    elif operator.kind == "quantise":
        y = operators.quantise(arrays[0], operator.attributes["scale"])
    return run_operator(graph, operator, values) if y is None else y.reshape(shape)


def reused(operator: Operator, x: np.ndarray) -> IntegerReuse:
    """Sums and clusters of a layer that reuses."""
    c, a = operator.constants, operator.attributes
    g, planes = a["geometry"], None
    if a["setting"].hash != "exact":
        planes = IntegerPlanes(c["planes"], c["thresholds"])
    weight = c["weight"].reshape(g.KH, g.KW, g.C, g.M)
    return reuse_conv2d(x.reshape(-1, g.H, g.W, g.C), weight, c["bias"], g, a["setting"], planes, a["table_shift"])


def _products(operator: Operator, arrays: Arrays) -> np.ndarray:
    c, a, x = operator.constants, operator.attributes, arrays[0]
    g = a["geometry"]
    if operator.kind == "grouped_conv2d":
        whole = group_geometry(g, a["groups"], a["groups"])
        sums = operators.depthwise_sums(x, c["weight"].reshape(g.KH, g.KW, -1), c["bias"], whole)
    elif operator.kind.startswith("reuse_"):
        sums = reused(operator, x).sums
    else:
        weight = c["weight"].reshape(g.KH, g.KW, g.C, g.M)
        sums = operators.conv2d_sums(x.reshape(-1, g.H, g.W, g.C), weight, c["bias"], g)
    if len(arrays) > 1:
        multiplier, shift = a["residual_rescale"]
        residual = arrays[1].reshape(sums.shape).astype(np.int64) * multiplier
        sums = sums + round_shift(residual, shift)
    return requantise(sums, a["rescale"], a["low"], a["high"])


def _logits(operator: Operator, arrays: Arrays) -> np.ndarray:
    c, g = operator.constants, operator.attributes["geometry"]
    weight = c["weight"].reshape(1, 1, g.C, g.M)
    sums = operators.conv2d_sums(arrays[0].reshape(-1, 1, 1, g.C), weight, c["bias"], g)
    return operators.dequantise(sums, c["scale"])


def _average(operator: Operator, arrays: Arrays) -> np.ndarray:
    geometry = pool_geometry(operator.attributes["window"], arrays[0].shape)
    return operators.average_pool(arrays[0], geometry, operator.attributes["rescale"], -128, 127)


def _max_pool(operator: Operator, arrays: Arrays) -> np.ndarray:
    return operators.max_pool(arrays[0], pool_geometry(operator.attributes["window"], arrays[0].shape))


def _add(operator: Operator, arrays: Arrays) -> np.ndarray:
    a = operator.attributes
    return operators.add(arrays[0], arrays[1], a["multipliers"], a["shift"], a["low"], a["high"])


def _dequantise(operator: Operator, arrays: Arrays) -> np.ndarray:
    return operators.dequantise(arrays[0], np.array([operator.attributes["scale"]]))


INTEGER: dict[str, Callable[[Operator, Arrays], np.ndarray]] = {
    **dict.fromkeys(("conv2d", "grouped_conv2d", "dense", "reuse_conv2d", "reuse_dense"), _products),
    "logits": _logits,
    "average": _average,
    "max_pool2d": _max_pool,
    "add": _add,
    "dequantise": _dequantise,
}
