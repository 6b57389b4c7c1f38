"""Grouped and depthwise convolutions as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

import dataclasses

import numpy as np
from tvm import relax, tirx
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import static_shape
from adr_tvm.passes.lowering_dense import prepared
from adr_tvm.schedules.depthwise_conv2d import (
    depthwise_conv2d,
    pack_depthwise_weights,
    te_pack_depthwise_weights,
)
from adr_tvm.schedules.grouped_conv2d import grouped_conv2d, pack_grouped_weights, te_pack_grouped_weights
from adr_tvm.schedules.packing import te_lengthen
from adr_tvm.schedules.register_tile import gemm_tile, isa_of

SHORT_K = 32  # sums so short that a tile of one vector, which is written back less often, is faster (28 against 55 us)


def lower_grouped(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of a call of ``adr.grouped_conv2d``."""
    w, bias = call.args[1:3]
    geometry, groups, activation = ops.geometry_of(call), ops.groups_of(call), ops.activation_of(call)
    isa = isa_of(target)
    kernel: tirx.PrimFunc
    if geometry.C == 1 and geometry.M == 1:
        channels, batch = dataclasses.replace(geometry, C=groups), static_shape(call.args[0])[0]
        kernel = depthwise_conv2d(channels, activation, isa, batch)
        packed = prepared(
            bb, w, lambda v: pack_depthwise_weights(v, isa.lanes), lambda t: te_pack_depthwise_weights(t, isa.lanes)
        )
    else:
        tile = gemm_tile(isa, isa.lanes if geometry.K <= SHORT_K else geometry.M)
        kernel = grouped_conv2d(geometry, groups, activation, tile)
        packed = prepared(
            bb,
            w,
            lambda v: pack_grouped_weights(v, groups, tile.NR),
            lambda t: te_pack_grouped_weights(t, groups, tile.NR),
        )
        bias = prepared(bb, bias, lambda v: np.pad(v, (0, tile.NR)), lambda t: te_lengthen(t, tile.NR))
    func = bb.add_func(kernel, "adr_grouped_conv2d")
    return relax.call_tir(func, [call.args[0], packed, bias], ops.output_type(call))
