"""Concatenation along the channels of NHWC tensors: one copy per input, no selection per element."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.im2col import LANES

TASK_ROWS = 64  # pixels one task copies


@functools.cache
def copy_channels(H: int, W: int, channels: int, total: int, offset: int, dtype: str) -> tirx.PrimFunc:
    """Y[..., offset : offset + channels] = X; the other channels of Y stay as they are.

    Returns:
        PrimFunc of X [B, H, W, channels], Y [B, H, W, total]; B is symbolic.
    """
    rows, body, tail = H * W, channels // LANES, channels % LANES
    tasks = -(-rows // TASK_ROWS)

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(channels)), dtype)
        Y = T.match_buffer(y, (B, T.int64(H), T.int64(W), T.int64(total)), dtype)
        for task in T.parallel(B * tasks):
            image = T.meta_var(task // tasks)
            first = T.meta_var(task % tasks * TASK_ROWS)
            for i in range(T.min(TASK_ROWS, rows - first)):
                iy = T.meta_var((first + i) // W)
                ix = T.meta_var((first + i) % W)
                for c in range(body):
                    for j in T.vectorized(LANES):
                        Y[image, iy, ix, offset + c * LANES + j] = X[image, iy, ix, c * LANES + j]
                for j in range(tail):
                    Y[image, iy, ix, offset + body * LANES + j] = X[image, iy, ix, body * LANES + j]

    return kernel
