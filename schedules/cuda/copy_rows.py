"""Copies of the representatives' output rows to the rows that they stand for, in place."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import units
from adr_tvm.settings import ReuseSetting

THREADS = 256


@functools.cache
def copy_rows(geometry: ConvGeometry, setting: ReuseSetting, dtype: str = "float32") -> tirx.PrimFunc:
    """Y[n] = Y[lead[n]], a few channels of a row for each thread.

    Returns:
        PrimFunc of lead int32 [U, N] and Y ``dtype`` [B, OH, OW, M], which it changes.
    """
    OH, OW, M, rows = geometry.OH, geometry.OW, geometry.M, geometry.rows
    V = 4 if M % 4 == 0 else 1
    per_row = M // V

    @T.prim_func(private=True)
    def kernel(le: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        N = T.meta_var(units(setting, B)[1] * T.int64(rows))
        lead = T.match_buffer(le, (U, N), "int32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), dtype)
        flat = T.decl_buffer((B * (rows * M),), dtype, data=Y.data)
        flat_lead = T.decl_buffer((B * rows,), "int32", data=lead.data)
        for block in T.thread_binding((B * (rows * per_row) + (THREADS - 1)) // THREADS, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                i = T.meta_var(T.cast(block, "int64") * THREADS + t)
                row = T.meta_var(i // per_row)
                m = T.meta_var(i % per_row * V)
                if row < B * rows:
                    from_row = T.meta_var(row // N * N + T.cast(flat_lead[row], "int64"))
                    if from_row != row:
                        for v in T.vectorized(V):
                            flat[row * M + m + v] = flat[from_row * M + m + v]

    return kernel
