"""Numbering the windows of a convolution or pooling by their content (``docs/algorithm.md``, clauses 5, 6 and 8).

Windows with equal entries get one number, counted from 0 in the order of their first members. Bands of output rows are
numbered on their own, in parallel, and then merged in order, so the numbers do not depend on the threads. Where data
repeat they mostly do so next to each other: an output row under an equal one takes its numbers, a window beside an
equal one its number, and only the others are hashed and looked up. Equality is always told from the entries
themselves; windows that share nothing but the hash get numbers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry

MOST_BANDS = 16
LEAST_WINDOWS = 512  # of a band: fewer do not pay for a task
WORDS = 8  # 64-bit words of a vector register
LANES = 16
INFINITY_BITS = 0x7F800000


@dataclass(frozen=True)
class WindowSource:
    """What windows are compared by.

    Attributes:
        channels: int32 entries of an input pixel.
        entry: ``(S, image, iy, ix, c)`` to the entry of buffer S, 0 for what equals padding.
        floats: entries are the bits of floats, and a window that holds NaN or Inf equals no other.
    """

    channels: int
    entry: Callable[[Any, Any, Any, Any, Any], tirx.PrimExpr]
    floats: bool


def absorb(hashed, word):
    """The hash of a sequence of 64-bit words that goes on with one more; the hash of zeros is 0."""
    return (hashed ^ T.shift_right(hashed, T.int64(31))) * T.int64(0x7FB5D329728EA185) + word


def _power_of_two(least: int) -> int:
    return 1 << max(4, (least - 1).bit_length())


@dataclass(frozen=True)
class _Shape:
    """Sizes that the phases share.

    Attributes:
        band: output rows of a band.
        bands: of an image.
        ring: input rows a window reaches over; that many are kept hashed.
        width: columns of a hashed input row: the padding, and what a vector reads beyond it, included.
    """

    band: int
    bands: int
    ring: int
    width: int

    @staticmethod
    def of(g: ConvGeometry) -> _Shape:
        band = min(g.OH, max(-(-g.OH // MOST_BANDS), -(-LEAST_WINDOWS // g.OW)))
        last = -(-g.OW // WORDS) * WORDS - 1
        width = max(g.W + g.padding[1] + g.padding[3], last * g.strides[1] + g.dilation[1] * (g.KW - 1) + 1)
        return _Shape(band, -(-g.OH // band), g.dilation[0] * (g.KH - 1) + 1, width)


def _hash_row(g: ConvGeometry, source: WindowSource):
    """Inline ``(S, image, iy, words, runs, slot, diff, lanes, largest, finite)``: hash the pixels of one input row.

    words[slot, PL + x] is the hash of pixel x, runs[slot, PL + x] how many pixels left of it are equal to it without a
    gap; finite[slot] tells whether no entry is NaN or Inf.
    """
    W, PL, C, entry = g.W, g.padding[1], source.channels, source.entry
    body = W // WORDS * WORDS

    def bits(S, image, iy, ix, c):
        return T.cast(entry(S, image, iy, ix, c), "int64")

    def word(S, image, iy, ix):
        hashed = bits(S, image, iy, ix, 0)
        for c in range(1, C):
            hashed = absorb(hashed, bits(S, image, iy, ix, c))
        return hashed

    def difference(S, image, iy, ix):
        total = entry(S, image, iy, ix, 0) ^ entry(S, image, iy, ix - 1, 0)
        for c in range(1, C):
            total = total | (entry(S, image, iy, ix, c) ^ entry(S, image, iy, ix - 1, c))
        return total

    @T.inline
    def few_channels(S, image, iy, words, slot, diff, lanes):
        for o in range(body // WORDS):
            for j in T.vectorized(WORDS):
                words[slot, PL + o * WORDS + j] = word(S, image, iy, o * WORDS + j)
        for x in range(body, W):
            words[slot, PL + x] = word(S, image, iy, x)
        diff[0] = 1
        for x in range(1, W):
            diff[x] = difference(S, image, iy, x)

    @T.inline
    def many_channels(S, image, iy, words, slot, diff, lanes):
        for x in range(W):
            for j in T.vectorized(WORDS):
                lanes[j] = T.int64(0)
            for o in range(C // WORDS):
                for j in T.vectorized(WORDS):
                    lanes[j] = absorb(lanes[j], bits(S, image, iy, x, o * WORDS + j))
            for c in range(C // WORDS * WORDS, C):
                lanes[0] = absorb(lanes[0], bits(S, image, iy, x, c))
            for j in T.unroll(1, WORDS):
                lanes[0] = absorb(lanes[0], lanes[j])
            words[slot, PL + x] = lanes[0]
            diff[x] = 1
            if x > 0:
                diff[x] = 0
                if words[slot, PL + x] == words[slot, PL + x - 1]:
                    for c in range(C):
                        diff[x] = diff[x] | (entry(S, image, iy, x, c) ^ entry(S, image, iy, x - 1, c))
                else:
                    diff[x] = 1

    pixels = few_channels if C < WORDS else many_channels

    flat = W * C
    wide = flat // LANES * LANES

    @T.inline
    def inline(S, image, iy, words, runs, slot, diff, lanes, largest, finite):
        pixels(S, image, iy, words, slot, diff, lanes)
        runs[slot, PL] = 0
        for x in range(1, W):
            runs[slot, PL + x] = T.Select(diff[x] == 0, runs[slot, PL + x - 1] + 1, 0)
        finite[slot] = 1
        if source.floats:
            for j in T.vectorized(LANES):
                largest[j] = 0
            for o in range(wide // LANES):
                for j in T.vectorized(LANES):
                    largest[j] = T.max(
                        largest[j], entry(S, image, iy, (o * LANES + j) // C, (o * LANES + j) % C) & T.int32(0x7FFFFFFF)
                    )
            for i in range(wide, flat):
                largest[0] = T.max(largest[0], entry(S, image, iy, i // C, i % C) & T.int32(0x7FFFFFFF))
            for j in T.unroll(LANES):
                if largest[j] >= INFINITY_BITS:
                    finite[slot] = 0

    return inline


def _same_row(g: ConvGeometry, source: WindowSource):
    """Inline ``(S, image, iy, same, lanes)``: same[0] = whether input row iy equals the one above it.

    It stops at the first vectors that differ; same int32 [2], lanes int32 [16].
    """
    C, entry = source.channels, source.entry
    flat = g.W * C
    wide = flat // LANES

    def difference(S, image, iy, i):
        return entry(S, image, iy, i // C, i % C) ^ entry(S, image, iy - 1, i // C, i % C)

    @T.inline
    def inline(S, image, iy, same, lanes):
        same[0] = 1
        same[1] = 0
        while T.And(same[0] != 0, same[1] < wide):
            for j in T.vectorized(LANES):
                lanes[j] = difference(S, image, iy, same[1] * LANES + j)
            for j in T.unroll(1, LANES):
                lanes[0] = lanes[0] | lanes[j]
            same[0] = T.Select(lanes[0] == 0, 1, 0)
            same[1] = same[1] + 1
        if same[0] != 0:
            for i in range(wide * LANES, flat):
                if difference(S, image, iy, i) != 0:
                    same[0] = 0

    return inline


def _same_window(g: ConvGeometry, source: WindowSource):
    """Inline ``(S, image, n, other, m, differs)``: differs[0] = 0 if window n and window m of two images are equal."""
    H, W, C, KH, KW, OW, entry = g.H, g.W, source.channels, g.KH, g.KW, g.OW, source.entry
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    first, last = -(-PL // SW), (W - 1 - DW * (KW - 1) + PL) // SW  # output columns whose windows reach no side padding

    def value(S, image, n, ky, kx, c):
        iy, ix = n // OW * SH - PT + ky * DH, n % OW * SW - PL + kx * DW
        inside = T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W))
        return T.if_then_else(inside, entry(S, image, iy, ix, c), 0)

    loop = T.unroll if KW * C <= 32 else T.serial

    @T.inline
    def inline(S, image, n, other, m, differs):
        differs[0] = 0
        for ky in range(KH):
            iy = T.meta_var(n // OW * SH - PT + ky * DH)
            jy = T.meta_var(m // OW * SH - PT + ky * DH)
            if (
                iy >= 0
                and iy < H
                and jy >= 0
                and jy < H
                and (n % OW >= first and n % OW <= last and m % OW >= first and m % OW <= last)
            ):
                for i in loop(KW * C):
                    differs[0] = differs[0] | (
                        entry(S, image, iy, n % OW * SW - PL + i // C * DW, i % C)
                        ^ entry(S, other, jy, m % OW * SW - PL + i // C * DW, i % C)
                    )
            else:
                for kx in range(KW):
                    for c in range(C):
                        differs[0] = differs[0] | (value(S, image, n, ky, kx, c) ^ value(S, other, m, ky, kx, c))

    return inline


def number_windows(geometry: ConvGeometry, source: WindowSource):
    """Inline ``(S, ids, reps, go, count, U, G, B, limit)``: number the windows of every unit.

    Args:
        geometry: of the windows; its C is not looked at.
        source: what they are compared by.

    Returns:
        The inline: ids int32 [U, N] (number of a window), reps int32 [U, N] (first member of each number), go int32 [U]
        (units with 0 are left alone; cleared above ``limit`` numbers), count int32 [U] (numbers given).
    """
    g, shape = geometry, _Shape.of(geometry)
    H, KH, KW, OH, OW, rows = g.H, g.KH, g.KW, g.OH, g.OW, g.rows
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    band, bands, ring, width = shape.band, shape.bands, shape.ring, shape.width
    slots_size = _power_of_two(2 * band * OW)
    hash_row, same_row, same_window = _hash_row(g, source), _same_row(g, source), _same_window(g, source)
    right, span = DW * (KW - 1), DW * (KW - 1) + SW
    W, ahead = g.W, max(ring - SH, 0)  # rows read before the first step of a band

    mixed = next(m for m in range(int(0.38 * bands) + 1, bands + 2) if math.gcd(m, bands) == 1)

    def band_of(task):
        """Neighbouring tasks, which a thread takes, get bands from all over the image: repetition is not even."""
        return task % bands * mixed % bands

    def slot(iy):
        return (iy + PT) % ring

    @T.inline
    def advance(S, image, iy, start, words, runs, rise, finite, diff, lanes, largest, flags):
        """Hash input row iy; rise counts the equal rows above it."""
        if iy >= 0 and iy < H:
            flags[0] = 0
            if iy > 0 and iy > T.cast(start, "int32"):
                same_row(S, image, iy, flags, largest)
            if flags[0] != 0:
                rise[slot(iy)] = rise[slot(iy - 1)] + 1
                finite[slot(iy)] = finite[slot(iy - 1)]
                if ring > 1:
                    for x in range(W):
                        words[slot(iy), PL + x] = words[slot(iy - 1), PL + x]
                    for x in range(W):
                        runs[slot(iy), PL + x] = runs[slot(iy - 1), PL + x]
            else:
                hash_row(S, image, iy, words, runs, slot(iy), diff, lanes, largest, finite)
                rise[slot(iy)] = 0
        else:
            for x in range(W):
                words[slot(iy), PL + x] = T.int64(0)
                runs[slot(iy), PL + x] = width
            finite[slot(iy)] = 1
            rise[slot(iy)] = 0

    @T.inline
    def bands_apart(S, ids, firsts, words_of, counts, go, U, G, B):
        """Number the windows of each band; the first members (own ones as -1 - n) and words go to the workspace."""
        for task in T.parallel(B * bands):
            image = T.meta_var(task // bands)
            u = T.meta_var(image // G)
            oy0 = T.meta_var(band_of(task) * band)
            base = T.meta_var(band_of(task) * (band * OW))  # first window of the band, and its place in the workspace
            slots = T.alloc_buffer((slots_size,), "int32")
            words = T.alloc_buffer((ring, width), "int64")
            runs = T.alloc_buffer((ring, width), "int32")
            hashes = T.alloc_buffer((-(-OW // WORDS) * WORDS,), "int64")
            diff = T.alloc_buffer((W,), "int32")
            lanes = T.alloc_buffer((WORDS,), "int64", scope="local")
            rise = T.alloc_buffer((ring,), "int32", scope="local")
            finite = T.alloc_buffer((ring,), "int32", scope="local")
            flags = T.alloc_buffer((2,), "int32", scope="local")
            largest = T.alloc_buffer((LANES,), "int32", scope="local")
            n = T.alloc_buffer((1,), "int32", scope="local")
            found = T.alloc_buffer((1,), "int32", scope="local")
            hit = T.alloc_buffer((1,), "int32", scope="local")
            easy = T.alloc_buffer((1,), "int32", scope="local")
            probe = T.alloc_buffer((1,), "int64", scope="local")
            local = T.meta_var(image % G * rows)  # of the image in its unit
            n[0] = 0
            hit[0] = 0
            found[0] = 0
            flags[0] = 0
            flags[1] = 0
            if go[u] != 0:
                for i in range(slots_size):
                    slots[i] = -1
                for r in range(ring):
                    for x in range(width):
                        words[r, x] = T.int64(0)
                        runs[r, x] = 0
                for r in range(ahead):
                    iy = T.meta_var(T.cast(oy0 * SH - PT + r, "int32"))
                    advance(S, image, iy, oy0 * SH - PT, words, runs, rise, finite, diff, lanes, largest, flags)
                for oy in range(T.min(band, OH - oy0)):
                    top = T.meta_var((oy0 + oy) * SH - PT)
                    for r in range(ring - ahead):
                        iy = T.meta_var(T.cast(top + ahead + r, "int32"))
                        start = T.meta_var(oy0 * SH - PT if ring >= SH else top)
                        advance(S, image, iy, start, words, runs, rise, finite, diff, lanes, largest, flags)
                    easy[0] = 1
                    for r in range(ring):
                        if finite[r] == 0:
                            easy[0] = 0
                    if easy[0] != 0 and oy > 0 and rise[slot(top + ring - 1)] >= ring - 1 + SH:
                        for x in range(OW):
                            ids[u, local + base + oy * OW + x] = ids[u, local + base + (oy - 1) * OW + x]
                    else:
                        for o in range(-(-OW // WORDS)):
                            for j in T.vectorized(WORDS):
                                hashes[o * WORDS + j] = T.int64(0)
                            for ky in range(KH):
                                for kx in range(KW):
                                    for j in T.vectorized(WORDS):
                                        hashes[o * WORDS + j] = absorb(
                                            hashes[o * WORDS + j],
                                            words[slot(top + ky * DH), (o * WORDS + j) * SW + kx * DW],
                                        )
                            for j in T.vectorized(WORDS):
                                hashes[o * WORDS + j] = absorb(hashes[o * WORDS + j], T.int64(0))
                        for x in range(OW):
                            row = T.meta_var(base + oy * OW + x)
                            hit[0] = easy[0]
                            for ky in T.unroll(KH):
                                if runs[slot(top + ky * DH), x * SW + right] < span:
                                    hit[0] = 0
                            if hit[0] == 0 or x == 0:
                                found[0] = -1
                                hit[0] = 1
                                if easy[0] == 0:
                                    for ky in range(KH):
                                        for kx in range(KW):
                                            iy = T.meta_var(top + ky * DH)
                                            ix = T.meta_var(x * SW - PL + kx * DW)
                                            if iy >= 0 and iy < H and ix >= 0 and ix < W:
                                                for c in range(source.channels):
                                                    if (
                                                        source.entry(S, image, iy, ix, c) & T.int32(0x7FFFFFFF)
                                                    ) >= T.int32(INFINITY_BITS):
                                                        hit[0] = 0
                                if hit[0] == 0:
                                    firsts[image, base + n[0]] = -1 - T.cast(row, "int32")
                                else:
                                    probe[0] = T.shift_right(hashes[x], T.int64(20)) & T.int64(slots_size - 1)
                                    found[0] = slots[probe[0]]
                                    hit[0] = 0
                                    while T.And(found[0] >= 0, hit[0] == 0):
                                        if words_of[image, base + found[0]] == hashes[x]:
                                            same_window(S, image, row, image, firsts[image, base + found[0]], flags)
                                            hit[0] = T.Select(flags[0] == 0, 1, 0)
                                        if hit[0] == 0:
                                            probe[0] = (probe[0] + 1) & T.int64(slots_size - 1)
                                            found[0] = slots[probe[0]]
                                    if found[0] < 0:
                                        slots[probe[0]] = n[0]
                                        firsts[image, base + n[0]] = T.cast(row, "int32")
                                        words_of[image, base + n[0]] = hashes[x]
                                if found[0] < 0:
                                    found[0] = n[0]
                                    n[0] = n[0] + 1
                            ids[u, local + row] = found[0]
                counts[image, band_of(task)] = n[0]

    @T.inline
    def merge(S, reps, numbers, firsts, words_of, counts, go, count, U, G, limit):
        """Give the numbers of the unit to those of its bands, in order."""
        for u in T.parallel(U):
            slots = T.alloc_buffer((4 * G * rows + 16,), "int32")
            seen = T.alloc_buffer((G * rows,), "int64")
            size = T.alloc_buffer((1,), "int64", scope="local")
            total = T.alloc_buffer((1,), "int64", scope="local")
            n = T.alloc_buffer((1,), "int32", scope="local")
            found = T.alloc_buffer((1,), "int32", scope="local")
            hit = T.alloc_buffer((1,), "int32", scope="local")
            differs = T.alloc_buffer((1,), "int32", scope="local")
            probe = T.alloc_buffer((1,), "int64", scope="local")
            n[0] = 0
            hit[0] = 0
            found[0] = 0
            differs[0] = 0
            total[0] = T.int64(0)
            size[0] = T.int64(16)
            if go[u] != 0:
                for t in range(G * bands):
                    total[0] = total[0] + T.cast(counts[u * G + t // bands, t % bands], "int64")
                while size[0] < 2 * total[0]:
                    size[0] = size[0] * 2
                for i in range(size[0]):
                    slots[i] = -1
                for t in range(G * bands):
                    image = T.meta_var(u * G + t // bands)
                    base = T.meta_var(t % bands * (band * OW))
                    for d in range(counts[image, t % bands]):
                        first = T.meta_var(firsts[image, base + d])
                        if n[0] <= limit:
                            found[0] = -1
                            if first >= 0:
                                probe[0] = T.shift_right(words_of[image, base + d], T.int64(20)) & (size[0] - 1)
                                found[0] = slots[probe[0]]
                                hit[0] = 0
                                while T.And(found[0] >= 0, hit[0] == 0):
                                    if seen[found[0]] == words_of[image, base + d]:
                                        other = T.meta_var(reps[u, found[0]])
                                        same_window(S, image, first, u * G + other // rows, other % rows, differs)
                                        hit[0] = T.Select(differs[0] == 0, 1, 0)
                                    if hit[0] == 0:
                                        probe[0] = (probe[0] + 1) & (size[0] - 1)
                                        found[0] = slots[probe[0]]
                                if found[0] < 0:
                                    slots[probe[0]] = n[0]
                                    seen[n[0]] = words_of[image, base + d]
                            if found[0] < 0:
                                found[0] = n[0]
                                reps[u, n[0]] = T.cast(t // bands * rows, "int32") + T.max(first, -1 - first)
                                n[0] = n[0] + 1
                            numbers[image, base + d] = found[0]
                if n[0] > limit:
                    go[u] = 0
            count[u] = n[0]

    @T.inline
    def inline(S, ids, reps, go, count, U, G, B, limit):
        firsts = T.alloc_buffer((B, rows), "int32")
        numbers = T.alloc_buffer((B, rows), "int32")
        words_of = T.alloc_buffer((B, rows), "int64")
        counts = T.alloc_buffer((B, bands), "int32")
        bands_apart(S, ids, firsts, words_of, counts, go, U, G, B)
        merge(S, reps, numbers, firsts, words_of, counts, go, count, U, G, limit)
        for task in T.parallel(B * bands):
            image = T.meta_var(task // bands)
            u = T.meta_var(image // G)
            base = T.meta_var(task % bands * (band * OW))
            if go[u] != 0:
                for i in range(T.min(band * OW, rows - base)):
                    at = T.meta_var(image % G * rows + base + i)
                    ids[u, at] = numbers[image, base + ids[u, at]]

    return inline
