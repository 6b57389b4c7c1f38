"""Rows of equal content from pixels of known content (``row`` + ``exact``; ``docs/algorithm.md``, clause 8).

Where the distinct pixels of an activation are numbered, an im2col row is known by the numbers its taps name, and so is
a window of a pooling. Rows are compared by these names, never by the data: this is how a network's ids are found once,
at its input, and carried from layer to layer.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, units
from adr_tvm.schedules.number_windows import WindowSource, number_windows
from adr_tvm.settings import ReuseSetting


def one_to_one(geometry: ConvGeometry) -> bool:
    """Whether row n is pixel n and nothing else: a 1x1 window, stride 1, no padding."""
    g = geometry
    return (g.KH, g.KW, *g.strides, *g.padding) == (1, 1, 1, 1, 0, 0, 0, 0)


@functools.cache
def combine_rows(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Number the rows of equal content, given the ids of the input's pixels.

    Returns:
        PrimFunc of X float32 [B, H, W, C] (not read: its shape gives B), the ids of its pixels int32 [U, G * H * W] and
        their stats int32 [U, 2], then the outputs ids, reps int32 [U, N] and stats int32 [U, 2] as of ``match_rows``. A
        unit whose input is not known by ids does not reuse here either.
    """
    H, W, C, rows = geometry.H, geometry.W, geometry.C, geometry.rows
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters
    by_image = setting.scope == "image"

    def name(pixels, image, iy, ix, _):
        place = iy * W + ix
        return (pixels[image, place] if by_image else pixels[0, image * (H * W) + place]) + 1  # 0 is the padding

    number = number_windows(geometry, WindowSource(1, name, floats=False))

    @T.prim_func(private=True)
    def kernel(x: T.handle, pi: T.handle, ps: T.handle, i: T.handle, rp: T.handle, st: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")  # noqa: F841
        pixels = T.match_buffer(pi, (U, G * T.int64(H * W)), "int32")
        pixel_stats = T.match_buffer(ps, (U, T.int64(2)), "int32")
        ids = T.match_buffer(i, (U, N), "int32")
        reps = T.match_buffer(rp, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        go = T.alloc_buffer((U,), "int32")
        count = T.alloc_buffer((U,), "int32")
        for u in range(U):
            go[u] = pixel_stats[u, 1]
        number(pixels, ids, reps, go, count, U, G, B, limit)
        for u in range(U):
            stats[u, 0] = count[u]
            stats[u, 1] = go[u]

    return kernel
