"""Clusters of rows by number, as training keeps them: the ids of ``docs/algorithm.md`` (clauses 5 and 6).

Inference lists only the rows whose products it computes (``row_list``); gradients ask for every row's cluster.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.cuda.key_table import NO_KEY
from adr_tvm.schedules.cuda.prefix_sum import BLOCK, EACH, THREADS, blocks_of, entries_before
from adr_tvm.schedules.cuda.vector_match import count_own
from adr_tvm.schedules.vector_key import NON_FINITE

_entries_before = entries_before(1)


@functools.cache
def number_rows() -> tirx.PrimFunc:
    """Numbers of the clusters of each unit, in the order of their first members.

    Returns:
        PrimFunc of lead, slot int32 [U, N], counted int32 [U, blocks], as of ``count_vectors``, and the outputs ranks
        int32 [U, N], the number of each representative; firsts int32 [U, capacity], the representative of each cluster;
        clusters int32 [U].
    """

    @T.prim_func(private=True)
    def kernel(le: T.handle, sl: T.handle, co: T.handle, ra: T.handle, fi: T.handle, cl: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        U = T.int64()
        N = T.int64()
        cap = T.int64()
        lead = T.match_buffer(le, (U, N), "int32")
        slot = T.match_buffer(sl, (U, N), "int32")
        counted = T.match_buffer(co, (U, blocks_of(N)), "int32")
        ranks = T.match_buffer(ra, (U, N), "int32")
        firsts = T.match_buffer(fi, (U, cap), "int32")
        clusters = T.match_buffer(cl, (U,), "int32")
        flat_counted = T.decl_buffer((U * blocks_of(N),), "int32", data=counted.data)
        for block in T.thread_binding(U * blocks_of(N), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                before = T.alloc_buffer((1,), "int32", scope="shared")
                sums = T.alloc_buffer((THREADS,), "int32", scope="shared")
                own = T.alloc_buffer((1,), "int32", scope="local")
                held = T.alloc_buffer((1,), "int32", scope="local")
                u = T.meta_var(T.cast(block, "int64") // blocks_of(N))
                bx = T.meta_var(T.cast(T.cast(block, "int64") % blocks_of(N), "int32"))
                first = T.meta_var(bx * BLOCK + t * EACH)
                count_own(lead, slot, own, u, first, T.cast(N, "int32"))
                _entries_before(own, flat_counted, u * blocks_of(N), bx, before, sums, held, t)
                for i in range(EACH):
                    if first + i < T.cast(N, "int32"):
                        if T.And(lead[u, first + i] == first + i, slot[u, first + i] >= 0):
                            ranks[u, first + i] = held[0]
                            firsts[u, held[0]] = first + i
                            held[0] = held[0] + 1
                if T.And(T.cast(bx, "int64") == blocks_of(N) - T.int64(1), t == THREADS - 1):
                    clusters[u] = held[0]

    return kernel


@functools.cache
def row_ids() -> tirx.PrimFunc:
    """Ids, and which centroid each listed row stands for.

    Returns:
        PrimFunc of lead, slot, ranks int32 [U, N], work int32 [U * N] and totals int32 [2], as of ``list_rows``, firsts
        int32 [U, capacity], not read, and the outputs ids int32 [U, N] and source int32 [U * N], the row of the
        centroids [U * capacity, K] that is multiplied in place of a row of the list, -1 for the row itself.
    """

    @T.prim_func(private=True)
    def kernel(
        le: T.handle, sl: T.handle, ra: T.handle, wo: T.handle, to: T.handle, fi: T.handle, i: T.handle, so: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        U = T.int64()
        N = T.int64()
        cap = T.int64()
        lead = T.match_buffer(le, (U, N), "int32")
        slot = T.match_buffer(sl, (U, N), "int32")
        ranks = T.match_buffer(ra, (U, N), "int32")
        work = T.match_buffer(wo, (U * N,), "int32")
        totals = T.match_buffer(to, (T.int64(2),), "int32")
        _firsts = T.match_buffer(fi, (U, cap), "int32")
        ids = T.match_buffer(i, (U, N), "int32")
        source = T.match_buffer(so, (U * N,), "int32")
        for block in T.thread_binding((U * N + (THREADS - 1)) // THREADS, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                row = T.meta_var(T.cast(block, "int64") * THREADS + t)
                if row < U * N:
                    u = T.meta_var(row // N)
                    n = T.meta_var(row % N)
                    ids[u, n] = T.if_then_else(slot[u, n] == NO_KEY, NON_FINITE, ranks[u, lead[u, n]])
                    if row < T.cast(totals[0], "int64"):
                        v = T.meta_var(T.cast(work[row], "int64") // N)
                        m = T.meta_var(T.cast(work[row], "int64") % N)
                        number = T.meta_var(T.cast(v * cap, "int32") + ranks[v, m])
                        source[row] = T.if_then_else(slot[v, m] == NO_KEY, -1, number)

    return kernel
