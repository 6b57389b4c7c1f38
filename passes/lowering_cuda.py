"""How one operator of ours becomes calls of TIR kernels, for a CUDA target.

Dense and grouped: one kernel. Reuse of rows: keys, hash table, list of representatives, centroids, GEMM over the
list, copies. How many representatives there are stays on the GPU: grids are made for the most there can be.
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.passes.lowering_cuda_calls import KernelCalls, packed_weights
from adr_tvm.passes.lowering_cuda_dense import lower_dense
from adr_tvm.passes.lowering_cuda_vectors import VectorLowering
from adr_tvm.passes.lowering_dense import image_of, prepared
from adr_tvm.passes.lowering_tensor_cores import rows_on_tensor_cores
from adr_tvm.schedules.cluster import capacity, units
from adr_tvm.schedules.cuda.copy_rows import copy_rows
from adr_tvm.schedules.cuda.grouped_conv2d import grouped_conv2d
from adr_tvm.schedules.cuda.implicit_gemm import implicit_gemm_of_rows
from adr_tvm.schedules.cuda.key_table import insert_keys, table_size
from adr_tvm.schedules.cuda.prefix_sum import blocks_of
from adr_tvm.schedules.cuda.row_clusters import number_rows, row_ids
from adr_tvm.schedules.cuda.row_keys import MANY_ROWS, padded_entries, padded_planes, row_keys
from adr_tvm.schedules.cuda.row_list import count_rows, list_rows
from adr_tvm.schedules.cuda.row_means import numbered_row_means, row_means
from adr_tvm.schedules.cuda.row_table import guard_rows, match_rows
from adr_tvm.schedules.cuda.thread_tile import TYPICAL_BATCH
from adr_tvm.schedules.cuda.tuned_tile import thread_gemm_tile
from adr_tvm.schedules.cuda.vector_match import count_vectors


def lower_call(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The lowered form of a call of one of our operators.

    Args:
        bb: builder that takes the intermediate bindings and the kernels.
        call: call of one of the operators in ``adr_tvm/ops.py``.

    Raises:
        ValueError: reuse with integer tables, or with clusters that persist over batches.
    """
    if call.op.name == ops.GROUPED_CONV2D:
        dtype = str(ops.output_type(call).dtype)
        kernel = grouped_conv2d(ops.geometry_of(call), ops.groups_of(call), ops.activation_of(call), dtype)
        return relax.call_tir(bb.add_func(kernel, "adr_grouped_conv2d"), list(call.args), ops.output_type(call))
    if call.op.name in ops.REUSE_OPS:
        if ops.is_streaming(call):
            raise ValueError(f"{ops.layer_name(call)}: clusters that persist over batches have no kernels for CUDA")
        rows = ops.setting_of(call).granularity == "row"
        return (_RowLowering if rows else VectorLowering)(bb, call).lower()
    return lower_dense(bb, call)


class _RowLowering(KernelCalls):
    def __init__(self, bb: relax.BlockBuilder, call: relax.Call):
        super().__init__(bb, "row")
        self.call, self.geometry, self.setting = call, ops.geometry_of(call), ops.setting_of(call)

    def lower(self) -> relax.Expr:
        """(y, stats); in training (y, stats, ids, centroids)."""
        g, setting = self.geometry, self.setting
        x = image_of(self.bb, self.call)
        B, typical = x.ty.shape[0], static_shape(x)[0] or TYPICAL_BATCH
        U, G = units(setting, B)
        N, exact = G * g.rows, setting.hash == "exact"
        every, words = tensor_type([B * g.rows], "int32"), tensor_type([U, N], "int32")
        slots = table_size(setting, N if setting.scope == "batch" else g.rows)
        counted, dtype = tensor_type([U, 2], "int32"), str(x.ty.dtype)
        keys = row_keys(g, setting, g.rows * typical >= MANY_ROWS, dtype)
        types = [tensor_type([U, N], "int64"), tensor_type([U, slots], "int32"), words, counted]
        key, table, last, stats = self.outputs("keys", keys, [x, *self._planes()], types)
        (table, slot) = self.outputs(
            "insert", insert_keys(), [key, table], [tensor_type([U, slots], "int32"), words], [1, -1]
        )
        match = match_rows(g, setting, dtype)
        lead, stats = self.outputs("match", match, [x, table, slot, stats], [words, counted], [-1, 3])
        lead, stats, last = self.outputs(
            "guard", guard_rows(setting), [lead, stats, last], [words, counted, words], [0, 1, 2]
        )
        blocks = tensor_type([blocks_of(B * g.rows), 2], "int32")
        (counts,) = self.outputs("count", count_rows(), [lead, last], [blocks])
        listed = [every, every, every, tensor_type([2], "int32")]
        work, source, shared, totals = self.outputs("list", list_rows(setting), [lead, last, counts], listed)
        means: list[relax.Expr] = []
        saved: list[relax.Expr] = []
        if ops.is_training(self.call):
            ids, centroids, source, *means = self._numbered(x, lead, slot, last, work, totals)
            saved = [ids, centroids]
        elif not exact:
            cap = capacity(setting, N if setting.scope == "batch" else g.rows)
            out = [tensor_type([U * cap, g.K], dtype)]
            means = self.outputs("means", row_means(g, setting, dtype), [x, lead, last, shared, totals], out)
        if ops.is_backward_only(self.call):
            return relax.Tuple([lower_dense(self.bb, ops.without_reuse(self.call)), stats, *saved])
        if ops.precision_of(self.call) is None:
            tile = thread_gemm_tile(g, static_shape(x)[0], setting)
            kernel = implicit_gemm_of_rows(g, ops.activation_of(self.call), tile, setting)
            weights = packed_weights(self.bb, self.call, tile)
        else:
            kernel, weights = rows_on_tensor_cores(self.bb, self.call, static_shape(x)[0])
        args = [x, *weights, work, totals, *([] if exact else [source, *means])]
        image = tensor_type([B, g.OH, g.OW, g.M], dtype)
        (y,) = self.outputs("gemm", kernel, args, [image])
        (y,) = self.outputs("copy", copy_rows(g, setting, dtype), [lead, y], [image], [1])
        if self.call.op.name == ops.REUSE_DENSE:
            y = self.bb.emit(relax.op.reshape(y, ops.output_type(self.call).shape))
        return relax.Tuple([y, stats, *saved])

    def _numbered(
        self,
        x: relax.Expr,
        lead: relax.Expr,
        slot: relax.Expr,
        last: relax.Expr,
        work: relax.Expr,
        totals: relax.Expr,
    ) -> list[relax.Expr]:
        """ids [U, N], centroids [U, capacity, K]; which of them each listed row stands for, and [U capacity, K]."""
        g, setting, batch = self.geometry, self.setting, static_shape(x)[0]
        if batch is None:
            raise ValueError(f"{ops.layer_name(self.call)}: training needs a batch of known size")
        U, G = units(setting, batch)
        N = G * g.rows
        cap = capacity(setting, N)
        words, every = tensor_type([U, N], "int32"), tensor_type([U * N], "int32")
        (counted,) = self.outputs(
            "count_clusters", count_vectors(), [lead, slot], [tensor_type([U, blocks_of(N)], "int32")]
        )
        numbers = [words, tensor_type([U, cap], "int32"), tensor_type([U], "int32")]
        ranks, firsts, clusters = self.outputs("number", number_rows(), [lead, slot, counted], numbers)
        given = [lead, slot, ranks, work, totals, firsts]
        ids, source = self.outputs("ids", row_ids(), given, [words, every])
        kernel, out = numbered_row_means(g, setting, batch), tensor_type([U * cap, g.K])
        (means,) = self.outputs("means", kernel, [x, lead, last, firsts, clusters], [out])
        return [ids, self.bb.emit(relax.op.reshape(means, relax.ShapeExpr([U, cap, g.K]))), source, means]

    def _planes(self) -> tuple[relax.Expr, relax.Expr]:
        """Planes [K, H] in the order (KH, KW, C) of the kernels' rows, and thresholds [H], padded."""
        g, setting = self.geometry, self.setting
        if setting.hash == "exact":
            return relax.const(np.zeros((1, 1), np.float32)), relax.const(np.zeros(1, np.float32))
        K, H = g.K, setting.H
        Kp, Hp = padded_entries(K), padded_planes(H)

        def fold(v: np.ndarray) -> np.ndarray:
            by_tap = v.reshape(g.C, g.KH, g.KW, H).transpose(1, 2, 0, 3).reshape(K, H)
            return np.pad(by_tap, ((0, Kp - K), (0, Hp - H)))

        def te_fold(t: te.Tensor) -> te.Tensor:
            def entry(k: tirx.Var, h: tirx.Var) -> tirx.PrimExpr:
                k_in, taps = tirx.min(k, K - 1), g.KH * g.KW
                value = t[0, k_in % g.C * taps + k_in // g.C, tirx.min(h, H - 1)]
                return tirx.if_then_else(tirx.all(k < K, h < H), value, tirx.const(0.0, "float32"))

            return te.compute((tirx.const(Kp, "int64"), tirx.const(Hp, "int64")), entry, name="pad_planes")

        def te_thresholds(t: te.Tensor) -> te.Tensor:
            off = tirx.const(np.inf, "float32")
            return te.compute(
                (tirx.const(Hp, "int64"),),
                lambda h: tirx.if_then_else(h < H, t[0, tirx.min(h, H - 1)], off),
                name="pad_thresholds",
            )

        return (
            prepared(self.bb, self.call.args[3], fold, te_fold),
            prepared(
                self.bb, self.call.args[4], lambda v: np.pad(v[0], (0, Hp - H), constant_values=np.inf), te_thresholds
            ),
        )
