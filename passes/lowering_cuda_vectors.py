"""Reuse of ``pixel`` and ``segment`` as calls of TIR kernels for a CUDA target.

Keys, hash table, prefix sum, ids and sums, centroids; then rounds of a few segments each: the table of their products,
and the gather-add. Like with ``row``, how many clusters there are stays on the GPU. Ids, centroids and counts have the
form that the kernels for processors give them; training takes ids and centroids on to the backward pass.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from adr_tvm import ops
from adr_tvm._tvm import static_shape, tensor_type
from adr_tvm.passes.lowering_cuda_calls import KernelCalls, packed_weights
from adr_tvm.passes.lowering_cuda_dense import lower_dense
from adr_tvm.passes.lowering_dense import image_of, prepared
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
from adr_tvm.schedules.cuda.bfloat16 import is_packed
from adr_tvm.schedules.cuda.dense_units import dense_units
from adr_tvm.schedules.cuda.gather_add import gather_add
from adr_tvm.schedules.cuda.implicit_gemm import implicit_gemm_of_rows, padded_k, padded_m
from adr_tvm.schedules.cuda.key_table import insert_keys, table_size
from adr_tvm.schedules.cuda.prefix_sum import blocks_of
from adr_tvm.schedules.cuda.product_table import product_table, segments_together
from adr_tvm.schedules.cuda.thread_tile import TYPICAL_BATCH, gemm_tile
from adr_tvm.schedules.cuda.vector_keys import clear_vectors, vector_keys
from adr_tvm.schedules.cuda.vector_match import count_vectors, match_vectors, number_vectors
from adr_tvm.schedules.cuda.vector_means import vector_gains, vector_ids, vector_means
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.schedules.reuse_schedule import table_clusters
from adr_tvm.schedules.vector_key import pad_planes, te_pad_planes, te_pad_thresholds
from adr_tvm.settings import ReuseSetting

TABLES = ("float32", "bfloat16")
_LISTED = ReuseSetting("row", L=1, H=1, hash="exact")  # a GEMM over a list of rows as they are


class VectorLowering(KernelCalls):
    """One call with granularity ``pixel`` or ``segment``."""

    def __init__(self, bb: relax.BlockBuilder, call: relax.Call):
        super().__init__(bb, ops.setting_of(call).granularity)
        self.call, self.geometry, self.setting = call, ops.geometry_of(call), ops.setting_of(call)
        if self.setting.table not in TABLES:
            raise ValueError(f"{ops.layer_name(call)}: table={self.setting.table} has no kernels for CUDA")

    def lower(self) -> relax.Expr:
        """(y, stats); in training (y, stats, ids, centroids)."""
        x = image_of(self.bb, self.call)
        ids, centroids, counts, stats = self._cluster(x)
        saved = [ids, centroids] if ops.is_training(self.call) else []
        if ops.is_backward_only(self.call):
            return relax.Tuple([lower_dense(self.bb, ops.without_reuse(self.call)), stats, *saved])
        y = self._multiply(x, ids, centroids, counts, stats)
        if self.call.op.name == ops.REUSE_DENSE:
            y = self.bb.emit(relax.op.reshape(y, ops.output_type(self.call).shape))
        return relax.Tuple([y, stats, *saved])

    def _cluster(self, x: relax.Expr) -> list[relax.Expr]:
        """ids, centroids, counts and stats, as of ``schedules/cluster.py``."""
        g, setting, exact = self.geometry, self.setting, self.setting.hash == "exact"
        source = vector_source(g, setting)
        U, G = units(setting, x.ty.shape[0])
        S, N = source.segments, G * source.map_size
        cap = capacity(setting, G * source.per_image)
        slots = table_size(setting, N if setting.scope == "batch" else source.map_size)
        every, table_type = tensor_type([U * S, N], "int32"), tensor_type([U * S, slots], "int32")
        counts_type, stats_type = tensor_type([U, S, 2], "int32"), tensor_type([U, 2], "int32")
        sums_type = tensor_type([U * S, cap, source.Lp], "int64")
        members_type, peaks_type = tensor_type([U * S, cap], "int32"), tensor_type([U * S], "int32")
        cleared = [table_type, counts_type, stats_type, *([] if exact else [sums_type, members_type, peaks_type])]
        table, counts, stats, *summing = self.outputs("clear", clear_vectors(g, setting), [x], cleared)
        words = tensor_type([U * S, N], "int64")
        if exact:
            (key,) = self.outputs("keys", vector_keys(g, setting), [x, *self._planes()], [words])
        else:
            sums, members, peaks = summing
            peaks, key = self.outputs(
                "keys", vector_keys(g, setting), [x, *self._planes(), peaks], [peaks_type, words], [3, -1]
            )
        table, slot = self.outputs("insert", insert_keys(), [key, table], [table_type, every], [1, -1])
        counts, stats, lead = self.outputs(
            "match",
            match_vectors(g, setting),
            [x, table, slot, counts, stats],
            [counts_type, stats_type, every],
            [3, 4, -1],
        )
        blocks = tensor_type([U * S, blocks_of(N)], "int32")
        (counted,) = self.outputs("count", count_vectors(), [lead, slot], [blocks])
        stats, ranks, firsts = self.outputs(
            "number",
            number_vectors(g, setting),
            [x, lead, slot, counted, stats],
            [stats_type, every, tensor_type([U * S, cap], "int32")],
            [4, -1, -1],
        )
        ids_type = tensor_type([U, S, N], "int32")
        if exact:
            (ids,) = self.outputs("ids", vector_ids(g, setting), [x, lead, slot, ranks], [ids_type])
            summing = []
        else:
            sums, members, ids = self.outputs(
                "ids",
                vector_ids(g, setting),
                [x, lead, slot, ranks, peaks, sums, members],
                [sums_type, members_type, ids_type],
                [5, 6, -1],
            )
            summing = [sums, members, peaks]
        centroids_type = tensor_type([U, S, cap + SPARE_CENTROIDS, source.Lp])
        (centroids,) = self.outputs("means", vector_means(g, setting), [x, firsts, counts, *summing], [centroids_type])
        return [ids, centroids, counts, stats]

    def _multiply(
        self, x: relax.Expr, ids: relax.Expr, centroids: relax.Expr, counts: relax.Expr, stats: relax.Expr
    ) -> relax.Expr:
        g, setting, activation = self.geometry, self.setting, ops.activation_of(self.call)
        source, B, typical = vector_source(g, setting), x.ty.shape[0], static_shape(x)[0] or TYPICAL_BATCH
        U = units(setting, B)[0]
        tile = gemm_tile(g.rows * typical, g.M)
        weights, bias = packed_weights(self.bb, self.call, tile)
        shape = padded_k(g, tile), padded_m(g, tile)
        together = segments_together(g, setting, 1 if setting.scope == "batch" else typical)
        rounds = -(-source.segments // together)
        image = tensor_type([B, g.OH, g.OW, g.M])
        gains = []
        if setting.gain:
            gains = self.outputs(
                "gains", vector_gains(g, setting), [x, ids, centroids], [tensor_type(ids.ty.shape, "float32")]
            )
        products = product_table(g, setting, together, *shape)
        table_type = tensor_type([U, together, table_clusters(g, setting), source.taps * g.M])
        if is_packed(g, setting):
            table_type = tensor_type([U, together, table_clusters(g, setting), source.taps * g.M // 2], "uint32")
        y: list[relax.Expr] = []
        for r in range(rounds):
            number = relax.const(np.array([r], np.int32))
            given = [centroids, counts, stats, number]
            (table,) = self.outputs("products", products, [x, weights, *given], [table_type])
            kernel = gather_add(g, setting, activation, together, shape, r == 0, r == rounds - 1)
            arguments = [x, weights, bias, ids, *gains, *given, table, *y]
            y = self.outputs("gather", kernel, arguments, [image], [len(arguments) - 1] if y else None)
        if setting.max_clusters is not None:
            every, pair = tensor_type([B * g.rows], "int32"), tensor_type([2], "int32")
            work, totals = self.outputs("dense_units", dense_units(), [stats], [every, pair])
            kernel = implicit_gemm_of_rows(g, activation, tile, _LISTED)
            y = self.outputs("gemm", kernel, [x, weights, bias, work, totals, *y], [image], [5])
        return y[0]

    def _planes(self) -> tuple[relax.Expr, relax.Expr]:
        """Planes [S, L, Hp] and thresholds [S, Hp]."""
        if self.setting.hash == "exact":
            return relax.const(np.zeros((1, 1, 8), np.float32)), relax.const(np.zeros((1, 8), np.float32))
        return (
            prepared(self.bb, self.call.args[3], pad_planes, lambda t: te_pad_planes(t, None)),
            prepared(self.bb, self.call.args[4], lambda v: pad_planes(v, np.inf), te_pad_thresholds),
        )
