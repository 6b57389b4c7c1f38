"""Calls of the kernels of layers that reuse: parameters, packed planes, scratch memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from adr_tvm.bare_c.graph import Graph, Operator
from adr_tvm.bare_c.kernel_call import KernelCall
from adr_tvm.bare_c.packing import as_rows, convolution_fields, pack_channels, packed_weights
from adr_tvm.errors import ModelError
from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting

BLOCK = 4  # ADR_BLOCK
MAX_VECTORS = 2**15 - 1  # ids are int16
SOURCES = ("reuse_conv2d_f32.c", "reuse_cluster_f32.c", "conv2d_f32.c", "adr_reuse.h")


def unsupported(geometry: ConvGeometry, setting: ReuseSetting) -> str:
    """Why bare C has no such layer; empty if it has."""
    if setting.table != "float32":
        return f"table={setting.table}: bare C adds up products in float32"
    if vectors_of(geometry, setting) > MAX_VECTORS:
        return f"{vectors_of(geometry, setting)} neuron vectors in a segment: bare C numbers at most {MAX_VECTORS}"
    return ""


def vectors_of(geometry: ConvGeometry, setting: ReuseSetting) -> int:
    """Places of a segment's vectors; of ``pixel`` also those of pixels that no tap reads."""
    return geometry.H * geometry.W if setting.granularity == "pixel" else geometry.rows


def reuse_fields(geometry: ConvGeometry, setting: ReuseSetting) -> dict[str, Any]:
    """Fields of ``adr_reuse`` but for ``conv``."""
    vectors, exact = vectors_of(geometry, setting), setting.hash == "exact"
    bits = 0 if exact else setting.H
    places = max(1, math.ceil(math.log2(2 * vectors)))
    return {
        "granularity": f"ADR_{setting.granularity.upper()}",
        "length": geometry.vector_length(setting),
        "segments": geometry.segments(setting),
        "vectors": vectors,
        "bits": bits,
        "capacity": vectors if exact else min(2**bits, vectors) + 1,
        "slot_bits": bits if bits and bits <= places else places,
        "max_clusters": -1 if setting.max_clusters is None else setting.max_clusters,
        "gain": setting.gain,
    }


def scratch_bytes(fields: dict[str, Any], M: int) -> int:
    """What ``adr_reuse_layout`` hands out."""
    block = BLOCK if fields["granularity"] != "ADR_ROW" else int(fields["bits"] > 0)
    length, vectors, capacity = fields["length"], fields["vectors"], fields["capacity"]
    floats = (2 + block) * length + block * (-(-M // BLOCK) * BLOCK) + fields["gain"] * vectors + capacity
    shorts = capacity + fields["segments"] * vectors + max(2 ** fields["slot_bits"], capacity + vectors)
    return 4 * floats + 2 * shorts


def packed_planes(
    geometry: ConvGeometry, setting: ReuseSetting, planes: np.ndarray, thresholds: np.ndarray
) -> dict[str, np.ndarray | None]:
    """Planes as [S, ceil(H / 4), L, 4] and thresholds as [S, ceil(H / 4), 4]; a bit that is padded is always 0."""
    if setting.hash == "exact":
        return {"planes": None, "thresholds": None}
    if setting.granularity == "row":  # the kernel's rows run over (KH, KW, C), planes over (C, KH, KW)
        shape = (1, geometry.C, geometry.KH, geometry.KW, -1)
        planes = planes.reshape(shape).transpose(0, 2, 3, 1, 4).reshape(planes.shape)
    fill = -thresholds.shape[1] % BLOCK
    padded = np.pad(thresholds, ((0, 0), (0, fill)), constant_values=np.inf)
    return {"planes": np.stack([pack_channels(each) for each in planes]), "thresholds": padded}


def reuse_call(graph: Graph, operator: Operator) -> KernelCall:
    """How ``reuse_conv2d`` and ``reuse_dense`` run in float32.

    Raises:
        ModelError: bare C has no such reuse.
    """
    geometry, setting = as_rows(operator.attributes["geometry"]), operator.attributes["setting"]
    reason = unsupported(geometry, setting)
    if reason:
        raise ModelError(f"layer {operator.name!r} cannot reuse: {reason}")
    fields, constants = reuse_fields(geometry, setting), operator.constants
    planes = packed_planes(geometry, setting, constants["planes"], constants["thresholds"])
    return KernelCall(
        "adr_reuse_conv2d_f32",
        SOURCES,
        "adr_reuse",
        {"conv": convolution_fields(operator), **fields},
        operator.inputs,
        {**packed_weights(constants), **planes},
        scratch=scratch_bytes(fields, geometry.M),
        counts=True,
    )
