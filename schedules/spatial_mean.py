"""The mean over all pixels of an image, channel by channel: global average pooling of NHWC images."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.sliding_window import loop_of

PARTIAL_ROWS = 64  # pixels summed before they join the total: one long float32 sum would lose digits
VECTORS = 8  # sums that run side by side, so that no addition waits for the one before


@functools.cache
def spatial_mean(rows: int, C: int, isa: Isa, batch: int | None = None) -> tirx.PrimFunc:
    """Y[b, c] = mean of X[b, :, c].

    Args:
        rows: pixels of an image.
        isa: decides the vectors.
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of X float32 [B, rows, C], Y float32 [B, C]; B is symbolic.
    """
    lanes = min(isa.lanes, C)
    width = lanes * max(1, min(VECTORS, C // lanes))
    groups, vectors = -(-C // width), width // lanes
    parts = -(-rows // PARTIAL_ROWS)
    tasks = loop_of(batch, rows * C)

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(rows), T.int64(C)), "float32")
        Y = T.match_buffer(y, (B, T.int64(C)), "float32")
        for task in tasks(B * groups):
            # The last group ends at the last channel and may overlap the one before: both write the same.
            c0 = T.meta_var(T.min(task % groups * width, C - width))
            total = T.alloc_buffer((vectors, lanes), "float32")
            part = T.alloc_buffer((vectors, lanes), "float32")
            for v in T.unroll(vectors):
                for j in T.vectorized(lanes):
                    total[v, j] = T.float32(0)
            for p in range(parts):
                for v in T.unroll(vectors):
                    for j in T.vectorized(lanes):
                        part[v, j] = T.float32(0)
                for r in range(T.min(PARTIAL_ROWS, rows - p * PARTIAL_ROWS)):
                    for v in T.unroll(vectors):
                        for j in T.vectorized(lanes):
                            part[v, j] = part[v, j] + X[task // groups, p * PARTIAL_ROWS + r, c0 + v * lanes + j]
                for v in T.unroll(vectors):
                    for j in T.vectorized(lanes):
                        total[v, j] = total[v, j] + part[v, j]
            for v in T.unroll(vectors):
                for j in T.vectorized(lanes):
                    Y[task // groups, c0 + v * lanes + j] = total[v, j] * T.float32(1.0 / rows)

    return kernel
