"""The input gradient from that of the centroids: every position gets its cluster's (``docs/algorithm.md``, clause B4).

- ``pixel``: dX[p, s L + l] = dC_s[id_s(p), l];
- ``row``: dX[p, c] = sum over taps t of dC[id(o), t C + c] with o the output pixel that reads p through t: col2im in
  gather form, taps in order;
- ``segment``: see ``spread_segments``.

Row ``capacity`` of dC holds zeros.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.gradient_layout import GradientLayout, int64
from adr_tvm.schedules.spread_segments import spread_segments


def spread_gradients(layout: GradientLayout) -> tirx.PrimFunc:
    """PrimFunc of ids int32 [U, S, G * map_size], dC float32 [U, S, capacity + 1, Lp] and dX float32 [B, H, W, C]."""
    if layout.setting.granularity == "segment":
        return spread_segments(layout)
    return _spread_pixels(layout)


@functools.cache
def _spread_pixels(layout: GradientLayout) -> tirx.PrimFunc:
    g = layout.geometry
    put = _put_pixel(layout) if layout.setting.granularity == "pixel" else _gather_rows(layout)

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


def _pieces(count: int, lanes: int) -> list[tuple[int, int]]:
    """(start, length) of the vectors and single entries of ``count`` entries."""
    whole = count - count % lanes
    return [(start, lanes) for start in range(0, whole, lanes)] + [(start, 1) for start in range(whole, count)]


def _put_pixel(layout: GradientLayout) -> Any:
    """Inline ``(ids, dc, dx, image, y, x)`` of ``pixel``."""
    G, L, S, C, lanes = layout.images, layout.L, layout.segments, layout.geometry.C, layout.isa.lanes
    top, left = layout.geometry.padding[:2]

    def put_entries(ids, dc, dx, s, at, image, y, x, count):
        id = T.bind(ids[image // G, s, at])
        row = T.bind(T.Select(id >= 0, id, T.int32(layout.capacity)))
        for l, width in _pieces(count, lanes):
            T.buffer_store(dx, dc[image // G, s, row, across(l, width)], [image, y, x, across(s * L + l, width)])

    @T.inline
    def inline(ids, dc, dx, image, y, x):
        at = T.meta_var(image % G * layout.map_size + (y + top) * layout.map_columns + x + left)
        for s in range(C // L):
            put_entries(ids, dc, dx, s, at, image, y, x, L)
        if C % L > 0:
            put_entries(ids, dc, dx, S - 1, at, image, y, x, C % L)

    return inline


def _gather_rows(layout: GradientLayout) -> Any:
    """Inline ``(ids, dc, dx, image, y, x)`` of ``row``."""
    g, G, lanes = layout.geometry, layout.images, layout.isa.lanes
    (SH, SW), (DH, DW), (PT, PL, _, _), C = g.strides, g.dilation, g.padding, g.C

    def clear(dx, image, y, x, start, width):
        value = T.Broadcast(T.float32(0), width) if width > 1 else T.float32(0)
        T.buffer_store(dx, value, [image, y, x, across(start, width)])

    def add(dc, dx, u, id, tap, image, y, x, start, width):
        at = [image, y, x, across(start, width)]
        T.buffer_store(dx, dx[tuple(at)] + dc[u, 0, id, across(tap * C + start, width)], at)

    @T.inline
    def inline(ids, dc, dx, image, y, x):
        for v in range(C // lanes):
            clear(dx, image, y, x, v * lanes, lanes)
        for c in range(C % lanes):
            clear(dx, image, y, x, C // lanes * lanes + c, 1)
        for ky in range(g.KH):
            for kx in range(g.KW):
                row = T.meta_var(y + PT - ky * DH)
                column = T.meta_var(x + PL - kx * DW)
                in_rows = T.meta_var(T.And(T.And(row >= 0, row % SH == 0), row // SH < g.OH))
                in_columns = T.meta_var(T.And(T.And(column >= 0, column % SW == 0), column // SW < g.OW))
                if T.And(in_rows, in_columns):
                    at = T.meta_var(image % G * g.rows + row // SH * g.OW + column // SW)
                    id = T.meta_var(ids[image // G, 0, at])
                    if id >= 0:
                        for v in range(C // lanes):
                            add(dc, dx, image // G, id, ky * g.KW + kx, image, y, x, v * lanes, lanes)
                        for c in range(C % lanes):
                            add(dc, dx, image // G, id, ky * g.KW + kx, image, y, x, C // lanes * lanes + c, 1)

    return inline
