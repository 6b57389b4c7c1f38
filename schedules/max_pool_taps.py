"""Maximum pooling of NHWC images that tells which tap of each window was the largest, and its gradient.

Y[b, oy, ox, c] = max over taps (ky, kx) of X[b, oy SH - PT + ky DH, ox SW - PL + kx DW, c]; taps[b, oy, ox, c] =
ky KW + kx of the first tap, in window order, that has it (a NaN counts as largest), as torch chooses. dX[b, iy, ix, c]
= sum of dY of the windows whose tap lies there, in their order. The input need not be kept: a tap is a byte.
"""

from __future__ import annotations

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.pool_windows import axes_of, channel_groups
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.sliding_window import loop_of

TASK_ROWS = 4
MAX_TAPS = 256


def _spread(value, dtype: str, lanes: int):
    scalar = T.Cast(dtype, T.bitwise_and(value, MAX_TAPS - 1))  # for bounds that TVM works with it may be below 0
    return T.Broadcast(scalar, lanes) if lanes > 1 else scalar


@functools.cache
def max_pool_taps(geometry: ConvGeometry, isa: Isa, batch: int | None = None) -> tirx.PrimFunc:
    """Maxima and their taps; windows may reach over the edge (``ceil_mode``).

    Args:
        geometry: C channels in and out (M is not read), at most ``MAX_TAPS`` taps.
        isa: decides the vectors.
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of X float32 [B, H, W, C], Y float32 and taps uint8 [B, OH, OW, C]; B is symbolic.
    """
    g, (rows, cols) = geometry, axes_of(geometry)
    groups, vectors, lanes = channel_groups(g.C, isa)
    tasks = -(-g.OH // TASK_ROWS)
    loop = loop_of(batch, g.OH * g.OW * g.C * g.KH * g.KW)

    def larger(X, best, tap, read, v, here):
        image, y, x, c0 = read
        value = T.bind(X[image, y, x, across(c0 + v * lanes, lanes)])
        place = [v, across(0, lanes)]
        now = T.bind(best[v, across(0, lanes)])
        wins = tirx.Or(value > now, tirx.isnan(value))
        T.buffer_store(tap, tirx.Select(wins, _spread(here, "int32", lanes), tap[v, across(0, lanes)]), place)
        T.buffer_store(best, tirx.Select(wins, value, now), place)

    @T.inline
    def window(X, Y, taps, image, oy, ox, c0):
        best = T.alloc_buffer((vectors, lanes), "float32")
        tap = T.alloc_buffer((vectors, lanes), "int32")
        for v in T.unroll(vectors):
            for j in T.vectorized(lanes):
                best[v, j] = T.float32(-math.inf)
                tap[v, j] = 0
        top = T.meta_var(oy * rows.stride - rows.pad)
        left = T.meta_var(ox * cols.stride - cols.pad)
        y_taps = T.meta_var(rows.taps(top, 0, g.H))
        x_taps = T.meta_var(cols.taps(left, 0, g.W))
        for ky in range(y_taps[0], y_taps[1]):
            for kx in range(x_taps[0], x_taps[1]):
                for v in T.unroll(vectors):
                    larger(
                        X,
                        best,
                        tap,
                        [image, top + ky * rows.dilation, left + kx * cols.dilation, c0],
                        v,
                        ky * g.KW + kx,
                    )
        for v in T.unroll(vectors):
            for j in T.vectorized(lanes):
                Y[image, oy, ox, c0 + v * lanes + j] = best[v, j]
            for j in T.vectorized(lanes):
                taps[image, oy, ox, c0 + v * lanes + j] = T.Cast("uint8", tap[v, j])

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle, t: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(g.H), T.int64(g.W), T.int64(g.C)), "float32")
        Y = T.match_buffer(y, (B, T.int64(g.OH), T.int64(g.OW), T.int64(g.C)), "float32")
        taps = T.match_buffer(t, (B, T.int64(g.OH), T.int64(g.OW), T.int64(g.C)), "uint8")
        for task in loop(B * tasks):
            for row in range(T.min(TASK_ROWS, g.OH - task % tasks * TASK_ROWS)):
                for ox in range(g.OW):
                    for group in range(groups):
                        c0 = T.meta_var(T.min(group * (vectors * lanes), g.C - vectors * lanes))
                        window(X, Y, taps, task // tasks, task % tasks * TASK_ROWS + row, ox, c0)

    return kernel


@functools.cache
def max_pool_gradient(geometry: ConvGeometry, isa: Isa, batch: int | None = None) -> tirx.PrimFunc:
    """Gradient of the input: each of its pixels asks the windows that it lies in.

    Returns:
        PrimFunc of dY float32 and taps uint8 [B, OH, OW, C], dX float32 [B, H, W, C]; B is symbolic.
    """
    g, (rows, cols) = geometry, axes_of(geometry)
    groups, vectors, lanes = channel_groups(g.C, isa)
    tasks = -(-g.H // TASK_ROWS)
    loop = loop_of(batch, g.OH * g.OW * g.C * g.KH * g.KW)

    def add(DY, taps, total, image, oy, ox, c0, v, here):
        place = across(c0 + v * lanes, lanes)
        dy = T.bind(DY[image, oy, ox, place])
        hit = taps[image, oy, ox, place] == _spread(here, "uint8", lanes)
        share = tirx.Select(hit, dy, tirx.const(0, dy.ty.dtype))
        T.buffer_store(total, total[v, across(0, lanes)] + share, [v, across(0, lanes)])

    @T.inline
    def pixel(DY, taps, DX, image, iy, ix, c0):
        total = T.alloc_buffer((vectors, lanes), "float32")
        for v in T.unroll(vectors):
            for j in T.vectorized(lanes):
                total[v, j] = T.float32(0)
        ys = T.meta_var(rows.windows(iy))
        xs = T.meta_var(cols.windows(ix))
        for oy in range(ys[0], ys[1]):
            dy = T.meta_var(rows.offset(iy, oy))
            if dy % rows.dilation == 0:
                for ox in range(xs[0], xs[1]):
                    dx = T.meta_var(cols.offset(ix, ox))
                    if dx % cols.dilation == 0:
                        here = T.meta_var(dy // rows.dilation * g.KW + dx // cols.dilation)
                        for v in T.unroll(vectors):
                            add(DY, taps, total, image, oy, ox, c0, v, here)
        for v in T.unroll(vectors):
            for j in T.vectorized(lanes):
                DX[image, iy, ix, c0 + v * lanes + j] = total[v, j]

    @T.prim_func(private=True)
    def kernel(dy: T.handle, t: T.handle, dx: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        DY = T.match_buffer(dy, (B, T.int64(g.OH), T.int64(g.OW), T.int64(g.C)), "float32")
        taps = T.match_buffer(t, (B, T.int64(g.OH), T.int64(g.OW), T.int64(g.C)), "uint8")
        DX = T.match_buffer(dx, (B, T.int64(g.H), T.int64(g.W), T.int64(g.C)), "float32")
        for task in loop(B * tasks):
            for row in range(T.min(TASK_ROWS, g.H - task % tasks * TASK_ROWS)):
                for ix in range(g.W):
                    for group in range(groups):
                        c0 = T.meta_var(T.min(group * (vectors * lanes), g.C - vectors * lanes))
                        pixel(DY, taps, DX, task // tasks, task % tasks * TASK_ROWS + row, ix, c0)

    return kernel
