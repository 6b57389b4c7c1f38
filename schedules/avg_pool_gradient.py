"""Gradient of average pooling of NHWC images: dX[b, iy, ix, c] = sum of dY / n over the windows that (iy, ix) lies in.

n is the number of entries of the window that count: those inside of the image, or of the padded image. Windows are
added in order, so the bytes do not depend on the threads.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.pool_windows import axes_of, channel_groups
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.sliding_window import loop_of

TASK_ROWS = 4


@functools.cache
def avg_pool_gradient(
    geometry: ConvGeometry, counted: tuple[int, int, int, int], isa: Isa, batch: int | None = None
) -> tirx.PrimFunc:
    """Gradient of the input.

    Args:
        geometry: C channels in and out (M is not read).
        counted: entries around the image (top, left, bottom, right) that count like those inside.
        isa: decides the vectors.
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of dY float32 [B, OH, OW, C], dX float32 [B, H, W, C]; B is symbolic.
    """
    g, (rows, cols) = geometry, axes_of(geometry)
    groups, vectors, lanes = channel_groups(g.C, isa)
    tasks = -(-g.H // TASK_ROWS)
    loop = loop_of(batch, g.OH * g.OW * g.C * g.KH * g.KW)
    top, left, bottom, right = counted

    def count(axis, window, before, after):
        first, behind = axis.taps(window * axis.stride - axis.pad, -before, axis.size + after)
        return behind - first

    def add(DY, total, image, oy, ox, c0):
        n = count(rows, oy, top, bottom) * count(cols, ox, left, right)
        share = T.bind(T.float32(1) / T.Cast("float32", n))
        for v in range(vectors):
            here = [v, across(0, lanes)]
            dy = DY[image, oy, ox, across(c0 + v * lanes, lanes)]
            T.buffer_store(total, total[v, across(0, lanes)] + dy * share, here)

    @T.inline
    def pixel(DY, DX, image, iy, ix, c0):
        total = T.alloc_buffer((vectors, lanes), "float32")
        for v in T.unroll(vectors):
            for j in T.vectorized(lanes):
                total[v, j] = T.float32(0)
        ys = T.meta_var(rows.windows(iy))
        xs = T.meta_var(cols.windows(ix))
        for oy in range(ys[0], ys[1]):
            if rows.offset(iy, oy) % rows.dilation == 0:
                for ox in range(xs[0], xs[1]):
                    if cols.offset(ix, ox) % cols.dilation == 0:
                        add(DY, total, image, oy, ox, c0)
        for v in T.unroll(vectors):
            for j in T.vectorized(lanes):
                DX[image, iy, ix, c0 + v * lanes + j] = total[v, j]

    @T.prim_func(private=True)
    def kernel(dy: T.handle, dx: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        DY = T.match_buffer(dy, (B, T.int64(g.OH), T.int64(g.OW), T.int64(g.C)), "float32")
        DX = T.match_buffer(dx, (B, T.int64(g.H), T.int64(g.W), T.int64(g.C)), "float32")
        for task in loop(B * tasks):
            for row in range(T.min(TASK_ROWS, g.H - task % tasks * TASK_ROWS)):
                for ix in range(g.W):
                    for group in range(groups):
                        c0 = T.meta_var(T.min(group * (vectors * lanes), g.C - vectors * lanes))
                        pixel(DY, DX, task // tasks, task % tasks * TASK_ROWS + row, ix, c0)

    return kernel
