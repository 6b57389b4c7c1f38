"""Clustering of ``segment`` neuron vectors: hashed, numbered and summed without an im2col matrix.

All channels become padded maps first, in which the same entry of neighbouring output pixels lies side by side: 32
output pixels are hashed at once, a lane each, and the planes' entries are loaded once for all of them
(``docs/algorithm.md``, clauses 1 to 7). Their vectors are then read from the maps one by one, as few loads of a row of
taps, and join their clusters. One task does one (unit, segment), a few output rows at a time.
"""

from __future__ import annotations

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.channel_maps import ChannelMaps, fill_maps
from adr_tvm.schedules.neuron_vectors import LANES
from adr_tvm.schedules.numbering import SPREAD, numbering, table_slots
from adr_tvm.schedules.output_groups import OutputGroups
from adr_tvm.schedules.pair_keys import MAGNITUDE, pair_keys
from adr_tvm.schedules.segment_entries import SegmentEntries, may_lie_in_padding, period
from adr_tvm.schedules.transpose_tile import TILE, lanes, splat
from adr_tvm.schedules.vector_key import INFINITY_BITS, NO_VECTOR, NON_FINITE
from adr_tvm.settings import ReuseSetting


def number_segments(g: ConvGeometry, setting: ReuseSetting, keyed: bool):
    """Inline ``(X, planes, thresholds, ids, centroids, counts, found, B, U, G, cap)``: all but the gains.

    ``keyed``: found int32 [U, S, cap] takes the keys of the clusters.
    """
    L, S, H = g.vector_length(setting), g.segments(setting), setting.H
    Lp, K, taps, rows, OW = -(-L // LANES) * LANES, g.K, g.KH * g.KW, g.rows, g.OW
    layout = ChannelMaps(g, together=setting.scope == "batch")
    groups, entries, fill = OutputGroups.of(layout), SegmentEntries(layout, L), fill_maps(layout)
    padding = may_lie_in_padding(g, L)
    block, blocks, find_entries = groups.block, groups.blocks, entries.find()
    row_step = groups.pixel(block, 0)
    patterns = min(S, period(g, L)) + 1 if padding else 1  # of which taps a segment reads; the last is that of the last

    def pattern(s):
        return T.Select(s == S - 1, T.int64(patterns - 1), T.cast(s % (patterns - 1), "int64"))

    def bits(entry):
        return T.reinterpret("int32x16", entry) & splat(T.int32(MAGNITUDE))

    def pair_places(origin, pair, count):
        firsts = (pair * 2, T.min(pair * 2 + 1, count - 1))
        return [T.bind(origin + T.cast(groups.position(group), "int64")) for group in firsts]

    def hash_pair(maps, keys, odd, offsets, origin, pair, count, s, length, planes, thresholds):
        """Keys of two groups; ``odd`` collects what no finite vector gives."""
        places = pair_places(origin, pair, count)

        def load(l):
            return [groups.load(maps, place + offsets[s, l]) for place in places]

        found, magnitude = pair_keys(planes, thresholds, s, H, length, load)
        for i, values in enumerate(found):
            T.buffer_store(keys, values, [lanes((pair * 2 + i) * TILE)])
        T.buffer_store(odd, T.max(odd[lanes()], magnitude), [lanes()])

    def mark(keys, odd, group, value):
        T.buffer_store(keys, T.Select(odd, splat(T.int32(value)), keys[lanes(group * TILE)]), [lanes(group * TILE)])

    @T.inline
    def mark_non_finite(maps, keys, odd, offsets, origin, count, s, length):
        """Whether a vector holds NaN or Inf; that a product does not tell, which may overflow."""
        for group in range(count):
            odd[lanes()] = splat(T.int32(0))
            place = T.meta_var(origin + T.cast(groups.position(group), "int64"))
            for l in range(length):
                odd[lanes()] = T.max(odd[lanes()], bits(groups.load(maps, place + offsets[s, l])))
            mark(keys, odd[lanes()] >= splat(T.int32(INFINITY_BITS)), group, NON_FINITE)

    @T.inline
    def mark_padding(keys, seen, count, s, b):
        for group in range(count):
            mark(keys, seen[pattern(s), b, lanes(group * TILE)] == splat(T.int32(0)), group, NO_VECTOR)

    @T.inline
    def find_padding(maps, seen, B):
        """seen int32 [patterns, blocks, keys]: 0 for a vector that reads no pixel of the image."""
        for task in T.parallel(patterns):
            s = T.meta_var(T.Select(task == patterns - 1, S - 1, task))
            for b in range(blocks):
                for group in range(groups.count(T.min(block, g.OH - b * block))):
                    origin = T.meta_var(layout.padding_start(B) + T.cast(b * row_step, "int64"))
                    place = T.meta_var(origin + T.cast(groups.position(group), "int64"))
                    seen[task, b, lanes(group * TILE)] = splat(T.int32(0))
                    for l in range(T.min(L, K - s * L)):
                        tap = T.meta_var(T.cast(layout.tap((s * L + l) % taps), "int64"))
                        seen[task, b, lanes(group * TILE)] = seen[task, b, lanes(group * TILE)] | T.reinterpret(
                            "int32x16", groups.load(maps, place + tap)
                        )

    @T.inline
    def place_all(maps, keys, ids, loads, origin, u, s, first, count, steps, v, state, n, id):
        """The vectors of ``count`` output rows join their clusters."""
        for y in range(count):
            for x in range(OW):
                key = T.meta_var(keys[y * groups.pitch + x])
                place = T.meta_var(origin + T.cast(groups.pixel(y, x), "int64"))
                id[0] = key
                if key >= 0:
                    steps.place(entries.load(maps, place, loads), v, T.cast(key, "int64"), x, *state, n, id)
                elif key == NON_FINITE:
                    n[1] = n[1] + 1
                ids[u, s, first + (y * OW + x)] = id[0]

    @T.inline
    def inline(X, planes, thresholds, ids, centroids, counts, found, B, U, G, cap):
        maps = T.alloc_buffer((layout.size(B),), "float32")
        offsets = T.alloc_buffer((S, Lp), "int64")
        shifts = T.alloc_buffer((S, entries.loads), "int64")
        masks = T.alloc_buffer((S, entries.loads, TILE), "int32")
        seen = T.alloc_buffer((patterns, blocks, groups.keys) if padding else (1, 1, 1), "int32")
        fill(X, maps, B)
        find_entries(offsets, shifts, masks, B)
        if padding:
            find_padding(maps, seen, B)
        for task in T.parallel(U * S):
            u = T.meta_var(task // S)
            s = T.meta_var(task % S)
            slots_size = T.meta_var(table_slots(setting, G * rows))
            steps = T.meta_var(numbering(setting, L, Lp, slots_size))
            slots = T.alloc_buffer((slots_size,), "int32")
            known = T.alloc_buffer((cap,), "int64")
            sums = T.alloc_buffer((cap + SPREAD, Lp), "float32")
            bases = T.alloc_buffer((cap + SPREAD, Lp), "float32")
            sizes = T.alloc_buffer((cap + SPREAD,), "int32")
            keys = T.alloc_buffer((groups.keys,), "int32")
            odd = T.alloc_buffer((TILE,), "int32", scope="local")
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            n = T.alloc_buffer((2,), "int32", scope="local")
            id = T.alloc_buffer((1,), "int32", scope="local")
            largest = T.alloc_buffer((1,), "int32", scope="local")
            length = T.meta_var(T.min(L, K - s * L))
            state = T.meta_var((slots, known, sums, bases, sizes))
            loads = T.meta_var(entries.bind(shifts, masks, s))
            steps.begin(slots, sums, bases, sizes, n)
            for image in range(G):
                for b in range(blocks):
                    count = T.meta_var(T.min(block, g.OH - b * block))
                    group_count = T.meta_var(groups.count(count))
                    origin = T.meta_var(layout.start(u + image, s * L // taps, B) + T.cast(b * row_step, "int64"))
                    odd[lanes()] = splat(T.int32(0))
                    for pair in range((group_count + 1) // 2):
                        hash_pair(maps, keys, odd, offsets, origin, pair, group_count, s, length, planes, thresholds)
                    largest[0] = odd[0]
                    for j in T.unroll(1, TILE):
                        largest[0] = T.max(largest[0], odd[j])
                    if largest[0] >= INFINITY_BITS:
                        mark_non_finite(maps, keys, odd, offsets, origin, group_count, s, length)
                    if padding:
                        mark_padding(keys, seen, group_count, s, b)
                    first = T.meta_var(image * rows + b * (block * OW))
                    place_all(maps, keys, ids, loads, origin, u, s, first, count, steps, v, state, n, id)
            steps.finish(centroids, u, s, sums, bases, sizes, n)
            if keyed:
                steps.write_keys(found, u, s, slots, known, n)
            counts[u, s, 0] = n[0]
            counts[u, s, 1] = n[1]

    return inline
