"""Finding bit-identical im2col rows (``row`` + ``exact``; ``docs/algorithm.md``, clauses 5 and 8).

Equal rows are found in two steps, so that a channel is read once and not once per tap: pixels with equal bits are
given a common leader, then rows whose taps name the same leaders. Each step hashes, matches by the 64-bit hash and
verifies the match on the data; should hashes ever collide, the unit runs dense. A sample of rows is looked at first:
where few repeat, nothing else is done.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, units
from adr_tvm.schedules.combine_rows import NO_PIXEL, OWN, combine_pixels, list_rows, match_words, tap_positions
from adr_tvm.schedules.vector_key import mix
from adr_tvm.settings import ReuseSetting

TASK_PIXELS = 128
PROBE_SHARE = 16  # one row in this many is looked at first
PROBE_REPEATS = 0.1  # share of repeated rows that a unit should hold to be worth matching


def _pixel_word(C: int):
    """Inline ``(X, image, iy, ix, word, largest)``: word[0] = hash of a pixel's bits, largest[0] = max |bits|."""

    @T.inline
    def inline(X, image, iy, ix, word, largest):
        word[0] = T.int64(0)
        largest[0] = 0
        for c in range(C):
            bits = T.meta_var(T.reinterpret("int32", X[image, iy, ix, c]))
            word[0] = word[0] + mix(T.cast(bits, "int64"), c)
            largest[0] = T.max(largest[0], bits & T.int32(0x7FFFFFFF))

    return inline


def _probe_phase(geometry: ConvGeometry):
    """Inline ``(X, go, U, G)``: go[u] = 1 if a sample of the unit's rows repeats enough.

    A sample of n of N rows holds only (n / N)^2 of the repeats that come in pairs: the bar is scaled so, and two
    repeats are the least that counts.
    """
    rows, taps, C = geometry.rows, geometry.KH * geometry.KW, geometry.C
    inside, iy, ix = tap_positions(geometry)
    sample = max(16, min(256, rows // PROBE_SHARE))
    pixel_word = _pixel_word(C)

    @T.inline
    def inline(X, go, U, G):
        for u in T.parallel(U):
            words = T.alloc_buffer((sample,), "int64")
            word = T.alloc_buffer((1,), "int64", scope="local")
            largest = T.alloc_buffer((1,), "int32", scope="local")
            distinct = T.alloc_buffer((1,), "int32", scope="local")
            new = T.alloc_buffer((1,), "int32", scope="local")
            distinct[0] = 0
            for i in range(sample):
                row = T.meta_var(T.cast(i, "int64") * (G * rows) // sample)
                words[i] = T.int64(0)
                for t in range(taps):
                    if inside(row % rows, t):
                        pixel_word(X, u * G + row // rows, iy(row % rows, t), ix(row % rows, t), word, largest)
                        words[i] = words[i] + mix(word[0], t)
                new[0] = 1
                for j in range(i):
                    if words[j] == words[i]:
                        new[0] = 0
                distinct[0] = distinct[0] + new[0]
            repeats = T.meta_var(T.cast(sample - distinct[0], "int64"))
            expected = T.meta_var(T.cast(G * rows, "int64") * repeats)
            go[u] = T.Select(T.And(repeats >= 2, expected >= int(PROBE_REPEATS * sample * sample)), 1, 0)

    return inline


@functools.cache
def match_rows(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Find the bit-identical rows of X.

    Returns:
        PrimFunc of X float32 [B, H, W, C], then the outputs lead int32 [U, N] (row whose product row n receives),
        reps int32 [U, N] (rows to compute, in order), stats int32 [U, 2] (rows to compute where the unit reuses,
        else the distinct rows seen until it was given up; 1 if it reuses). A unit that runs dense lists all rows.
    """
    H, W, C, rows = geometry.H, geometry.W, geometry.C, geometry.rows
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters
    probe, match, pixel_word = _probe_phase(geometry), match_words(setting), _pixel_word(C)
    combine, listing = combine_pixels(geometry, setting), list_rows()
    pixel_tasks = -(-H * W // TASK_PIXELS)

    @T.prim_func(private=True)
    def kernel(x: T.handle, ld: T.handle, rp: T.handle, st: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        P = T.meta_var(G * T.int64(H * W))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        lead = T.match_buffer(ld, (U, N), "int32")
        reps = T.match_buffer(rp, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        go = T.alloc_buffer((U,), "int32")
        leaders = T.alloc_buffer((U,), "int32")
        pixel_words = T.alloc_buffer((U, P), "int64")
        pixel_lead = T.alloc_buffer((U, P), "int32")
        row_words = T.alloc_buffer((U, N), "int64")
        probe(X, go, U, G)
        for task in T.parallel(B * pixel_tasks):
            word = T.alloc_buffer((1,), "int64", scope="local")
            largest = T.alloc_buffer((1,), "int32", scope="local")
            image = T.meta_var(task // pixel_tasks)
            if go[image // G] != 0:
                for i in range(T.min(TASK_PIXELS, H * W - task % pixel_tasks * TASK_PIXELS)):
                    p = T.meta_var(task % pixel_tasks * TASK_PIXELS + i)
                    pixel_word(X, image, p // W, p % W, word, largest)
                    pixel_words[image // G, image % G * (H * W) + p] = word[0]
                    pixel_lead[image // G, image % G * (H * W) + p] = T.Select(
                        largest[0] >= T.int32(0x7F800000), T.int32(OWN), T.int32(NO_PIXEL)
                    )
        match(pixel_words, pixel_lead, go, U, P, UNLIMITED, leaders)
        for task in T.parallel(B * pixel_tasks):
            nonzero = T.alloc_buffer((1,), "int32", scope="local")
            image = T.meta_var(task // pixel_tasks)
            u = T.meta_var(image // G)
            if go[u] != 0:
                for i in range(T.min(TASK_PIXELS, H * W - task % pixel_tasks * TASK_PIXELS)):
                    p = T.meta_var(task % pixel_tasks * TASK_PIXELS + i)
                    other = T.meta_var(pixel_lead[u, image % G * (H * W) + p])
                    if other >= 0:
                        q = T.meta_var(other % (H * W))
                        nonzero[0] = 0
                        for c in range(C):
                            bits = T.meta_var(T.reinterpret("int32", X[image, p // W, p % W, c]))
                            nonzero[0] = nonzero[0] | bits
                            if bits != T.reinterpret("int32", X[u * G + other // (H * W), q // W, q % W, c]):
                                go[u] = 0
                        if nonzero[0] == 0:  # equal to padding
                            pixel_lead[u, image % G * (H * W) + p] = NO_PIXEL
        combine(pixel_lead, lead, row_words, go, leaders, U, G, B, limit)
        listing(lead, reps, stats, go, leaders, U, N)

    return kernel
