"""Who is in which cluster: the positions of every chunk sorted by phase and cluster, a counting sort.

The members of cluster c in phase f of a (chunk, segment) are
``members[starts[f cap + c] : starts[f cap + c + 1]]``, in the order of images, rows and columns; a member is the place
in the block of dZ that a tap of distance 0 reads (``gradient_layout``). One task sorts a few segments of a chunk
together: each place waits for the one before it in its list, and neighbours are often in one cluster.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.gradient_layout import TASKS, GradientLayout, int64

MAX_TOGETHER = 4


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
    together = max(1, min(MAX_TOGETHER, layout.chunks * S // TASKS))  # segments of a task; the last may be done twice
    groups = -(-S // together)
    images, per_unit, band_rows = layout.chunk_images, layout.unit_chunks, layout.band_rows
    top, left = layout.positions.padding[:2]
    SH, SW, NB = rows.stride, columns.stride, layout.channels
    whole = bands == 1

    def list_of(y, x, id):
        return ((y + top) % SH * SW + (x + left) % SW) * cap + id

    def map_index(image, y, x):
        return image * layout.map_size + (y + top) * layout.map_columns + x + left

    def segment(task, z):
        return T.min(task % groups * together + z, S - 1)

    def place_of(i, y, x, band):
        row = (y + top) // SH - layout.first_row(band)
        pixel = (i * layout.block_rows + row) * columns.pitch + layout.lead + (x + left) // SW
        return T.cast(pixel * NB, "int32")

    def begin_row(band):
        return 0 if whole else T.max(0, (rows.first + band * band_rows) * SH - top)

    def end_row(band):
        return rows.size if whole else T.min(rows.size, (rows.first + (band + 1) * band_rows) * SH - top)

    @T.prim_func(private=True)
    def kernel(i: T.handle, st: T.handle, m: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        ids = T.match_buffer(i, int64(U, S, G * layout.map_size), "int32")
        starts = T.match_buffer(st, int64(*layout.starts_shape), "int32")
        members = T.match_buffer(m, int64(*layout.members_shape), "int32")
        for task in T.parallel(layout.chunks * groups):
            chunk = T.meta_var(task // groups)
            first = T.meta_var(chunk % per_unit // bands * images)
            band = T.meta_var(chunk % per_unit % bands)
            y0 = T.meta_var(begin_row(band))
            cursor = T.alloc_buffer((together, lists), "int32")
            total = T.alloc_buffer((1,), "int32", scope="local")
            for z in range(together):
                for c in range(lists):
                    cursor[z, c] = 0
            for image in range(T.min(images, G - first)):
                for dy in range(end_row(band) - y0):
                    for x in range(columns.size):
                        for z in T.unroll(together):
                            y = T.meta_var(y0 + dy)
                            id = T.meta_var(ids[chunk // per_unit, segment(task, z), map_index(first + image, y, x)])
                            if id >= 0:
                                cursor[z, list_of(y, x, id)] = cursor[z, list_of(y, x, id)] + 1
            for z in range(together):
                total[0] = 0
                for c in range(lists):
                    starts[chunk, segment(task, z), c] = total[0]
                    total[0] = total[0] + cursor[z, c]
                    cursor[z, c] = starts[chunk, segment(task, z), c]
                starts[chunk, segment(task, z), lists] = total[0]
            for image in range(T.min(images, G - first)):
                for dy in range(end_row(band) - y0):
                    for x in range(columns.size):
                        for z in T.unroll(together):
                            y = T.meta_var(y0 + dy)
                            s = T.meta_var(segment(task, z))
                            id = T.meta_var(ids[chunk // per_unit, s, map_index(first + image, y, x)])
                            if id >= 0:
                                members[chunk, s, cursor[z, list_of(y, x, id)]] = place_of(image, y, x, band)
                                cursor[z, list_of(y, x, id)] = cursor[z, list_of(y, x, id)] + 1

    return kernel
