"""The rows whose products are computed, as one list for the whole call: a prefix sum over the representatives.

The list is in ascending order, and its length stays on the GPU.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.cuda.prefix_sum import BLOCK, EACH, THREADS, blocks_of, count_block, entries_before
from adr_tvm.settings import ReuseSetting

_count_block, _entries_before = count_block(2), entries_before(2)


@T.inline
def _count_own(lead, last, own, block, rows, N, t):
    """own [2] of a thread: representatives among its rows, and those of them that stand for others as well."""
    own[0] = 0
    own[1] = 0
    for i in range(EACH):
        row = T.meta_var(block * BLOCK + t * EACH + i)
        u = T.meta_var(row // N)
        n = T.meta_var(row % N)
        if row < rows:
            if lead[u, n] == n:
                own[0] = own[0] + 1
                if last[u, n] > n:
                    own[1] = own[1] + 1


@functools.cache
def count_rows() -> tirx.PrimFunc:
    """Representatives in each block of rows, and those of them that stand for others as well.

    Returns:
        PrimFunc of lead, last int32 [U, N] and the output counts int32 [blocks, 2].
    """

    @T.prim_func(private=True)
    def kernel(le: T.handle, la: T.handle, co: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        U = T.int64()
        N = T.int64()
        lead = T.match_buffer(le, (U, N), "int32")
        last = T.match_buffer(la, (U, N), "int32")
        counts = T.match_buffer(co, (blocks_of(U * N), T.int64(2)), "int32")
        flat_counts = T.decl_buffer((blocks_of(U * N) * 2,), "int32", data=counts.data)
        for block in T.thread_binding(blocks_of(U * N), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                total = T.alloc_buffer((2,), "int32", scope="shared")
                own = T.alloc_buffer((2,), "int32", scope="local")
                bx = T.meta_var(T.cast(block, "int32"))
                _count_own(lead, last, own, bx, T.cast(U * N, "int32"), T.cast(N, "int32"), t)
                _count_block(own, total, flat_counts, bx, t)

    return kernel


@functools.cache
def list_rows(setting: ReuseSetting) -> tirx.PrimFunc:
    """The list.

    Returns:
        PrimFunc of lead, last int32 [U, N], counts int32 [blocks, 2] and the outputs work int32 [U * N], rows of all
        images; source int32 [U * N], the number of the cluster whose mean is multiplied in place of the row, -1 for
        the row itself; shared int32 [U * N], the row that represents a numbered cluster; totals int32 [2], lengths of
        ``work`` and ``shared``. Of ``exact`` rows none is numbered.
    """
    exact = setting.hash == "exact"

    @T.prim_func(private=True)
    def kernel(le: T.handle, la: T.handle, co: T.handle, wo: T.handle, so: T.handle, sh: T.handle, to: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        U = T.int64()
        N = T.int64()
        lead = T.match_buffer(le, (U, N), "int32")
        last = T.match_buffer(la, (U, N), "int32")
        counts = T.match_buffer(co, (blocks_of(U * N), T.int64(2)), "int32")
        work = T.match_buffer(wo, (U * N,), "int32")
        source = T.match_buffer(so, (U * N,), "int32")
        shared = T.match_buffer(sh, (U * N,), "int32")
        totals = T.match_buffer(to, (T.int64(2),), "int32")
        flat_counts = T.decl_buffer((blocks_of(U * N) * 2,), "int32", data=counts.data)
        for block in T.thread_binding(blocks_of(U * N), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                before = T.alloc_buffer((2,), "int32", scope="shared")
                sums = T.alloc_buffer((2 * THREADS,), "int32", scope="shared")
                own = T.alloc_buffer((2,), "int32", scope="local")
                held = T.alloc_buffer((2,), "int32", scope="local")
                bx = T.meta_var(T.cast(block, "int32"))
                _count_own(lead, last, own, bx, T.cast(U * N, "int32"), T.cast(N, "int32"), t)
                _entries_before(own, flat_counts, 0, bx, before, sums, held, t)
                for i in range(EACH):
                    row = T.meta_var(bx * BLOCK + t * EACH + i)
                    if row < T.cast(U * N, "int32"):
                        u = T.meta_var(row // T.cast(N, "int32"))
                        n = T.meta_var(row % T.cast(N, "int32"))
                        if lead[u, n] == n:
                            work[held[0]] = row
                            source[held[0]] = -1
                            if T.And(not exact, last[u, n] > n):
                                source[held[0]] = held[1]
                                shared[held[1]] = row
                                held[1] = held[1] + 1
                            held[0] = held[0] + 1
                if T.And(T.cast(bx, "int64") == blocks_of(U * N) - T.int64(1), t == THREADS - 1):
                    totals[0] = before[0] + sums[THREADS - 1]
                    totals[1] = 0 if exact else before[1] + sums[2 * THREADS - 1]

    return kernel
