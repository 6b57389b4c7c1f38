"""The input gradient of ``segment``: col2im of the centroids' gradients (``docs/algorithm.md``, clause B4).

    dX[p, c] = sum over taps t of dC_s[id_s(o), l],   s L + l = c KH KW + t,   o the output pixel that reads p through t

One task does 16 channels of an image, in two steps. First every entry (c, t) gets a map over the output pixels, zeros
around it: the rows of 16 output pixels are transposed in registers, after which an entry of the segment is one vector
to store. Then each vector of neighbouring pixels sums its taps' maps, in their order, at fixed distances
(``gradient_layout``). Adding entries to channel maps as they come took twice as long: additions to overlapping vectors
wait for each other's stores.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.gradient_layout import Axis, GradientLayout, int64
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat, transpose_tile

CHANNELS = TILE


@functools.cache
def spread_segments(layout: GradientLayout) -> tirx.PrimFunc:
    """PrimFunc of ids int32 [U, S, G * OH * OW], dC float32 [U, S, capacity + 1, Lp] and dX float32 [B, H, W, C]."""
    g, L, G, cap = layout.geometry, layout.L, layout.images, layout.capacity
    rows = Axis(g.H, g.OH, g.KH, g.strides[0], g.padding[0], g.dilation[0])
    columns = Axis(g.W, g.OW, g.KW, g.strides[1], g.padding[1], g.dilation[1])
    taps, pitch, blocks = g.KH * g.KW, columns.pitch, -(-g.C // CHANNELS)
    groups = -(-((g.OH - 1) * pitch + g.OW) // TILE)  # of output pixels, with the zeros between them
    size = -(-max(rows.pitch * pitch, groups * TILE) // TILE) * TILE  # of a map and the zeros after it
    whole = g.C % CHANNELS == 0

    def store_entries(dc, maps, places, u, s, group, row, chunk, count):
        vectors = [T.bind(dc[u, s, places[group * TILE + q], lanes(chunk * TILE)]) for q in range(TILE)]
        for l, entry in enumerate(transpose_tile(vectors)[:count]):
            T.buffer_store(maps, entry, [lanes((row + chunk * TILE + l) * size + group * TILE)])

    def store_group(dc, maps, places, u, s, group, row):
        with T.serial(L // TILE) as chunk:
            store_entries(dc, maps, places, u, s, group, row, chunk, TILE)
        if L % TILE:
            store_entries(dc, maps, places, u, s, group, row, L // TILE, L % TILE)

    def sum_taps(maps, tile, fy, fx, a, first, c):
        total = splat(T.float32(0))
        for ky, by in rows.taps(fy):
            for kx, bx in columns.taps(fx):
                at = (L + c * taps + ky * columns.kernel + kx) * size + (a - by) * pitch + first - bx
                total = T.bind(total + maps[lanes(at)])
        T.buffer_store(tile, total, [c, lanes()])

    def store_pixels(dx, tile, image, y, x, block):
        """16 columns ``SW`` apart, the first at x."""
        if whole:
            channels = transpose_tile([T.bind(tile[c, lanes()]) for c in range(CHANNELS)])
            for q, pixel in enumerate(channels):
                column = x + q * columns.stride
                with T.If(T.And(column >= 0, column < g.W)), T.Then():
                    T.buffer_store(dx, pixel, [image, y, column, lanes(block * CHANNELS)])
            return
        with T.serial(TILE) as q, T.serial(T.min(CHANNELS, g.C - block * CHANNELS)) as c:
            column = x + q * columns.stride
            with T.If(T.And(column >= 0, column < g.W)), T.Then():
                T.buffer_store(dx, tile[c, q], [image, y, column, block * CHANNELS + c])

    def clear_after(maps, row):
        with T.serial(size // TILE - groups) as i:
            T.buffer_store(maps, splat(T.float32(0)), [lanes(row * size + (groups + i) * TILE)])

    def sum_phases(dx, maps, tile, image, block):
        for fy in range(rows.stride):
            for fx in range(columns.stride):
                with T.serial(rows.count) as i, T.serial(-(-columns.count // TILE)) as j:
                    a, first = rows.first + i, columns.first + j * TILE
                    y = a * rows.stride + fy - rows.pad
                    with T.If(T.And(y >= 0, y < g.H)), T.Then():
                        with T.serial(CHANNELS) as c:
                            sum_taps(maps, tile, fy, fx, a, first, c)
                        store_pixels(dx, tile, image, y, first * columns.stride + fx - columns.pad, block)

    rows_of_maps = CHANNELS * taps + 2 * L  # and those of other channels that a segment holds, before and after

    @T.prim_func(private=True)
    def kernel(i: T.handle, d: T.handle, x: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        ids = T.match_buffer(i, int64(layout.units, layout.segments, G * g.rows), "int32")
        dc = T.match_buffer(d, int64(*layout.centroids_shape), "float32")
        dx = T.match_buffer(x, int64(layout.batch, g.H, g.W, g.C), "float32")
        for task in T.parallel(layout.batch * blocks):
            image = T.meta_var(task // blocks)
            block = T.meta_var(task % blocks)
            maps = T.alloc_buffer((rows_of_maps * size + TILE,), "float32")
            tile = T.alloc_buffer((CHANNELS, TILE), "float32")
            places = T.alloc_buffer((groups * TILE,), "int32")
            first = T.meta_var(block * (CHANNELS * taps) // L)
            last = T.meta_var((T.min(g.K, (block + 1) * (CHANNELS * taps)) - 1) // L)
            for row in range(rows_of_maps):
                clear_after(maps, row)
            for j in range(groups * TILE):
                places[j] = cap
            for j in range(last - first + 1):
                s = T.meta_var(first + j)
                for oy in range(g.OH):
                    for ox in range(g.OW):
                        id = T.meta_var(ids[image // G, s, image % G * g.rows + oy * g.OW + ox])
                        places[oy * pitch + ox] = T.Select(id >= 0, id, cap)
                for group in range(groups):
                    store_group(dc, maps, places, image // G, s, group, s * L - block * (CHANNELS * taps) + L)
            sum_phases(dx, maps, tile, image, block)

    return kernel
