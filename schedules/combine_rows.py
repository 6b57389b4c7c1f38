"""Rows of equal content from pixels of known content (``row`` + ``exact``; ``docs/algorithm.md``, clause 8).

Where the pixels of an activation are known by leaders (two pixels with one leader have the same bits), an im2col row is
known by the leaders its taps name, and so is a window of a pooling. Rows are hashed over these names, matched by the
64-bit hash and verified on the names, never on the data: this is how a network's ids are found once, at its input, and
carried from layer to layer.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, units
from adr_tvm.schedules.hash_table import find_cluster, slot_count
from adr_tvm.schedules.vector_key import mix
from adr_tvm.settings import ReuseSetting

OWN = -2  # leader of a pixel or row that holds NaN or Inf: itself alone
NO_PIXEL = -1  # a tap in the padding, or a pixel of zeros
TASK_ROWS = 128


def tap_positions(geometry: ConvGeometry):
    """(inside, iy, ix) of tap t of output pixel n, as functions of (n, t)."""
    H, W, KW, OW = geometry.H, geometry.W, geometry.KW, geometry.OW
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding

    def iy(n, t):
        return n // OW * SH - PT + t // KW * DH

    def ix(n, t):
        return n % OW * SW - PL + t % KW * DW

    def inside(n, t):
        return T.And(T.And(iy(n, t) >= 0, iy(n, t) < H), T.And(ix(n, t) >= 0, ix(n, t) < W))

    return inside, iy, ix


def match_words(setting: ReuseSetting):
    """Inline ``(words, leads, go, U, N, limit, leaders)``: leads[u, i] = first item with the same word.

    Items whose lead is OWN stay so and count as leaders. Clears go[u] above ``limit`` leaders.
    """
    find = find_cluster()

    @T.inline
    def inline(words, leads, go, U, N, limit, leaders):
        for u in T.parallel(U):
            slots_size = T.meta_var(slot_count(setting, N))
            slots = T.alloc_buffer((slots_size,), "int32")
            keys = T.alloc_buffer((N,), "int64")
            firsts = T.alloc_buffer((N,), "int32")
            n = T.alloc_buffer((2,), "int32", scope="local")  # distinct words, OWN items
            probe = T.alloc_buffer((1,), "int64", scope="local")
            found = T.alloc_buffer((1,), "int32", scope="local")
            hit = T.alloc_buffer((1,), "int32", scope="local")
            n[0] = 0
            n[1] = 0
            if go[u] != 0:
                for i in range(slots_size):
                    slots[i] = -1
                for i in range(N):
                    if leads[u, i] == OWN:
                        n[1] = n[1] + 1
                    elif n[0] + n[1] <= limit:
                        find(slots, keys, slots_size, words[u, i], probe, found, hit)
                        if found[0] < 0:
                            slots[probe[0]] = n[0]
                            keys[n[0]] = words[u, i]
                            firsts[n[0]] = T.cast(i, "int32")
                            found[0] = n[0]
                            n[0] = n[0] + 1
                        leads[u, i] = firsts[found[0]]
                if n[0] + n[1] > limit:
                    go[u] = 0
            leaders[u] = n[0] + n[1]

    return inline


def combine_pixels(geometry: ConvGeometry, setting: ReuseSetting):
    """Inline ``(pixel_lead, lead, words, go, leaders, U, G, B, limit)``: leaders of rows from leaders of pixels.

    pixel_lead int32 [U, G * H * W], lead int32 [U, G * rows], words int64 like lead, go and leaders int32 [U]; units
    with go[u] = 0 are left alone, and go[u] is cleared above ``limit`` leaders or should hashes collide.
    """
    H, W, rows, taps = geometry.H, geometry.W, geometry.rows, geometry.KH * geometry.KW
    inside, iy, ix = tap_positions(geometry)
    match = match_words(setting)
    row_tasks = -(-rows // TASK_ROWS)

    @T.inline
    def inline(pixel_lead, lead, row_words, go, leaders, U, G, B, limit):
        for task in T.parallel(B * row_tasks):
            word = T.alloc_buffer((1,), "int64", scope="local")
            own = T.alloc_buffer((1,), "int32", scope="local")
            image = T.meta_var(task // row_tasks)
            u = T.meta_var(image // G)
            if go[u] != 0:
                for i in range(T.min(TASK_ROWS, rows - task % row_tasks * TASK_ROWS)):
                    n = T.meta_var(task % row_tasks * TASK_ROWS + i)
                    word[0] = T.int64(0)
                    own[0] = 0
                    for t in range(taps):
                        if inside(n, t):
                            tap = T.meta_var(pixel_lead[u, image % G * (H * W) + iy(n, t) * W + ix(n, t)])
                            word[0] = word[0] + mix(T.cast(tap, "int64") + 1, t)
                            if tap == OWN:
                                own[0] = 1
                    row_words[u, image % G * rows + n] = word[0]
                    lead[u, image % G * rows + n] = T.Select(own[0] != 0, T.int32(OWN), T.int32(NO_PIXEL))
        match(row_words, lead, go, U, G * rows, limit, leaders)
        for task in T.parallel(B * row_tasks):
            image = T.meta_var(task // row_tasks)
            u = T.meta_var(image // G)
            if go[u] != 0:
                for i in range(T.min(TASK_ROWS, rows - task % row_tasks * TASK_ROWS)):
                    n = T.meta_var(task % row_tasks * TASK_ROWS + i)
                    other = T.meta_var(lead[u, image % G * rows + n])
                    if other >= 0:
                        m = T.meta_var(other % rows)
                        for t in range(taps):
                            mine = T.meta_var(
                                T.if_then_else(
                                    inside(n, t),
                                    pixel_lead[u, image % G * (H * W) + iy(n, t) * W + ix(n, t)],
                                    NO_PIXEL,
                                )
                            )
                            theirs = T.meta_var(
                                T.if_then_else(
                                    inside(m, t),
                                    pixel_lead[u, other // rows * (H * W) + iy(m, t) * W + ix(m, t)],
                                    NO_PIXEL,
                                )
                            )
                            if mine != theirs:
                                go[u] = 0

    return inline


def list_rows():
    """Inline ``(lead, reps, stats, go, leaders, U, N)``: the rows to compute, all of them where go[u] = 0."""

    @T.inline
    def inline(lead, reps, stats, go, leaders, U, N):
        for u in T.parallel(U):
            work = T.alloc_buffer((1,), "int32", scope="local")
            work[0] = 0
            for row in range(N):
                if go[u] == 0 or lead[u, row] < 0:
                    lead[u, row] = T.cast(row, "int32")
                if lead[u, row] == T.cast(row, "int32"):
                    reps[u, work[0]] = T.cast(row, "int32")
                    work[0] = work[0] + 1
            stats[u, 0] = T.Select(go[u] != 0, work[0], leaders[u])
            stats[u, 1] = go[u]

    return inline


def one_to_one(geometry: ConvGeometry) -> bool:
    """Whether row n is pixel n and nothing else: a 1x1 window, stride 1, no padding."""
    g = geometry
    return (g.KH, g.KW, *g.strides, *g.padding) == (1, 1, 1, 1, 0, 0, 0, 0)


def _copy_pixels():
    """Inline, as `combine_pixels`, where rows are pixels: their leaders as they are."""

    @T.inline
    def inline(pixel_lead, lead, row_words, go, leaders, U, G, B, limit):
        for u in T.parallel(U):
            if go[u] != 0:
                for n in range(lead.shape[1]):
                    lead[u, n] = pixel_lead[u, n]
                    if pixel_lead[u, n] < 0 or pixel_lead[u, n] == T.cast(n, "int32"):
                        leaders[u] = leaders[u] + 1
                if leaders[u] > limit:
                    go[u] = 0

    return inline


@functools.cache
def combine_rows(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Find the rows of equal content from the leaders of the input's pixels.

    Returns:
        PrimFunc of X float32 [B, H, W, C] (not read: its shape gives B), pixel_lead int32 [U, G * H * W] and its stats
        int32 [U, 2] (as `lead` and `stats` of the layer before), then the outputs lead, reps int32 [U, N] and stats
        int32 [U, 2] as of ``match_rows``. A unit whose input did not reuse does not reuse here either.
    """
    H, W, C, rows = geometry.H, geometry.W, geometry.C, geometry.rows
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters
    combine = _copy_pixels() if one_to_one(geometry) else combine_pixels(geometry, setting)
    listing = list_rows()

    @T.prim_func(private=True)
    def kernel(x: T.handle, pl: T.handle, ps: T.handle, ld: T.handle, rp: T.handle, st: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")  # noqa: F841
        pixel_lead = T.match_buffer(pl, (U, G * T.int64(H * W)), "int32")
        pixel_stats = T.match_buffer(ps, (U, T.int64(2)), "int32")
        lead = T.match_buffer(ld, (U, N), "int32")
        reps = T.match_buffer(rp, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        go = T.alloc_buffer((U,), "int32")
        leaders = T.alloc_buffer((U,), "int32")
        words = T.alloc_buffer((U, N), "int64")
        for u in range(U):
            go[u] = pixel_stats[u, 1]
            leaders[u] = 0
        combine(pixel_lead, lead, words, go, leaders, U, G, B, limit)
        listing(lead, reps, stats, go, leaders, U, N)

    return kernel
