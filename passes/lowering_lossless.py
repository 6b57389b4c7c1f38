"""Layers that match bit-identical rows (``row`` + ``exact``) as calls of TIR kernels, for a CPU target."""

from __future__ import annotations

from tvm import relax
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.passes.carried_ids import CarriedIds
from adr_tvm.passes.lowering_dense import packed_weights
from adr_tvm.schedules.gemm_distinct import Layer
from adr_tvm.schedules.tuned import conv_schedule


def lower_lossless(bb: relax.BlockBuilder, call: relax.Call, target: Target, carried: CarriedIds) -> relax.Expr:
    """The lowered form of a lossless ``adr.reuse_conv2d`` or ``adr.reuse_dense``; its result is compact."""
    g, setting, x, out = ops.geometry_of(call), ops.setting_of(call), call.args[0], ops.output_type(call)
    layer = Layer(g, ops.activation_of(call), conv_schedule(target, g, static_shape(x)[0]))
    if call.op.name == ops.REUSE_DENSE:
        x = carried.reshaped(x, [x.ty.shape[0], g.H, 1, g.C])
    image = tensor_type([x.ty.shape[0], g.OH, g.OW, g.M])
    y, stats = carried.convolved(layer, setting, x, packed_weights(bb, call, g, layer.schedule.tile.NR), image)
    if call.op.name == ops.REUSE_DENSE:
        y = carried.reshaped(y, out.shape)
    return relax.Tuple([y, stats])
