"""The rows of units whose clusters do not pay: what the dense GEMM has to make (``docs/algorithm.md``, clause 13)."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

THREADS = 256


@functools.cache
def dense_units() -> tirx.PrimFunc:
    """The output rows of all units that do not reuse, in ascending order.

    Returns:
        PrimFunc of stats int32 [U, 2] and the outputs work int32 [rows of all units] and totals int32 [2], the length
        of the list and 0.
    """

    @T.prim_func(private=True)
    def kernel(st: T.handle, wo: T.handle, to: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        U = T.int64()
        rows = T.int64()
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        work = T.match_buffer(wo, (rows,), "int32")
        totals = T.match_buffer(to, (T.int64(2),), "int32")
        for block in T.thread_binding((rows + (THREADS - 1)) // THREADS, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                before = T.alloc_buffer((1,), "int32", scope="local")
                row = T.meta_var(T.cast(block, "int32") * THREADS + t)
                own = T.meta_var(T.cast(rows // U, "int32"))
                if row < T.cast(rows, "int32"):
                    before[0] = 0
                    for u in range(row // own):
                        if stats[u, 1] == 0:
                            before[0] = before[0] + own
                    if stats[row // own, 1] == 0:
                        work[before[0] + row % own] = row
                        before[0] = before[0] + own
                    if row == T.cast(rows, "int32") - 1:
                        totals[0] = before[0]
                        totals[1] = 0

    return kernel
