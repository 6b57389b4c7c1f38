"""Centroids of the numbered clusters (``docs/algorithm.md``, clause 7): a block for each, members in order.

The block looks through the rows from the representative to the last member, some hundred at a time, lists those that
belong to it, and each of its threads adds up a few entries of K. So a sum has the order of the rows, whatever the order
of blocks and threads.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import capacity, units
from adr_tvm.settings import ReuseSetting

THREADS = 256
EACH = 4  # entries of K of a thread
BLOCKS = 1024  # in the grid at most; each takes further clusters when it is done


@functools.cache
def row_means(geometry: ConvGeometry, setting: ReuseSetting, dtype: str = "float32") -> tirx.PrimFunc:
    """Centroids; sums are fp32 whatever the ``dtype`` of X and of the result.

    Returns:
        PrimFunc of X [B, H, W, C], lead, last int32 [U, N], shared int32 [B * rows], totals int32 [2] and the
        output centroids [U * capacity, K].
    """
    g = geometry
    H, W, C, K, OW, rows = g.H, g.W, g.C, g.K, g.OW, g.rows
    KW, (SH, SW), (DH, DW), (PT, PL, _, _) = g.KW, g.strides, g.dilation, g.padding
    columns = -(-K // (THREADS * EACH))

    def entry(X, row, k):
        iy = row % rows // OW * SH - PT + k // C // KW * DH
        ix = row % rows % OW * SW - PL + k // C % KW * DW
        inside = T.And(T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W)), k < K)
        return T.if_then_else(inside, T.cast(X[row // rows, iy, ix, k % C], "float32"), T.float32(0))

    @T.prim_func(private=True)
    def kernel(x: T.handle, le: T.handle, la: T.handle, sh: T.handle, to: T.handle, ce: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        N = T.meta_var(units(setting, B)[1] * T.int64(rows))
        cap = T.meta_var(capacity(setting, N if setting.scope == "batch" else rows))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
        lead = T.match_buffer(le, (U, N), "int32")
        last = T.match_buffer(la, (U, N), "int32")
        shared = T.match_buffer(sh, (B * T.int64(rows),), "int32")
        totals = T.match_buffer(to, (T.int64(2),), "int32")
        centroids = T.match_buffer(ce, (U * cap, T.int64(K)), dtype)
        for block in T.thread_binding(BLOCKS, "blockIdx.x"):
            for part in T.thread_binding(columns, "blockIdx.y"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    hit = T.alloc_buffer((THREADS,), "int32", scope="shared")
                    members = T.alloc_buffer((THREADS,), "int32", scope="shared")
                    found = T.alloc_buffer((1,), "int32", scope="shared")
                    mine = T.alloc_buffer((1,), "int32", scope="local")
                    here = T.alloc_buffer((1,), "int32", scope="local")
                    rank = T.alloc_buffer((1,), "int32", scope="local")
                    count = T.alloc_buffer((1,), "int32", scope="local")
                    base = T.alloc_buffer((EACH,), "float32", scope="local")
                    total = T.alloc_buffer((EACH,), "float32", scope="local")
                    for c in range((totals[1] - block + (BLOCKS - 1)) // BLOCKS):
                        id = T.meta_var(c * BLOCKS + block)
                        first = T.meta_var(shared[id])
                        u = T.meta_var(first // T.cast(N, "int32"))
                        n0 = T.meta_var(first % T.cast(N, "int32"))
                        count[0] = 1
                        for j in T.unroll(EACH):
                            base[j] = entry(X, first, part * (THREADS * EACH) + j * THREADS + t)
                            total[j] = T.float32(0)
                        for step in range((last[u, n0] - n0 + (THREADS - 1)) // THREADS):
                            n = T.meta_var(n0 + 1 + step * THREADS + t)
                            mine[0] = 0
                            if n < T.cast(N, "int32"):
                                if lead[u, n] == n0:
                                    mine[0] = 1
                            hit[t] = mine[0]
                            T.tvm_storage_sync("shared")
                            rank[0] = 0
                            if T.Or(mine[0] == 1, t == THREADS - 1):
                                for i in range(t):
                                    rank[0] = rank[0] + hit[i]
                            if mine[0] == 1:
                                members[rank[0]] = first + 1 + step * THREADS + t
                            if t == THREADS - 1:
                                found[0] = rank[0] + mine[0]
                            T.tvm_storage_sync("shared")
                            here[0] = found[0]
                            for i in range(here[0]):
                                for j in T.unroll(EACH):
                                    k = T.meta_var(part * (THREADS * EACH) + j * THREADS + t)
                                    total[j] = total[j] + (entry(X, members[i], k) - base[j])
                            count[0] = count[0] + here[0]
                            T.tvm_storage_sync("shared")
                        for j in T.unroll(EACH):
                            k = T.meta_var(part * (THREADS * EACH) + j * THREADS + t)
                            if k < K:
                                centroids[id, k] = T.cast(base[j] + total[j] / T.cast(count[0], "float32"), dtype)

    return kernel
