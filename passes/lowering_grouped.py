"""Grouped and depthwise convolutions as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

import dataclasses

import numpy as np
from tvm import relax, tirx
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import constant, static_shape
from adr_tvm.schedules.depthwise_conv2d import depthwise_conv2d, pack_depthwise_weights
from adr_tvm.schedules.grouped_conv2d import grouped_conv2d, pack_grouped_weights
from adr_tvm.schedules.register_tile import gemm_tile, isa_of

SHORT_K = 32  # sums so short that a tile of one vector, which is written back less often, is faster (28 against 55 us)


def lower_grouped(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of a call of ``adr.grouped_conv2d``.

    Raises:
        ValueError: weights or bias are not constants.
    """
    w, bias = constant(call.args[1]), constant(call.args[2])
    if w is None or bias is None:
        raise ValueError(f"{ops.layer_name(call)}: a grouped convolution needs constant weights")
    geometry, groups, activation = ops.geometry_of(call), ops.groups_of(call), ops.activation_of(call)
    isa = isa_of(target)
    kernel: tirx.PrimFunc
    if geometry.C == 1 and geometry.M == 1:
        channels, batch = dataclasses.replace(geometry, C=groups), static_shape(call.args[0])[0]
        kernel = depthwise_conv2d(channels, activation, isa, batch)
        packed, padded = pack_depthwise_weights(w, isa.lanes), bias
    else:
        tile = gemm_tile(isa, isa.lanes if geometry.K <= SHORT_K else geometry.M)
        kernel = grouped_conv2d(geometry, groups, activation, tile)
        packed, padded = pack_grouped_weights(w, groups, tile.NR), np.pad(bias, (0, tile.NR))
    func = bb.add_func(kernel, "adr_grouped_conv2d")
    return relax.call_tir(func, [call.args[0], relax.const(packed), relax.const(padded)], ops.output_type(call))
