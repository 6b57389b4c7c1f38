"""The input gradient from that of the centroids: every position gets its cluster's (``docs/algorithm.md``, clause B4).

- ``pixel``: dX[p, s L + l] = dC_s[id_s(p), l];
- ``segment``, ``row``: dX[p, c] = sum over taps t of dC_s[id_s(o), l] with o the output pixel that reads p through t and
  (s, l) the place of (c, t) in its im2col row: col2im in gather form, taps in order.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.gradient_layout import GradientLayout, int64


@functools.cache
def spread_gradients(layout: GradientLayout) -> tirx.PrimFunc:
    """PrimFunc of ids int32 [U, S, G * map_size], dC float32 [U, S, capacity, Lp] and dX float32 [B, H, W, C]."""
    g = layout.geometry
    put = _put_pixel(layout) if layout.setting.granularity == "pixel" else _gather_pixel(layout)

    @T.prim_func(private=True)
    def kernel(i: T.handle, d: T.handle, x: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        ids = T.match_buffer(i, int64(layout.units, layout.segments, layout.images * layout.map_size), "int32")
        dc = T.match_buffer(d, int64(*layout.centroids_shape), "float32")
        dx = T.match_buffer(x, int64(layout.batch, g.H, g.W, g.C), "float32")
        for task in T.parallel(layout.batch * g.H):
            for column in range(g.W):
                put(ids, dc, dx, task // g.H, task % g.H, column)

    return kernel


def _put_pixel(layout: GradientLayout):
    """Inline ``(ids, dc, dx, image, y, x)`` of ``pixel``."""
    G, L, S, C, lanes = layout.images, layout.L, layout.segments, layout.geometry.C, layout.isa.lanes
    top, left = layout.geometry.padding[:2]

    def put_entries(dc, dx, u, s, id, image, y, x, count):
        with T.If(id >= 0):
            with T.Then():
                for l in range(0, count - count % lanes, lanes):
                    T.buffer_store(dx, dc[u, s, id, across(l, lanes)], [image, y, x, across(s * L + l, lanes)])
                for l in range(count - count % lanes, count):
                    T.buffer_store(dx, dc[u, s, id, l], [image, y, x, s * L + l])
            with T.Else(), T.serial(count) as l:
                T.buffer_store(dx, T.float32(0), [image, y, x, s * L + l])

    @T.inline
    def inline(ids, dc, dx, image, y, x):
        at = T.meta_var(image % G * layout.map_size + (y + top) * layout.map_columns + x + left)
        for s in range(C // L):
            put_entries(dc, dx, image // G, s, T.bind(ids[image // G, s, at]), image, y, x, L)
        if C % L > 0:
            put_entries(dc, dx, image // G, S - 1, T.bind(ids[image // G, S - 1, at]), image, y, x, C % L)

    return inline


def _gather_pixel(layout: GradientLayout):
    """Inline ``(ids, dc, dx, image, y, x)`` of ``segment`` and ``row``."""
    g, G, L = layout.geometry, layout.images, layout.L
    (SH, SW), (DH, DW), (PT, PL, _, _), taps = g.strides, g.dilation, g.padding, g.KH * g.KW
    by_tap = layout.setting.granularity == "row"

    def entry(c, tap):
        return tap * g.C + c if by_tap else c * taps + tap

    @T.inline
    def inline(ids, dc, dx, image, y, x):
        for c in range(g.C):
            dx[image, y, x, c] = T.float32(0)
        for ky in range(g.KH):
            for kx in range(g.KW):
                row = T.meta_var(y + PT - ky * DH)
                column = T.meta_var(x + PL - kx * DW)
                in_rows = T.meta_var(T.And(T.And(row >= 0, row % SH == 0), row // SH < g.OH))
                in_columns = T.meta_var(T.And(T.And(column >= 0, column % SW == 0), column // SW < g.OW))
                if T.And(in_rows, in_columns):
                    for c in range(g.C):
                        k = T.meta_var(entry(c, ky * g.KW + kx))
                        at = T.meta_var(image % G * g.rows + row // SH * g.OW + column // SW)
                        id = T.meta_var(ids[image // G, k // L, at])
                        if id >= 0:
                            dx[image, y, x, c] = dx[image, y, x, c] + dc[image // G, k // L, id, k % L]

    return inline
