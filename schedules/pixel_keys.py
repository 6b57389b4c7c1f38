"""Sign-hash keys of ``pixel`` neuron vectors: 16 pixels at a time, all segments of a pixel in one go.

The rows of 16 pixels are transposed in registers, after which a lane is a pixel and every bit costs L vector FMAs for
all 16 (``docs/algorithm.md``, clauses 1 to 5). The zero vector gets the key 2^H, which no hash gives.
"""

from __future__ import annotations

from tvm.script import tirx as T

from adr_tvm.schedules.key_lanes import KeyLanes, add_chunks
from adr_tvm.schedules.neuron_vectors import VectorSource, pixel_entries
from adr_tvm.schedules.transpose_tile import TILE, lanes, transpose_tile
from adr_tvm.schedules.vector_key import NO_VECTOR
from adr_tvm.settings import ReuseSetting


def group_count(vectors: int) -> int:
    """Groups of 16 that hold a number of vectors; the last may be part empty."""
    return -(-vectors // TILE)


def pixel_keys(source: VectorSource, setting: ReuseSetting):
    """Inline ``(X, planes, thresholds, codes, B)``: the keys of all vectors of B images, in parallel.

    codes int32 [U, S, G * 16 * groups]: key, 2^H, NO_VECTOR or NON_FINITE; what lies behind the last pixel of an
    image is not read.
    """
    g, L, P, H = source.geometry, source.L, source.per_image, setting.H
    groups, whole, short = group_count(P), g.C // L, g.C % L
    by_image = setting.scope == "image"
    everywhere = len(g.read_rows) == g.H and len(g.read_cols) == g.W

    def keys_of(X, planes, thresholds, image, group, s, length):
        """Keys of 16 pixels."""
        found = KeyLanes(planes, thresholds, s, H)
        pixels = [group * TILE + q for q in range(TILE)]
        if P % TILE:
            pixels = [T.min(pixel, P - 1) for pixel in pixels]

        def add_chunk(c, count):
            rows = [T.bind(pixel_entries(X, image, pixel, g, s * L + c * TILE, count)) for pixel in pixels]
            for l, entry in enumerate(transpose_tile(rows)[:count]):
                found.add(entry, c * TILE + l)

        add_chunks(found, length, add_chunk)
        return found.keys()

    @T.inline
    def key_segment(X, planes, thresholds, codes, image, group, s, length):
        u = T.meta_var(image if by_image else 0)
        first = T.meta_var((0 if by_image else image * groups * TILE) + group * TILE)
        codes[u, s, lanes(first)] = keys_of(X, planes, thresholds, image, group, s, length)
        if not everywhere:
            for q in T.unroll(TILE):
                if not source.is_read(group * TILE + q):
                    codes[u, s, first + q] = NO_VECTOR

    @T.inline
    def inline(X, planes, thresholds, codes, B):
        for task in T.parallel(B * groups):
            for s in range(whole):
                key_segment(X, planes, thresholds, codes, task // groups, task % groups, s, L)
            if short > 0:
                key_segment(X, planes, thresholds, codes, task // groups, task % groups, whole, short)

    return inline
