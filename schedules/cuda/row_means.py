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


def _mean(geometry: ConvGeometry, dtype: str):
    """Inline that makes the mean of one cluster, row ``to`` of the centroids, with all threads of a block.

    Its representative is row ``n0`` of the N of unit ``u``, ``first`` of the call; ``part`` is the block's share of K.
    """
    g = geometry
    H, W, C, K, OW, rows = g.H, g.W, g.C, g.K, g.OW, g.rows
    KW, (SH, SW), (DH, DW), (PT, PL, _, _) = g.KW, g.strides, g.dilation, g.padding

    def entry(X, row, k):
        iy = row % rows // OW * SH - PT + k // C // KW * DH
        ix = row % rows % OW * SW - PL + k // C % KW * DW
        inside = T.And(T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W)), k < K)
        return T.if_then_else(inside, T.cast(X[row // rows, iy, ix, k % C], "float32"), T.float32(0))

    @T.inline
    def inline(X, lead, last, centroids, hit, members, found, held, base, total, first, u, n0, N, to, part, t):
        held[0] = 1  # members; those of a step, whether the thread's row is one, and how many are before it
        for j in T.unroll(EACH):
            base[j] = entry(X, first, part * (THREADS * EACH) + j * THREADS + t)
            total[j] = T.float32(0)
        for step in range((last[u, n0] - n0 + (THREADS - 1)) // THREADS):
            n = T.meta_var(n0 + 1 + step * THREADS + t)
            held[2] = 0
            if n < N:
                if lead[u, n] == n0:
                    held[2] = 1
            hit[t] = held[2]
            T.tvm_storage_sync("shared")
            held[3] = 0
            if T.Or(held[2] == 1, t == THREADS - 1):
                for i in range(t):
                    held[3] = held[3] + hit[i]
            if held[2] == 1:
                members[held[3]] = first + 1 + step * THREADS + t
            if t == THREADS - 1:
                found[0] = held[3] + held[2]
            T.tvm_storage_sync("shared")
            held[1] = found[0]
            for i in range(held[1]):
                for j in T.unroll(EACH):
                    k = T.meta_var(part * (THREADS * EACH) + j * THREADS + t)
                    total[j] = total[j] + (entry(X, members[i], k) - base[j])
            held[0] = held[0] + held[1]
            T.tvm_storage_sync("shared")
        for j in T.unroll(EACH):
            k = T.meta_var(part * (THREADS * EACH) + j * THREADS + t)
            if k < K:
                centroids[to, k] = T.cast(base[j] + total[j] / T.cast(held[0], "float32"), dtype)

    return inline


@functools.cache
def row_means(geometry: ConvGeometry, setting: ReuseSetting, dtype: str = "float32") -> tirx.PrimFunc:
    """Centroids; sums are fp32 whatever the ``dtype`` of X and of the result.

    Returns:
        PrimFunc of X [B, H, W, C], lead, last int32 [U, N], shared int32 [B * rows], totals int32 [2] and the
        output centroids [U * capacity, K].
    """
    H, W, C, K, rows = geometry.H, geometry.W, geometry.C, geometry.K, geometry.rows
    columns, mean = -(-K // (THREADS * EACH)), _mean(geometry, dtype)

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
                    held = T.alloc_buffer((4,), "int32", scope="local")
                    base = T.alloc_buffer((EACH,), "float32", scope="local")
                    total = T.alloc_buffer((EACH,), "float32", scope="local")
                    for c in range((totals[1] - block + (BLOCKS - 1)) // BLOCKS):
                        id = T.meta_var(c * BLOCKS + block)
                        first = T.meta_var(shared[id])
                        u = T.meta_var(first // T.cast(N, "int32"))
                        n0 = T.meta_var(first % T.cast(N, "int32"))
                        mean(
                            X, lead, last, centroids, hit, members, found, held, base, total, first, u, n0,
                            T.cast(N, "int32"), id, part, t,
                        )  # fmt: skip

    return kernel


@functools.cache
def numbered_row_means(geometry: ConvGeometry, setting: ReuseSetting, batch: int) -> tirx.PrimFunc:
    """Centroids of all clusters by unit and number, as training keeps them; a single member's is that row.

    Returns:
        PrimFunc of X float32 [B, H, W, C], lead, last int32 [U, N], firsts int32 [U, capacity], clusters int32 [U] and
        the output centroids float32 [U * capacity, K], of which rows behind a unit's last cluster are not written.
    """
    H, W, C, K, rows = geometry.H, geometry.W, geometry.C, geometry.K, geometry.rows
    columns, mean = -(-K // (THREADS * EACH)), _mean(geometry, "float32")
    U, G = units(setting, batch)
    N = G * rows
    cap = capacity(setting, N)

    @T.prim_func(private=True)
    def kernel(x: T.handle, le: T.handle, la: T.handle, fi: T.handle, cl: T.handle, ce: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        X = T.match_buffer(x, (T.int64(batch), T.int64(H), T.int64(W), T.int64(C)), "float32")
        lead = T.match_buffer(le, (T.int64(U), T.int64(N)), "int32")
        last = T.match_buffer(la, (T.int64(U), T.int64(N)), "int32")
        firsts = T.match_buffer(fi, (T.int64(U), T.int64(cap)), "int32")
        clusters = T.match_buffer(cl, (T.int64(U),), "int32")
        centroids = T.match_buffer(ce, (T.int64(U * cap), T.int64(K)), "float32")
        for block in T.thread_binding(BLOCKS, "blockIdx.x"):
            for part in T.thread_binding(columns, "blockIdx.y"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    hit = T.alloc_buffer((THREADS,), "int32", scope="shared")
                    members = T.alloc_buffer((THREADS,), "int32", scope="shared")
                    found = T.alloc_buffer((1,), "int32", scope="shared")
                    held = T.alloc_buffer((4,), "int32", scope="local")
                    base = T.alloc_buffer((EACH,), "float32", scope="local")
                    total = T.alloc_buffer((EACH,), "float32", scope="local")
                    for i in range((U * cap - block + (BLOCKS - 1)) // BLOCKS):
                        id = T.meta_var(i * BLOCKS + block)
                        u = T.meta_var(id // cap)
                        n0 = T.meta_var(firsts[u, id % cap])
                        if id % cap < clusters[u]:
                            mean(
                                X, lead, last, centroids, hit, members, found, held, base, total, u * N + n0, u, n0,
                                N, id, part, t,
                            )  # fmt: skip

    return kernel
