"""Which C kernel runs each int8 operator (``adr_tvm/int8/quantise.py`` says what they are)."""

from __future__ import annotations

from typing import Any

import numpy as np

from adr_tvm.bare_c.copies import copy_parameters
from adr_tvm.bare_c.graph import Graph, Operator
from adr_tvm.bare_c.int8_packing import (
    convolution_matrix,
    pack_planes,
    pack_weights,
    rescale_table,
    reuse_matrix,
    reuse_memory,
)
from adr_tvm.bare_c.kernel_call import KernelCall
from adr_tvm.bare_c.kernel_calls import kernel
from adr_tvm.bare_c.packing import as_rows, window_fields
from adr_tvm.geometry import ConvGeometry
from adr_tvm.int8.float_operators import group_geometry, pool_geometry

INT8_HEADER = "adr_int8.h"
HEADERS = (INT8_HEADER, "adr_int8_rounding.h", "adr_int8_pairs.h", "adr_int8_neon.h")
PRODUCTS = (*HEADERS, "adr_int8_products.h", "products_i8.c", "columns_i8.c")
CLUSTERS = ("adr_int8_clusters.h", "clusters_i8.c", "adr_int8_gather.h", "gather_i8.c")


def _layer(operator: Operator, geometry: ConvGeometry) -> tuple[dict[str, Any], np.ndarray]:
    """``adr_int8_layer`` and its table of rescaling."""
    a = operator.attributes
    table = rescale_table(operator.constants["bias"], a["rescale"], a.get("residual_rescale"))
    fields = {"window": window_fields(geometry), "low": a["low"], "high": a["high"], "rescale_words": table.shape[1]}
    return fields, table


def _dense_words(K: int, M: int) -> int:
    return 2 * -(-K // 4) + M + M % 2


@kernel("conv2d", "dense", dtype="int8")
def _conv2d(_graph: Graph, operator: Operator) -> KernelCall:
    g = as_rows(operator.attributes["geometry"])
    fields, table = _layer(operator, g)
    weight = operator.constants["weight"].reshape(g.KH, g.KW, g.C, g.M)
    constants = {"weight": pack_weights(convolution_matrix(weight)), "rescale": table}
    x, *residual = operator.inputs
    if g.H * g.W == 1 and g.KH * g.KW == 1 and not residual:
        words, sources = _dense_words(g.C, g.M), (*HEADERS, "dense_i8.c")
        return KernelCall("adr_dense_i8", sources, "adr_int8_layer", fields, (x,), constants, 4 * words)
    words = 8 * -(-g.K // 4) + 8 * -(-g.M // 2)
    inputs = (x, residual[0] if residual else None)
    return KernelCall(
        "adr_conv2d_i8",
        (*PRODUCTS, "conv2d_i8.c"),
        "adr_int8_layer",
        fields,
        inputs,
        constants,
        4 * words,
        in_place=tuple(residual),
    )


@kernel("grouped_conv2d", dtype="int8")
def _depthwise(_graph: Graph, operator: Operator) -> KernelCall:
    groups = operator.attributes["groups"]
    g = group_geometry(operator.attributes["geometry"], groups, groups)
    fields, table = _layer(operator, g)
    constants = {"weight": operator.constants["weight"].reshape(g.KH, g.KW, groups), "rescale": table}
    sources = (*HEADERS, "depthwise_i8.c")
    return KernelCall("adr_depthwise_i8", sources, "adr_int8_layer", fields, operator.inputs, constants)


@kernel("logits", dtype="int8")
def _logits(_graph: Graph, operator: Operator) -> KernelCall:
    g, c = operator.attributes["geometry"], operator.constants
    weight = pack_weights(convolution_matrix(c["weight"].reshape(1, 1, g.C, g.M)))
    constants = {"weight": weight, "bias": c["bias"], "scale": c["scale"]}
    fields = {"channels": g.C, "out_channels": g.M}
    sources = (*HEADERS, "dense_i8.c")
    words = _dense_words(g.C, g.M)
    return KernelCall("adr_logits_i8", sources, "adr_int8_logits", fields, operator.inputs, constants, 4 * words)


@kernel("reuse_conv2d", "reuse_dense", dtype="int8")
def _reuse(_graph: Graph, operator: Operator) -> KernelCall:
    g, setting, c = operator.attributes["geometry"], operator.attributes["setting"], operator.constants
    S, L, shift = g.segments(setting), g.vector_length(setting), operator.attributes["table_shift"]
    memory = reuse_memory(g, setting, shift)
    layer, table = _layer(operator, g)
    fields = {
        "layer": layer,
        "segments": S,
        "length": L,
        "bits": 0 if setting.hash == "exact" else setting.H,
        "capacity": memory.capacity,
        "slots": memory.slots,
        "max_clusters": memory.max_clusters,
        "centroids": memory.centroids,
        "table_shift": memory.table_shift,
        "table_words": memory.table_words,
    }
    weight = pack_weights(reuse_matrix(c["weight"].reshape(g.KH, g.KW, g.C, g.M), setting.granularity, S, L))
    exact = setting.hash == "exact"
    planes = {"planes": None if exact else pack_planes(c["planes"]), "thresholds": None if exact else c["thresholds"]}
    return KernelCall(
        f"adr_reuse_{setting.granularity}_i8",
        (*PRODUCTS, *CLUSTERS, f"reuse_{setting.granularity}_i8.c"),
        "adr_int8_reuse",
        fields,
        operator.inputs,
        {"weight": weight, "rescale": table, **planes},
        memory.scratch,
        counts=True,
    )


@kernel("max_pool2d", dtype="int8")
def _max_pool(graph: Graph, operator: Operator) -> KernelCall:
    x, y = (graph.tensors[name].shape for name in (operator.inputs[0], operator.output))
    fields = window_fields(pool_geometry(operator.attributes["window"], x)) | {"out_height": y[1], "out_width": y[2]}
    return KernelCall("adr_max_pool_i8", (*HEADERS, "pool_i8.c"), "adr_window", fields, operator.inputs)


@kernel("average", dtype="int8")
def _average(graph: Graph, operator: Operator) -> KernelCall:
    g = pool_geometry(operator.attributes["window"], graph.tensors[operator.inputs[0]].shape)
    rescale = operator.attributes["rescale"]
    fields = {
        "window": window_fields(g),
        "multiplier": rescale.multiplier[0],
        "shift": rescale.shift[0],
        "low": -128,
        "high": 127,
    }
    return KernelCall("adr_average_pool_i8", (*HEADERS, "pool_i8.c"), "adr_int8_average", fields, operator.inputs)


@kernel("add", dtype="int8")
def _add(graph: Graph, operator: Operator) -> KernelCall:
    a = operator.attributes
    fields = {
        "size": graph.tensors[operator.output].elements,
        "multiplier_a": a["multipliers"][0],
        "multiplier_b": a["multipliers"][1],
        **{name: a[name] for name in ("shift", "low", "high")},
    }
    sources = (*HEADERS, "elementwise_i8.c")
    return KernelCall("adr_add_i8", sources, "adr_int8_add", fields, operator.inputs, in_place=operator.inputs)


def _scaled(graph: Graph, operator: Operator, factor: float) -> KernelCall:
    fields = {"size": graph.tensors[operator.output].elements, "factor": np.float32(factor)}
    function, sources = f"adr_{operator.kind}_i8", (*HEADERS, "elementwise_i8.c")
    return KernelCall(function, sources, "adr_int8_scale", fields, operator.inputs)


@kernel("quantise")
def _quantise(graph: Graph, operator: Operator) -> KernelCall:
    return _scaled(graph, operator, 1 / operator.attributes["scale"])


@kernel("dequantise", dtype="int8")
def _dequantise(graph: Graph, operator: Operator) -> KernelCall:
    return _scaled(graph, operator, operator.attributes["scale"])


@kernel("transpose", "strided_slice", "pad", "concat_part", dtype="int8")
def _copy(graph: Graph, operator: Operator) -> KernelCall:
    fields, sources = copy_parameters(graph, operator), (*HEADERS, "copy_i8.c")
    if operator.kind != "pad":
        return KernelCall("adr_copy_i8", sources, "adr_copy", fields, operator.inputs)
    padded = {"copy": fields, "size": graph.tensors[operator.output].elements, "value": 0.0}
    return KernelCall("adr_pad_i8", sources, "adr_pad", padded, operator.inputs)


@kernel("view", dtype="int8")
def _view(_graph: Graph, operator: Operator) -> KernelCall:
    return KernelCall("", inputs=operator.inputs)
