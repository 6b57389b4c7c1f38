"""Gradient of the centroids, and of the input through them (``docs/algorithm.md``, clause B4).

    dC[c, l] = (sum over the pieces i of c of E_i[l]) / n_c

- ``pixel``: dX[p, s L + l] = dC_s[id_s(p), l];
- ``segment``, ``row``: dX[p, c] = sum over taps t of the entry of dC that is (c, t) of the window which reads p through
  t: col2im in gather form, taps in order, as ``schedules/spread_gradients.py`` has it.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.cuda.cluster_pieces import ClusterPieces

THREADS = 128


@functools.cache
def centroid_gradient(layout: ClusterPieces) -> tirx.PrimFunc:
    """A thread for each entry of a centroid.

    Returns:
        PrimFunc of E float32 [groups, pieces, L], firsts int32 [groups, pieces + 1], leading int32 [groups, capacity +
        1], totals int32 [groups, 2] and the output dC float32 [groups, capacity, L], of which rows behind the last
        cluster are not written.
    """
    groups, pieces, cap, L = layout.groups, layout.pieces, layout.capacity, layout.L
    cells = groups * cap * L

    @T.prim_func(private=True)
    def kernel(e: T.handle, fi: T.handle, le: T.handle, to: T.handle, d: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        E = T.match_buffer(e, (T.int64(groups), T.int64(pieces), T.int64(L)), "float32")
        firsts = T.match_buffer(fi, (T.int64(groups), T.int64(pieces + 1)), "int32")
        leading = T.match_buffer(le, (T.int64(groups), T.int64(cap + 1)), "int32")
        totals = T.match_buffer(to, (T.int64(groups), T.int64(2)), "int32")
        dC = T.match_buffer(d, (T.int64(groups), T.int64(cap), T.int64(L)), "float32")
        for block in T.thread_binding(-(-cells // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                total = T.alloc_buffer((1,), "float32", scope="local")
                bounds = T.alloc_buffer((2,), "int32", scope="local")
                i = T.meta_var(T.cast(block, "int64") * THREADS + t)
                q = T.meta_var(i // (cap * L))
                c = T.meta_var(i // L % cap)
                if i < cells:
                    if c < T.cast(totals[q, 1], "int64"):
                        bounds[0] = leading[q, c]
                        bounds[1] = leading[q, c + 1]
                        total[0] = T.float32(0)
                        for piece in range(bounds[1] - bounds[0]):
                            total[0] = total[0] + E[q, bounds[0] + piece, i % L]
                        dC[q, c, i % L] = total[0] / T.cast(firsts[q, bounds[1]] - firsts[q, bounds[0]], "float32")

    return kernel


@functools.cache
def spread_gradients(layout: ClusterPieces) -> tirx.PrimFunc:
    """A thread for a few channels of a pixel.

    Returns:
        PrimFunc of ids int32 [groups, N], dC float32 [groups, capacity, L] and the output dX float32 [B, H, W, C].
    """
    g, L, S, G = layout.geometry, layout.L, layout.segments, layout.images
    pixel = layout.setting.granularity == "pixel"
    V = 4 if pixel and g.C % 4 == 0 and L % 4 == 0 else 1
    groups, N, cap, per_pixel = layout.groups, layout.positions, layout.capacity, g.C // V
    cells = layout.batch * g.H * g.W * per_pixel
    put = _of_pixel(layout, V) if pixel else _of_windows(layout)

    @T.prim_func(private=True)
    def kernel(i: T.handle, d: T.handle, x: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        ids = T.match_buffer(i, (T.int64(groups), T.int64(N)), "int32")
        dC = T.match_buffer(d, (T.int64(groups), T.int64(cap), T.int64(L)), "float32")
        dX = T.match_buffer(x, (T.int64(layout.batch), T.int64(g.H), T.int64(g.W), T.int64(g.C)), "float32")
        flat_c = T.decl_buffer((groups * cap * L,), "float32", data=dC.data)
        flat_x = T.decl_buffer((layout.batch * g.H * g.W * g.C,), "float32", data=dX.data)
        for block in T.thread_binding(-(-cells // THREADS), "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                value = T.alloc_buffer((V,), "float32", scope="local")
                at = T.meta_var(T.cast(block, "int64") * THREADS + t)
                p = T.meta_var(T.cast(at // per_pixel % (g.H * g.W), "int32"))
                image = T.meta_var(T.cast(at // (per_pixel * g.H * g.W), "int32"))
                c = T.meta_var(T.cast(at % per_pixel, "int32") * V)
                if at < cells:
                    for v in T.unroll(V):
                        value[v] = T.float32(0)
                    put(ids, flat_c, value, image // G * S, image % G * layout.map_size, p // g.W, p % g.W, c)
                    for v in T.vectorized(V):
                        flat_x[at * V + v] = value[v]

    return kernel


def _of_pixel(layout: ClusterPieces, V: int):
    """Inline ``(ids, dC, value, q, place, y, x, c)``: value [V] = the gradient from channel c on.

    q is the first group of the unit, and place the first position of the image in its id maps.
    """
    g, L, cap = layout.geometry, layout.L, layout.capacity
    PT, PL, _, PR = g.padding
    columns = g.W + PL + PR

    @T.inline
    def inline(ids, dC, value, q, place, y, x, c):
        s = T.meta_var(q + c // L)
        id = T.meta_var(ids[s, place + (y + PT) * columns + x + PL])
        if id >= 0:
            for v in T.vectorized(V):
                value[v] = dC[T.cast(s * cap + id, "int64") * L + c % L + v]

    return inline


def _of_windows(layout: ClusterPieces):
    """The same, V = 1, where vectors are of windows."""
    g, L, cap, by_row = layout.geometry, layout.L, layout.capacity, layout.by_row
    (SH, SW), (DH, DW), (PT, PL, _, _), taps = g.strides, g.dilation, g.padding, g.KH * g.KW

    def entry(c, tap):
        return tap * g.C + c if by_row else c * taps + tap

    @T.inline
    def inline(ids, dC, value, q, place, y, x, c):
        for tap in range(taps):
            row = T.meta_var(y + PT - tap // g.KW * DH)
            column = T.meta_var(x + PL - tap % g.KW * DW)
            in_rows = T.meta_var(T.And(T.And(row >= 0, row % SH == 0), row // SH < g.OH))
            in_columns = T.meta_var(T.And(T.And(column >= 0, column % SW == 0), column // SW < g.OW))
            if T.And(in_rows, in_columns):
                s = T.meta_var(q + entry(c, tap) // L)
                id = T.meta_var(ids[s, place + row // SH * g.OW + column // SW])
                if id >= 0:
                    value[0] = value[0] + dC[T.cast(s * cap + id, "int64") * L + entry(c, tap) % L]

    return inline
