"""The backward pass of reused layers as calls of TIR kernels for a CUDA target.

Positions sorted by cluster -> pieces of clusters -> in rounds: sums of dZ over the members of each piece, products with
centroids and with weights -> parts summed -> gradients of the centroids spread over their members. How many clusters
and pieces there are stays on the GPU.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import tensor_type
from adr_tvm.gradients.reuse import GRAD, gradient_geometry
from adr_tvm.passes.lowering_cuda_calls import KernelCalls
from adr_tvm.schedules.cuda.centroid_gradient import centroid_gradient, spread_gradients
from adr_tvm.schedules.cuda.cluster_pieces import ClusterPieces
from adr_tvm.schedules.cuda.member_pieces import count_pieces, number_pieces
from adr_tvm.schedules.cuda.member_sort import (
    DIGIT_BITS,
    DIGITS,
    count_digits,
    digit_offsets,
    place_members,
    sorting_passes,
)
from adr_tvm.schedules.cuda.piece_products import piece_centroid_gradient, piece_weight_gradient, weight_parts
from adr_tvm.schedules.cuda.piece_sums import piece_sums
from adr_tvm.schedules.cuda.prefix_sum import blocks_of
from adr_tvm.schedules.cuda.weight_gradient import sum_parts


def lower_reuse_gradients(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The lowered form of ``adr.reuse_grad`` or ``adr.reuse_weight_grad``."""
    return _Lowering(bb, call).lower()


class _Lowering(KernelCalls):
    def __init__(self, bb: relax.BlockBuilder, call: relax.Call):
        super().__init__(bb, "cluster")
        self.call = call
        batch, self.geometry = gradient_geometry(call)
        self.layout = ClusterPieces.of(self.geometry, ops.setting_of(call), batch)

    def lower(self) -> relax.Expr:
        """dW; with the weights among the arguments (dW, dX)."""
        layout, g = self.layout, self.geometry
        dz, *weights, ids, centroids = self.call.args
        ids = self.bb.emit(relax.op.reshape(ids, relax.ShapeExpr(list(layout.members_shape))))
        centroids = self.bb.emit(relax.op.reshape(centroids, relax.ShapeExpr(list(layout.centroids_shape))))
        members = self._sorted(ids)
        counted_type = tensor_type([layout.groups, blocks_of(layout.positions)], "int32")
        (counted,) = self.outputs("count_pieces", count_pieces(layout), [ids, members], [counted_type])
        shapes = (layout.firsts_shape, layout.owners_shape, layout.leading_shape, (layout.groups, 2))
        types = [tensor_type(shape, "int32") for shape in shapes]
        firsts, owners, leading, totals = self.outputs("pieces", number_pieces(layout), [ids, members, counted], types)
        parts, table_type = weight_parts(layout), tensor_type(layout.table_shape)
        sums_type, e_type = tensor_type([parts, g.K, g.M]), tensor_type(layout.centroid_sums_shape)
        sums: list[relax.Expr] = []
        e: list[relax.Expr] = []
        for i in range(layout.segment_rounds):
            for j in range(layout.piece_rounds):
                number = relax.const(np.array([i, j], np.int32))
                given = [totals, number]
                (table,) = self.outputs("sums", piece_sums(layout), [dz, members, firsts, *given], [table_type])
                args = [centroids, owners, *given, table, *sums]
                inplace = [len(args) - 1] if sums else None
                kernel = piece_weight_gradient(layout, j == 0)
                sums = self.outputs("weight_gradient", kernel, args, [sums_type], inplace)
                if weights:
                    args = [*weights, *given, table, *e]
                    inplace = [len(args) - 1] if e else None
                    e = self.outputs("products", piece_centroid_gradient(layout), args, [e_type], inplace)
        shape = (g.KH, g.KW, g.C, g.M)
        dw = relax.call_tir(self.bb.add_func(sum_parts(parts, shape), "adr_sum_parts"), sums, tensor_type(shape))
        if self.call.op.name != GRAD:
            return dw
        dc_type, dx_type = tensor_type(layout.centroid_gradients_shape), tensor_type([layout.batch, g.H, g.W, g.C])
        (dc,) = self.outputs("centroids", centroid_gradient(layout), [*e, firsts, leading, totals], [dc_type])
        (dx,) = self.outputs("spread", spread_gradients(layout), [ids, dc], [dx_type])
        return relax.Tuple([self.bb.emit(dw), dx])

    def _sorted(self, ids: relax.Expr) -> relax.Expr:
        """Positions sorted by cluster."""
        layout = self.layout
        counts_type = tensor_type([layout.groups, DIGITS * blocks_of(layout.positions)], "int32")
        members_type, members = tensor_type(layout.members_shape, "int32"), ids
        for digit in range(sorting_passes(layout.capacity)):
            shift = relax.const(np.array([digit * DIGIT_BITS], np.int32))
            (counts,) = self.outputs("count_digits", count_digits(), [ids, members, shift], [counts_type])
            (offsets,) = self.outputs("offsets", digit_offsets(), [counts], [counts_type])
            (members,) = self.outputs("sort", place_members(), [ids, members, shift, offsets], [members_type])
        return members
