"""Clustering of ``segment`` neuron vectors: hashed, numbered and summed without an im2col matrix.

A segment is L consecutive entries of the im2col row, so it reads L / (KH KW) channels, and each of its entries is one
channel seen through one tap. Those channels are copied into small padded maps, rows behind one another and the
columns of each stride phase together: there the same entry of neighbouring output pixels lies side by side, and 16
output pixels are 16 lanes of one load (``docs/algorithm.md``, clauses 1 to 7). One task does one (unit, segment).
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.key_lanes import KeyLanes, add_chunks
from adr_tvm.schedules.neuron_vectors import LANES
from adr_tvm.schedules.numbering import numbering, table_slots
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat, transpose_tile
from adr_tvm.schedules.vector_key import NO_VECTOR, NON_FINITE
from adr_tvm.settings import ReuseSetting


@dataclass(frozen=True)
class PaddedMaps:
    """Layout of the padded channel maps: [channel, row phase, column phase, rows * pitch].

    Attributes:
        channels: of one segment, at most.
        rows, pitch: of a map of one phase.
    """

    geometry: ConvGeometry
    channels: int
    rows: int
    pitch: int

    @property
    def phase_size(self) -> int:
        """Entries of one phase of one channel."""
        return self.rows * self.pitch

    @property
    def channel_size(self) -> int:
        """Entries of one channel."""
        return self.geometry.strides[0] * self.geometry.strides[1] * self.phase_size

    @property
    def size(self) -> int:
        """Entries of all channels, and a vector that may be read behind them."""
        return self.channels * self.channel_size + TILE

    @property
    def groups(self) -> int:
        """Groups of 16 positions of a map that hold all output pixels."""
        return -(-((self.geometry.OH - 1) * self.pitch + self.geometry.OW) // TILE)

    def place(self, y, x):
        """Where pixel (y, x) of the padded image lies in a channel."""
        SH, SW = self.geometry.strides
        return (y % SH * SW + x % SW) * self.phase_size + y // SH * self.pitch + x // SW

    def offset(self, tap):
        """Where the pixel that a tap of output pixel 0 reads lies in a channel."""
        g = self.geometry
        return self.place(tap // g.KW * g.dilation[0], tap % g.KW * g.dilation[1])


def padded_maps(g: ConvGeometry, L: int) -> PaddedMaps:
    """The layout for segments of L entries."""
    taps, (SH, SW) = g.KH * g.KW, g.strides
    channels = min(g.C, (L - 1 + taps - 1) // taps + 1)
    rows = -(-(g.H + g.padding[0] + g.padding[2]) // SH)
    pitch = -(-(g.W + g.padding[1] + g.padding[3]) // SW)
    return PaddedMaps(g, channels, rows, pitch)


def number_segments(g: ConvGeometry, setting: ReuseSetting):
    """Inline ``(X, planes, thresholds, ids, centroids, counts, U, G, cap)``: all of ``cluster`` but the gains."""
    L, S, H = g.vector_length(setting), g.segments(setting), setting.H
    Lp, K, taps, rows = -(-L // LANES) * LANES, g.K, g.KH * g.KW, g.rows
    PT, PL = g.padding[:2]
    maps = padded_maps(g, L)
    pitch, OH, OW, C = maps.pitch, g.OH, g.OW, g.C
    padded, whole = any(g.padding), K % L == 0

    @T.inline
    def copy_channels(X, image, first, channels):
        for c in T.unroll(maps.channels):
            if first + c < C:
                for y in range(g.H):
                    for x in range(g.W):
                        channels[c * maps.channel_size + maps.place(y + PT, x + PL)] = X[image, y, x, first + c]

    @T.inline
    def mark_inside(inside):
        for i in range(maps.channel_size + TILE):
            inside[i] = 0
        for y in range(g.H):
            for x in range(g.W):
                inside[maps.place(y + PT, x + PL)] = -1

    def keys_of(channels, inside, offsets, spots, position, s, length, planes, thresholds, vectors, seen):
        """Keys of 16 output pixels; their vectors go to ``vectors`` [16, Lp]."""
        found = KeyLanes(planes, thresholds, s, H)

        def present(l, value, otherwise):
            return value if whole else T.Select(splat(l < length), value, splat(otherwise))

        def add_chunk(c, count):
            rows, any_seen = [splat(T.float32(0))] * TILE, seen[lanes()]
            for j in range(count):
                l = c * TILE + j
                rows[j] = T.bind(present(l, channels[lanes(offsets[l] + position)], T.float32(0)))
                found.add(rows[j], l)
                if padded:
                    any_seen = T.bind(any_seen | present(l, inside[lanes(spots[l] + position)], T.int32(0)))
            T.buffer_store(seen, any_seen, [lanes()])
            for q, row in enumerate(transpose_tile(rows)):
                T.buffer_store(vectors, row, [q, lanes(c * TILE)])

        T.buffer_store(seen, splat(T.int32(0 if padded else -1)), [lanes()])
        add_chunks(found, L, add_chunk)
        keys = found.keys()
        return T.Select(seen[lanes()] == splat(T.int32(0)), splat(T.int32(NO_VECTOR)), keys) if padded else keys

    def chunks_of(vectors, q):
        return [T.bind(vectors[q, lanes(c * TILE)]) for c in range(Lp // TILE)]

    @T.inline
    def inline(X, planes, thresholds, ids, centroids, counts, U, G, cap):
        for task in T.parallel(U * S):
            u = T.meta_var(task // S)
            s = T.meta_var(task % S)
            slots_size = T.meta_var(table_slots(setting, G * rows))
            steps = T.meta_var(numbering(setting, L, Lp, slots_size))
            channels = T.alloc_buffer((maps.size,), "float32")
            inside = T.alloc_buffer((maps.channel_size + TILE if padded else 1,), "int32")
            slots = T.alloc_buffer((slots_size,), "int32")
            known = T.alloc_buffer((cap,), "int64")
            sums = T.alloc_buffer((cap, Lp), "float32")
            bases = T.alloc_buffer((cap, Lp), "float32")
            sizes = T.alloc_buffer((cap,), "int32")
            offsets = T.alloc_buffer((Lp,), "int32", scope="local")
            spots = T.alloc_buffer((Lp,), "int32", scope="local")
            vectors = T.alloc_buffer((TILE, Lp), "float32", scope="local")
            keys = T.alloc_buffer((TILE,), "int32", scope="local")
            seen = T.alloc_buffer((TILE,), "int32", scope="local")
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            n = T.alloc_buffer((2,), "int32", scope="local")
            id = T.alloc_buffer((1,), "int32", scope="local")
            length = T.meta_var(T.min(L, K - s * L) if K % L > 0 else L)
            first = T.meta_var(s * L // taps)
            steps.begin(slots, n)
            for i in range(maps.size):
                channels[i] = T.float32(0)
            if padded:
                mark_inside(inside)
            for l in range(Lp):
                spots[l] = T.cast(maps.offset((s * L + l) % taps), "int32")
                offsets[l] = T.cast(((s * L + l) // taps - first) * maps.channel_size, "int32") + spots[l]
            for g_ in range(G):
                copy_channels(X, u + g_, first, channels)
                for group in range(maps.groups):
                    keys[lanes()] = keys_of(
                        channels, inside, offsets, spots, group * TILE, s, length, planes, thresholds, vectors, seen
                    )
                    for q in range(TILE):
                        oy = T.meta_var((group * TILE + q) // pitch)
                        ox = T.meta_var((group * TILE + q) % pitch)
                        if T.And(oy < OH, ox < OW):
                            id[0] = keys[q]
                            if keys[q] >= 0:
                                steps.place(
                                    chunks_of(vectors, q),
                                    v,
                                    T.cast(keys[q], "int64"),
                                    slots,
                                    known,
                                    sums,
                                    bases,
                                    sizes,
                                    n,
                                    id,
                                )
                            elif keys[q] == NON_FINITE:
                                n[1] = n[1] + 1
                            ids[u, s, g_ * rows + oy * OW + ox] = id[0]
            steps.finish(centroids, u, s, sums, bases, sizes, n)
            counts[u, s, 0] = n[0]
            counts[u, s, 1] = n[1]

    return inline
