"""Softmax over the last axis: y = exp(x - max) / sum of exp(x - max), in vectors."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.sliding_window import loop_of
from adr_tvm.schedules.vector_math import exp

LANES = 16
TASK_FLOATS = 4 * 1024
EXP_WORK = 16  # operations that an entry comes to
LOWEST = -3.4028234663852886e38


@functools.cache
def softmax(rows: int, C: int, batch: int | None = None) -> tirx.PrimFunc:
    """Normalise each row of C entries; the sum is taken lane by lane, then over the lanes, so its order is fixed.

    Args:
        rows: of one image.
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of X float32 [B, rows, C] and Y likewise; B is symbolic.
    """
    body, tail = C // LANES, C % LANES
    rows_per_task = max(1, TASK_FLOATS // C)
    tasks = -(-rows // rows_per_task)
    loop = loop_of(batch, rows * C * EXP_WORK)

    @T.inline
    def one(X, Y, b, r):
        lane = T.alloc_buffer((LANES,), "float32")
        total = T.alloc_buffer((2,), "float32")
        for l in T.vectorized(LANES):
            lane[l] = T.float32(LOWEST)
        for v in range(body):
            for l in T.vectorized(LANES):
                lane[l] = T.max(lane[l], X[b, r, v * LANES + l])
        total[0] = T.float32(LOWEST)
        for l in range(tail):
            total[0] = T.max(total[0], X[b, r, body * LANES + l])
        for l in T.unroll(LANES):
            total[0] = T.max(total[0], lane[l])
        for l in T.vectorized(LANES):
            lane[l] = T.float32(0)
        for v in range(body):
            for l in T.vectorized(LANES):
                Y[b, r, v * LANES + l] = exp(X[b, r, v * LANES + l] - total[0])
            for l in T.vectorized(LANES):
                lane[l] = lane[l] + Y[b, r, v * LANES + l]
        total[1] = T.float32(0)
        for l in range(tail):
            Y[b, r, body * LANES + l] = exp(X[b, r, body * LANES + l] - total[0])
            total[1] = total[1] + Y[b, r, body * LANES + l]
        for l in T.unroll(LANES):
            total[1] = total[1] + lane[l]
        for v in range(body):
            for l in T.vectorized(LANES):
                Y[b, r, v * LANES + l] = Y[b, r, v * LANES + l] / total[1]
        for l in range(tail):
            Y[b, r, body * LANES + l] = Y[b, r, body * LANES + l] / total[1]

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(rows), T.int64(C)), "float32")
        Y = T.match_buffer(y, (B, T.int64(rows), T.int64(C)), "float32")
        for task in loop(B * tasks):
            for i in range(T.min(rows_per_task, rows - task % tasks * rows_per_task)):
                one(X, Y, task // tasks, task % tasks * rows_per_task + i)

    return kernel
