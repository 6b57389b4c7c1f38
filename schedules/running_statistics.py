"""A batch norm's running mean or variance, in place: r' = r + momentum (factor s - r) with s that of the batch.

``control`` is that of ``schedules/optimizer_update.py``: where its last entry is 0, nothing changes. As torch has it,
the running variance is that of the population, estimated: ``factor`` is n / (n - 1) of n rows.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.optimizer_update import CONTROL, GO_ON


@functools.cache
def running_statistics(channels: int, momentum: float, factor: float, gpu: bool = False) -> tirx.PrimFunc:
    """Returns: PrimFunc of r and s float32 [channels] and control float32 [4]; ``gpu``: one for CUDA."""

    @T.inline
    def update(R, S, c):
        R[c] = R[c] + T.float32(momentum) * (T.float32(factor) * S[c] - R[c])

    if gpu:

        @T.prim_func(private=True)
        def threads(r: T.handle, s: T.handle, control: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            R = T.match_buffer(r, (T.int64(channels),), "float32")
            S = T.match_buffer(s, (T.int64(channels),), "float32")
            C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
            for block in T.thread_binding(-(-channels // 32), "blockIdx.x"):
                for t in T.thread_binding(32, "threadIdx.x"):
                    if T.And(block * 32 + t < channels, C[GO_ON] != T.float32(0)):
                        update(R, S, block * 32 + t)

        return threads

    @T.prim_func(private=True)
    def kernel(r: T.handle, s: T.handle, control: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        R = T.match_buffer(r, (T.int64(channels),), "float32")
        S = T.match_buffer(s, (T.int64(channels),), "float32")
        C = T.match_buffer(control, (T.int64(CONTROL),), "float32")
        if C[GO_ON] != T.float32(0):
            for c in range(channels):
                update(R, S, c)

    return kernel
