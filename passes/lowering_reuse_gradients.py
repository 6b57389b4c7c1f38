"""The backward pass of reused layers as calls of TIR kernels, for a CPU target.

Members of the clusters sorted -> sums of dZ and what they are multiplied with, one kernel, since sums never leave the
cache -> parts summed -> gradients of the centroids spread over their members.
"""

from __future__ import annotations

from typing import Any

from tvm import relax, tirx
from tvm.target import Target

from adr_tvm import ops
from adr_tvm._tvm import tensor_type
from adr_tvm.gradients.reuse import GRAD, gradient_geometry
from adr_tvm.schedules.cluster_gradients import cluster_gradients
from adr_tvm.schedules.gradient_layout import GradientLayout
from adr_tvm.schedules.gradient_sums import centroid_gradient, sum_weight_gradient, transpose_weights
from adr_tvm.schedules.member_lists import member_lists
from adr_tvm.schedules.register_tile import isa_of
from adr_tvm.schedules.spread_gradients import spread_gradients


def lower_reuse_gradients(bb: relax.BlockBuilder, call: relax.Call, target: Target) -> relax.Expr:
    """The lowered form of ``adr.reuse_grad`` or ``adr.reuse_weight_grad``."""
    batch, g = gradient_geometry(call)
    layout = GradientLayout(g, ops.setting_of(call), batch, isa_of(target))

    def run(name: str, func: tirx.PrimFunc, args: list[relax.Expr], out: Any) -> relax.Expr:
        return bb.emit(relax.call_tir(bb.add_func(func, f"adr_{name}"), args, out))

    averaged = call.op.name == GRAD
    dz, *weights, ids, centroids = call.args
    shape = [layout.units, layout.segments, layout.images * layout.map_size]
    if layout.setting.granularity == "row":
        ids = bb.emit(relax.op.reshape(ids, relax.ShapeExpr(shape)))
        stored = [layout.units, 1, layout.capacity, g.K]
        centroids = bb.emit(relax.op.reshape(centroids, relax.ShapeExpr(stored)))
    sorted_types = [tensor_type(layout.starts_shape, "int32"), tensor_type(layout.members_shape, "int32")]
    lists = run("member_lists", member_lists(layout), [ids], sorted_types)
    starts, members = (bb.emit(relax.TupleGetItem(lists, i)) for i in (0, 1))
    weight_sums, dw_type = tensor_type(layout.weight_sums_shape), tensor_type([g.KH, g.KW, g.C, g.M])
    args = [dz, starts, members, centroids]
    if not averaged:
        sums = run("cluster_weight_gradients", cluster_gradients(layout, False), args, weight_sums)
        return run("sum_weight_gradient", sum_weight_gradient(layout), [sums], dw_type)
    transposed = run("transpose_weights", transpose_weights(layout), weights, tensor_type(layout.transposed_shape))
    out = [weight_sums, tensor_type(layout.centroid_sums_shape)]
    both = run("cluster_gradients", cluster_gradients(layout, True), [*args, transposed], out)
    dw_parts, dc_parts = (bb.emit(relax.TupleGetItem(both, i)) for i in (0, 1))
    dw = run("sum_weight_gradient", sum_weight_gradient(layout), [dw_parts], dw_type)
    dc = run("centroid_gradient", centroid_gradient(layout), [starts, dc_parts], tensor_type(layout.centroids_shape))
    dx = run("spread_gradients", spread_gradients(layout), [ids, dc], tensor_type([batch, g.H, g.W, g.C]))
    return relax.Tuple([dw, dx])
