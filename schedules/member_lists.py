"""Who is in which cluster: the positions of every chunk sorted by phase and cluster, a counting sort.

For each (chunk, segment): the members of cluster c in phase f are ``members[starts[f cap + c] : starts[f cap + c + 1]]``,
in the order of images, rows and columns; a member is the place in the block of dZ that a tap of distance 0 reads
(``gradient_layout``). One task sorts one (chunk, segment).
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.gradient_layout import GradientLayout


@functools.cache
def member_lists(layout: GradientLayout) -> tirx.PrimFunc:
    """The sort.

    Returns:
        PrimFunc of ids int32 [U, S, G * map_size] (those of ``cluster``), then the outputs starts int32
        [chunks, S, phases * capacity + 1] and members int32 [chunks, S, chunk_positions].
    """
    U, S, G, cap = layout.units, layout.segments, layout.images, layout.capacity
    rows, columns, bands = layout.rows, layout.columns, layout.bands
    lists = len(layout.phases) * cap
    images, per_unit, band_rows = layout.chunk_images, layout.unit_chunks, layout.band_rows
    top, left = layout.positions.padding[:2]
    SH, SW, NB = rows.stride, columns.stride, layout.channels
    whole = bands == 1

    def list_of(y, x, id):
        return ((y + top) % SH * SW + (x + left) % SW) * cap + id

    def place_of(i, y, x, band):
        row = (y + top) // SH - layout.first_row(band)
        return ((i * layout.block_rows + row) * columns.pitch + layout.lead + (x + left) // SW) * NB

    def begin_row(band):
        return 0 if whole else T.max(0, (rows.first + band * band_rows) * SH - top)

    def end_row(band):
        return rows.size if whole else T.min(rows.size, (rows.first + (band + 1) * band_rows) * SH - top)

    @T.prim_func(private=True)
    def kernel(i: T.handle, st: T.handle, m: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        ids = T.match_buffer(i, (T.int64(U), T.int64(S), T.int64(G * layout.map_size)), "int32")
        starts = T.match_buffer(st, (T.int64(layout.chunks), T.int64(S), T.int64(lists + 1)), "int32")
        members = T.match_buffer(m, (T.int64(layout.chunks), T.int64(S), T.int64(layout.chunk_positions)), "int32")
        for task in T.parallel(layout.chunks * S):
            chunk = T.meta_var(task // S)
            s = T.meta_var(task % S)
            first = T.meta_var(chunk % per_unit // bands * images)
            band = T.meta_var(chunk % per_unit % bands)
            y0 = T.meta_var(begin_row(band))
            cursor = T.alloc_buffer((lists,), "int32")
            total = T.alloc_buffer((1,), "int32", scope="local")
            for c in range(lists):
                cursor[c] = 0
            for image in range(T.min(images, G - first)):
                for dy in range(end_row(band) - y0):
                    for x in range(columns.size):
                        y = T.meta_var(y0 + dy)
                        at = T.meta_var((first + image) * layout.map_size + (y + top) * layout.map_columns + x + left)
                        id = T.meta_var(ids[chunk // per_unit, s, at])
                        if id >= 0:
                            cursor[list_of(y, x, id)] = cursor[list_of(y, x, id)] + 1
            total[0] = 0
            for c in range(lists):
                starts[chunk, s, c] = total[0]
                total[0] = total[0] + cursor[c]
                cursor[c] = starts[chunk, s, c]
            starts[chunk, s, lists] = total[0]
            for image in range(T.min(images, G - first)):
                for dy in range(end_row(band) - y0):
                    for x in range(columns.size):
                        y = T.meta_var(y0 + dy)
                        at = T.meta_var((first + image) * layout.map_size + (y + top) * layout.map_columns + x + left)
                        id = T.meta_var(ids[chunk // per_unit, s, at])
                        if id >= 0:
                            members[chunk, s, cursor[list_of(y, x, id)]] = T.cast(place_of(image, y, x, band), "int32")
                            cursor[list_of(y, x, id)] = cursor[list_of(y, x, id)] + 1

    return kernel
