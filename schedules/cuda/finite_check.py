"""Whether every entry of a gradient is finite, for CUDA, a thread for each entry (``schedules/finite_check.py``)."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.finite_check import EXPONENT, exponent
from adr_tvm.schedules.optimizer_update import CONTROL, GO_ON

THREADS = 256


@functools.cache
def finite_check(size: int) -> tirx.PrimFunc:
    """Returns: PrimFunc of g float32 [size] and control float32 [4], which it may change."""

    @T.prim_func(private=True)
    def kernel(g: T.handle, control: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        G = T.match_buffer(g, (T.int64(size),), "float32")
        C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
        for block in T.thread_binding(-(-size // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                if block * THREADS + t < size:
                    if exponent(G[block * THREADS + t]) == T.uint32(EXPONENT):
                        C[GO_ON] = T.float32(0)

    return kernel
