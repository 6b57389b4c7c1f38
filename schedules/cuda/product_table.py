"""Products of centroids with the weights of every tap, a table for each of a few segments (``docs/algorithm.md``, 12).

A GEMM for each segment of a unit: clusters x L times L x (taps M). A table has a fixed number of rows; what lies behind
is left to ``gather_add``. The grid is made for full tables, and blocks behind the last cluster return at once.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
from adr_tvm.schedules.cuda.bfloat16 import bits_of, is_packed, number_of
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.schedules.reuse_schedule import table_clusters
from adr_tvm.settings import ReuseSetting

BM, BN, BK = 32, 128, 16  # clusters, products of each, entries of a centroid
TM, TN = 4, 4
THREADS = BM // TM * (BN // TN)
TABLE_BYTES = 64 << 20  # aim for all tables of a round, were they full


def segments_together(geometry: ConvGeometry, setting: ReuseSetting, units: int) -> int:
    """Segments of a round, whose tables are in memory at once."""
    source = vector_source(geometry, setting)
    row = source.taps * geometry.M * (2 if is_packed(geometry, setting) else 4)
    most = max(1, TABLE_BYTES // (units * table_clusters(geometry, setting) * row))
    rounds = -(-source.segments // min(most, source.segments))
    return -(-source.segments // rounds)


@functools.cache
def product_table(geometry: ConvGeometry, setting: ReuseSetting, together: int, Kp: int, Mp: int) -> tirx.PrimFunc:
    """Tables of the segments of one round.

    Args:
        together: segments of a round.
        Kp, Mp: shape of the weights, as the dense kernel takes them.

    Returns:
        PrimFunc of X float32 [B, H, W, C], not read, weights float32 [Kp, Mp], centroids float32 [U, S, capacity +
        SPARE_CENTROIDS, Lp], counts int32 [U, S, 2], stats int32 [U, 2], round int32 [1] and the output table float32
        [U, together, clusters, taps M], or of pairs of bfloat16, uint32 of half as many columns.
    """
    source = vector_source(geometry, setting)
    H, W, C, M, S, L, Lp = geometry.H, geometry.W, geometry.C, geometry.M, source.segments, source.L, source.Lp
    per_image, weight_row = source.per_image, source.weight_row
    clusters, width = table_clusters(geometry, setting), source.taps * geometry.M
    down, across, per_part = -(-clusters // BM), -(-width // BN), BN // TN
    V = 4 if M % 4 == 0 else 1
    packed, rounded = is_packed(geometry, setting), setting.table == "bfloat16"
    stored, dtype = (width // 2, "uint32") if packed else (width, "float32")

    @T.prim_func(private=True)
    def kernel(x: T.handle, w: T.handle, ce: T.handle, co: T.handle, st: T.handle, ro: T.handle, ta: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        rows = T.meta_var(capacity(setting, units(setting, B)[1] * T.int64(per_image)) + SPARE_CENTROIDS)
        _X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        weights = T.match_buffer(w, (T.int64(Kp), T.int64(Mp)), "float32")
        centroids = T.match_buffer(ce, (U, T.int64(S), rows, T.int64(Lp)), "float32")
        counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        round = T.match_buffer(ro, (T.int64(1),), "int32")
        table = T.match_buffer(ta, (U, T.int64(together), T.int64(clusters), T.int64(stored)), dtype)
        flat_w = T.decl_buffer((Kp * Mp,), "float32", data=weights.data)
        for block in T.thread_binding(U * (together * down * across), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                A = T.alloc_buffer((BK * (BM + 4),), "float32", scope="shared")
                P = T.alloc_buffer((BK * BN,), "float32", scope="shared")
                acc = T.alloc_buffer((TM * TN,), "float32", scope="local")
                a = T.alloc_buffer((TM,), "float32", scope="local")
                b = T.alloc_buffer((TN,), "float32", scope="local")
                many = T.alloc_buffer((1,), "int32", scope="local")
                u = T.meta_var(T.cast(block, "int64") // (together * down * across))
                z = T.meta_var(T.cast(block // (down * across) % together, "int32"))
                first = T.meta_var(T.cast(block // across % down, "int32") * BM)
                column = T.meta_var(T.cast(block % across, "int32") * BN)
                s = T.meta_var(round[0] * together + z)
                if s >= S:
                    T.evaluate(T.thread_return())
                many[0] = T.min(counts[u, s, 0], clusters)
                if T.Or(first >= many[0], stats[u, 1] == 0):
                    T.evaluate(T.thread_return())
                for i in T.unroll(TM * TN):
                    acc[i] = T.float32(0)
                for step in range(-(-L // BK)):
                    for i in T.unroll(BM * BK // THREADS):
                        c = T.meta_var((i * THREADS + t) // BK)
                        l = T.meta_var((i * THREADS + t) % BK)
                        A[l * (BM + 4) + c] = T.if_then_else(
                            T.And(first + c < many[0], step * BK + l < source.valid_length(s)),
                            centroids[u, s, first + c, step * BK + l],
                            T.float32(0),
                        )
                    for i in T.unroll(BK * BN // V // THREADS):
                        l = T.meta_var((i * THREADS + t) // (BN // V))
                        j = T.meta_var((i * THREADS + t) % (BN // V) * V)
                        if T.And(column + j < width, step * BK + l < source.valid_length(s)):
                            for v in T.vectorized(V):
                                P[l * BN + j + v] = flat_w[
                                    weight_row(s, (column + j) // M, step * BK + l) * Mp + (column + j) % M + v
                                ]
                        else:
                            for v in T.vectorized(V):
                                P[l * BN + j + v] = T.float32(0)
                    T.tvm_storage_sync("shared")
                    for l in T.unroll(BK):
                        for v in T.vectorized(TM):
                            a[v] = A[l * (BM + 4) + t // per_part * TM + v]
                        for v in T.vectorized(TN):
                            b[v] = P[l * BN + t % per_part * TN + v]
                        for i in T.unroll(TM):
                            for j in T.unroll(TN):
                                acc[i * TN + j] = acc[i * TN + j] + a[i] * b[j]
                    T.tvm_storage_sync("shared")
                for i in T.unroll(TM):
                    c = T.meta_var(first + t // per_part * TM + i)
                    if c < many[0]:
                        for g in T.unroll(TN // V):
                            j = T.meta_var(column + t % per_part * TN + g * V)
                            if j < width:
                                if packed:
                                    for v in T.unroll(V // 2):
                                        low = T.meta_var(bits_of(acc[i * TN + g * V + 2 * v]))
                                        high = T.meta_var(bits_of(acc[i * TN + g * V + 2 * v + 1]))
                                        table[u, z, c, j // 2 + v] = low + T.shift_left(high, T.uint32(16))
                                elif rounded:
                                    table[u, z, c, j] = number_of(bits_of(acc[i * TN + g]))
                                else:
                                    for v in T.vectorized(V):
                                        table[u, z, c, j + v] = acc[i * TN + g * V + v]

    return kernel
