"""Finding bit-identical im2col rows (``row`` + ``exact``; ``docs/algorithm.md``, clauses 5 and 8).

A sample of rows is looked at first: where few repeat, nothing else is done.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, units
from adr_tvm.schedules.number_windows import WindowSource, number_windows
from adr_tvm.schedules.vector_key import mix
from adr_tvm.settings import ReuseSetting

PROBE_SHARE = 48  # one row of an image in this many is looked at first
LEAST_PROBED, MOST_PROBED = 48, 1024
PROBE_REPEATS = 3  # one row in so many looked at must repeat: with fewer, gathering rows costs more than it saves


def probe_rows(geometry: ConvGeometry):
    """Inline ``(X, go, U, G)``: go[u] = 1 if a sample of the unit's rows repeats enough.

    What is looked for is a few contents with many rows each: their share of a sample is their share of the unit. Rows
    that only come in pairs would need a sample as large as the unit.
    """
    rows, taps, C = geometry.rows, geometry.KH * geometry.KW, geometry.C
    H, W, KW, OW = geometry.H, geometry.W, geometry.KW, geometry.OW
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding
    sample = max(LEAST_PROBED, min(MOST_PROBED, rows // PROBE_SHARE))

    @T.inline
    def inline(X, go, U, G):
        for u in T.parallel(U):
            words = T.alloc_buffer((sample,), "int64")
            word = T.alloc_buffer((1,), "int64", scope="local")
            distinct = T.alloc_buffer((1,), "int32", scope="local")
            new = T.alloc_buffer((1,), "int32", scope="local")
            distinct[0] = 0
            taken = T.min(T.cast(G * rows, "int64"), T.int64(sample))
            for i in range(taken):
                row = i * (G * rows) // taken
                words[i] = T.int64(0)
                for t in range(taps):
                    iy = T.meta_var(row % rows // OW * SH - PT + t // KW * DH)
                    ix = T.meta_var(row % rows % OW * SW - PL + t % KW * DW)
                    if iy >= 0 and iy < H and ix >= 0 and ix < W:
                        word[0] = T.int64(0)
                        for c in range(C):
                            bits = T.meta_var(T.reinterpret("int32", X[u * G + row // rows, iy, ix, c]))
                            word[0] = word[0] + mix(T.cast(bits, "int64"), c)
                        words[i] = words[i] + mix(word[0], t)
                new[0] = 1
                for j in range(i):
                    if words[j] == words[i]:
                        new[0] = 0
                distinct[0] = distinct[0] + new[0]
            repeats = T.cast(taken, "int32") - distinct[0]
            go[u] = T.Select(T.And(repeats >= 2, repeats * PROBE_REPEATS >= T.cast(taken, "int32")), 1, 0)

    return inline


@functools.cache
def any_repeats(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """PrimFunc of X float32 [B, H, W, C] and an output bool []: whether a sample of any unit's rows repeats enough."""
    H, W, C = geometry.H, geometry.W, geometry.C
    probe = probe_rows(geometry)

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        found = T.match_buffer(y, (), "bool")
        go = T.alloc_buffer((U,), "int32")
        probe(X, go, U, units(setting, B)[1])
        found[()] = T.bool(False)
        for u in range(U):
            if go[u] != 0:
                found[()] = T.bool(True)

    return kernel


@functools.cache
def match_rows(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Find the bit-identical rows of X.

    Returns:
        PrimFunc of X float32 [B, H, W, C], then the outputs ids int32 [U, N] (number of row n among the distinct
        rows), reps int32 [U, N] (first row of each number), stats int32 [U, 2] (distinct rows where the unit reuses,
        else those seen until it was given up; 1 if it reuses). Of a unit that runs dense ids and reps stay unwritten.
    """
    H, W, C, rows = geometry.H, geometry.W, geometry.C, geometry.rows
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters

    def bits(X, image, iy, ix, c):
        return T.reinterpret("int32", X[image, iy, ix, c])

    probe, number = probe_rows(geometry), number_windows(geometry, WindowSource(C, bits, floats=True))

    @T.prim_func(private=True)
    def kernel(x: T.handle, i: T.handle, rp: T.handle, st: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        ids = T.match_buffer(i, (U, N), "int32")
        reps = T.match_buffer(rp, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        go = T.alloc_buffer((U,), "int32")
        count = T.alloc_buffer((U,), "int32")
        probe(X, go, U, G)
        number(X, ids, reps, go, count, U, G, B, limit)
        for u in range(U):
            stats[u, 0] = count[u]
            stats[u, 1] = go[u]

    return kernel
