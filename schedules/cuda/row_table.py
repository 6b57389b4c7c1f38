"""Which rows of a unit share a cluster, from the table of keys (``docs/algorithm.md``, clauses 5, 6, 8 and 13)."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, units
from adr_tvm.schedules.cuda.key_table import table_size
from adr_tvm.settings import ReuseSetting

THREADS = 256
WARP = 32


@functools.cache
def match_rows(geometry: ConvGeometry, setting: ReuseSetting, dtype: str = "float32") -> tirx.PrimFunc:
    """The representative of every row, and how many clusters its unit has; of ``exact`` rows the data are compared.

    A warp compares a row with its representative. Rows of one key that are not equal stay clusters of their own.

    Returns:
        PrimFunc of X ``dtype`` [B, H, W, C], table int32 [U, slots], slot int32 [U, N], stats int32 [U, 2], whose
        clusters it counts, and the output lead int32 [U, N], a row of the unit.
    """
    g, exact = geometry, setting.hash == "exact"
    H, W, C, K, OW, rows = g.H, g.W, g.C, g.K, g.OW, g.rows
    KW, (SH, SW), (DH, DW), (PT, PL, _, _) = g.KW, g.strides, g.dilation, g.padding
    per_block = THREADS // WARP if exact else THREADS

    def entry(X, image, n, k):
        iy = n % rows // OW * SH - PT + k // C // KW * DH
        ix = n % rows % OW * SW - PL + k // C % KW * DW
        inside = T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W))
        value = T.if_then_else(inside, T.cast(X[image + n // rows, iy, ix, k % C], "float32"), T.float32(0))
        return T.reinterpret("int32", value)

    @T.inline
    def compare(X, table, slot, differ, u, n, N, G, t):
        """differ[row of the block] = 1 where one of the entries does."""
        if t % WARP == 0:
            differ[t // WARP] = 0
        T.tvm_storage_sync("shared")
        if n < N:
            if slot[u, n] >= 0:
                leader = T.meta_var(table[u, slot[u, n]])
                if leader != n:
                    for i in range(-(-K // WARP)):
                        k = T.meta_var(i * WARP + t % WARP)
                        if k < K:
                            if entry(X, u * G, n, k) != entry(X, u * G, leader, k):
                                differ[t // WARP] = 1
        T.tvm_storage_sync("shared")

    @T.prim_func(private=True)
    def kernel(x: T.handle, ta: T.handle, sl: T.handle, st: T.handle, le: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        slots = T.meta_var(table_size(setting, rows if setting.scope == "image" else N))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
        table = T.match_buffer(ta, (U, slots), "int32")
        slot = T.match_buffer(sl, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        lead = T.match_buffer(le, (U, N), "int32")
        for block in T.thread_binding((N + (per_block - 1)) // per_block, "blockIdx.x"):
            for u in T.thread_binding(U, "blockIdx.y"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    differ = T.alloc_buffer((THREADS // WARP,), "int32", scope="shared")
                    leaders = T.alloc_buffer((1,), "int32", scope="shared")
                    leader = T.alloc_buffer((1,), "int32", scope="local")
                    unlike = T.alloc_buffer((1,), "int32", scope="local")
                    counted = T.alloc_buffer((1,), "int32", scope="local")
                    own = T.meta_var(t // WARP if exact else t)
                    n = T.meta_var(T.cast(block, "int32") * per_block + own)
                    if t == 0:
                        leaders[0] = 0
                    if exact:
                        compare(X, table, slot, differ, u, n, T.cast(N, "int32"), G, t)
                    else:
                        T.tvm_storage_sync("shared")
                    unlike[0] = differ[t // WARP] if exact else 0
                    if n < T.cast(N, "int32"):
                        if T.Or(not exact, t % WARP == 0):
                            leader[0] = n
                            if T.And(slot[u, n] >= 0, unlike[0] == 0):
                                leader[0] = table[u, slot[u, n]]
                            lead[u, n] = leader[0]
                            if leader[0] == n:
                                T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(leaders[0]), 1))
                    T.tvm_storage_sync("shared")
                    counted[0] = leaders[0]
                    if T.And(t == 0, counted[0] > 0):
                        T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(stats[u, 0]), counted[0]))

    return kernel


@functools.cache
def guard_rows(setting: ReuseSetting) -> tirx.PrimFunc:
    """Rows of units with too many clusters become their own representatives; finds the last member of each cluster.

    Returns:
        PrimFunc of lead int32 [U, N], stats int32 [U, 2] and last int32 [U, N], all of which it changes.
    """
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters

    @T.prim_func(private=True)
    def kernel(le: T.handle, st: T.handle, la: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        U = T.int64()
        N = T.int64()
        lead = T.match_buffer(le, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        last = T.match_buffer(la, (U, N), "int32")
        for block in T.thread_binding((N + (THREADS - 1)) // THREADS, "blockIdx.x"):
            for u in T.thread_binding(U, "blockIdx.y"):
                for t in T.thread_binding(THREADS, "threadIdx.x"):
                    n = T.meta_var(T.cast(block, "int32") * THREADS + t)
                    if n < T.cast(N, "int32"):
                        if stats[u, 0] > limit:
                            lead[u, n] = n
                        else:
                            T.evaluate(T.call_extern("int32", "atomicMax", T.address_of(last[u, lead[u, n]]), n))
                            if n == 0:
                                stats[u, 1] = 1

    return kernel
