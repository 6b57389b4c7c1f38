"""Clusters of ``pixel`` and ``segment`` vectors, from the table of keys (``docs/algorithm.md``, clauses 5 to 8, 13).

The representative of a cluster is its smallest member; numbers follow from a prefix sum over the representatives.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, capacity, units
from adr_tvm.schedules.cuda.key_table import NO_VECTOR, table_size
from adr_tvm.schedules.cuda.prefix_sum import BLOCK, EACH, THREADS, blocks_of, count_block, entries_before
from adr_tvm.schedules.cuda.vector_reader import VectorReader
from adr_tvm.settings import ReuseSetting

_count_block, _entries_before = count_block(1), entries_before(1)


@functools.cache
def match_vectors(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """The representative of every vector, and how many clusters there are; of ``exact`` ones the data are compared.

    Returns:
        PrimFunc of X float32 [B, H, W, C], table int32 [U S, slots], slot int32 [U S, N], counts int32 [U, S, 2] and
        stats int32 [U, 2], both of which it adds to, and the output lead int32 [U S, N], -1 where there is no vector.
    """
    reader, exact = VectorReader(geometry, setting), setting.hash == "exact"
    source, V = reader.source, reader.V
    H, W, C, S, L, size = geometry.H, geometry.W, geometry.C, source.segments, source.L, source.map_size
    find, load = reader.find(), reader.load()

    @T.inline
    def compare(X, differ, image, n, leader, s):
        """differ[0] = 1 where an entry of two vectors of a unit, whose first image is given, does."""
        base = T.alloc_buffer((1,), "int64", scope="local")
        corner = T.alloc_buffer((2,), "int32", scope="local")
        seen = T.alloc_buffer((1,), "int32", scope="local")
        values = T.alloc_buffer((V,), "float32", scope="local")
        other_base = T.alloc_buffer((1,), "int64", scope="local")
        other_corner = T.alloc_buffer((2,), "int32", scope="local")
        others = T.alloc_buffer((V,), "float32", scope="local")
        find(base, corner, seen, image + n // size, n % size, s)
        find(other_base, other_corner, seen, image + leader // size, leader % size, s)
        for i in range(L // V):
            load(X, base, corner, seen, values, s, i)
            load(X, other_base, other_corner, seen, others, s, i)
            for v in T.unroll(V):
                if T.reinterpret("int32", values[v]) != T.reinterpret("int32", others[v]):
                    differ[0] = 1

    @T.prim_func(private=True)
    def kernel(x: T.handle, ta: T.handle, sl: T.handle, co: T.handle, st: T.handle, le: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(size))
        slots = T.meta_var(table_size(setting, size if setting.scope == "image" else N))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        table = T.match_buffer(ta, (U * S, slots), "int32")
        slot = T.match_buffer(sl, (U * S, N), "int32")
        counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        lead = T.match_buffer(le, (U * S, N), "int32")
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        for block in T.thread_binding(U * S * ((N + (THREADS - 1)) // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                found = T.alloc_buffer((2,), "int32", scope="shared")  # clusters; vectors that are not finite
                leader = T.alloc_buffer((1,), "int32", scope="local")
                differ = T.alloc_buffer((1,), "int32", scope="local")
                counted = T.alloc_buffer((1,), "int32", scope="local")
                blocks = T.meta_var((N + (THREADS - 1)) // THREADS)
                q = T.meta_var(T.cast(T.cast(block, "int64") // blocks, "int32"))
                n = T.meta_var(T.cast(T.cast(block, "int64") % blocks, "int32") * THREADS + t)
                if t < 2:
                    found[t] = 0
                T.tvm_storage_sync("shared")
                if n < T.cast(N, "int32"):
                    leader[0] = n
                    if slot[q, n] >= 0:
                        leader[0] = table[q, slot[q, n]]
                        if exact:
                            differ[0] = 0
                            if leader[0] != n:
                                compare(flat_x, differ, T.cast(q // S, "int64") * G, n, leader[0], q % S)
                            if differ[0] == 1:
                                leader[0] = n
                        if leader[0] == n:
                            T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(found[0]), 1))
                    elif slot[q, n] == NO_VECTOR:
                        leader[0] = -1
                    else:
                        T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(found[1]), 1))
                    lead[q, n] = leader[0]
                T.tvm_storage_sync("shared")
                if t < 2:
                    counted[0] = found[t]
                    if counted[0] > 0:
                        count = T.meta_var(T.address_of(counts[q // S, q % S, t]))
                        T.evaluate(T.call_extern("int32", "atomicAdd", count, counted[0]))
                        T.evaluate(T.call_extern("int32", "atomicAdd", T.address_of(stats[q // S, 0]), counted[0]))

    return kernel


@T.inline
def count_own(lead, slot, own, q, first, N):
    """own [1] of a thread: representatives with a key among its vectors."""
    own[0] = 0
    for i in range(EACH):
        if first + i < N:
            if T.And(lead[q, first + i] == first + i, slot[q, first + i] >= 0):
                own[0] = own[0] + 1


@functools.cache
def count_vectors() -> tirx.PrimFunc:
    """Representatives in each block of the vectors of a segment.

    Returns:
        PrimFunc of lead, slot int32 [groups, N] and the output counted int32 [groups, blocks].
    """

    @T.prim_func(private=True)
    def kernel(le: T.handle, sl: T.handle, co: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        groups = T.int64()
        N = T.int64()
        lead = T.match_buffer(le, (groups, N), "int32")
        slot = T.match_buffer(sl, (groups, N), "int32")
        counted = T.match_buffer(co, (groups, blocks_of(N)), "int32")
        flat_counted = T.decl_buffer((groups * blocks_of(N),), "int32", data=counted.data)
        for block in T.thread_binding(groups * blocks_of(N), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                total = T.alloc_buffer((1,), "int32", scope="shared")
                own = T.alloc_buffer((1,), "int32", scope="local")
                q = T.meta_var(T.cast(block, "int64") // blocks_of(N))
                bx = T.meta_var(T.cast(T.cast(block, "int64") % blocks_of(N), "int32"))
                count_own(lead, slot, own, q, bx * BLOCK + t * EACH, T.cast(N, "int32"))
                _count_block(own, total, flat_counted, T.cast(block, "int64"), t)

    return kernel


@functools.cache
def number_vectors(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Numbers of the clusters, in the order of their first members; whether a unit reuses.

    Returns:
        PrimFunc of X float32 [B, H, W, C], not read, lead, slot int32 [U S, N], counted int32 [U S, blocks], stats
        int32 [U, 2], whose second it writes, and the outputs ranks int32 [U S, N], the cluster of each representative,
        and firsts int32 [U S, capacity], the representative of each cluster.
    """
    source = VectorReader(geometry, setting).source
    H, W, C, S, size, per_image = geometry.H, geometry.W, geometry.C, source.segments, source.map_size, source.per_image
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters

    @T.prim_func(private=True)
    def kernel(x: T.handle, le: T.handle, sl: T.handle, co: T.handle, st: T.handle, ra: T.handle, fi: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        N = T.meta_var(units(setting, B)[1] * T.int64(size))
        cap = T.meta_var(capacity(setting, units(setting, B)[1] * T.int64(per_image)))
        _X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        lead = T.match_buffer(le, (U * S, N), "int32")
        slot = T.match_buffer(sl, (U * S, N), "int32")
        counted = T.match_buffer(co, (U * S, blocks_of(N)), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        ranks = T.match_buffer(ra, (U * S, N), "int32")
        firsts = T.match_buffer(fi, (U * S, cap), "int32")
        flat_counted = T.decl_buffer((U * S * blocks_of(N),), "int32", data=counted.data)
        for block in T.thread_binding(U * S * blocks_of(N), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                before = T.alloc_buffer((1,), "int32", scope="shared")
                sums = T.alloc_buffer((THREADS,), "int32", scope="shared")
                own = T.alloc_buffer((1,), "int32", scope="local")
                held = T.alloc_buffer((1,), "int32", scope="local")
                q = T.meta_var(T.cast(block, "int64") // blocks_of(N))
                bx = T.meta_var(T.cast(T.cast(block, "int64") % blocks_of(N), "int32"))
                first = T.meta_var(bx * BLOCK + t * EACH)
                if T.And(T.And(q % S == 0, bx == 0), t == 0):
                    stats[q // S, 1] = T.if_then_else(stats[q // S, 0] <= limit, 1, 0)
                count_own(lead, slot, own, q, first, T.cast(N, "int32"))
                _entries_before(own, flat_counted, q * blocks_of(N), bx, before, sums, held, t)
                for i in range(EACH):
                    if first + i < T.cast(N, "int32"):
                        if T.And(lead[q, first + i] == first + i, slot[q, first + i] >= 0):
                            ranks[q, first + i] = held[0]
                            firsts[q, held[0]] = first + i
                            held[0] = held[0] + 1

    return kernel
