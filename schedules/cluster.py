"""Clustering of ``pixel`` and ``segment`` neuron vectors (``docs/algorithm.md``, clauses 1 to 9, 12, 13).

``pixel`` and ``exact`` take two phases: all keys are computed in parallel over the pixels, then each (unit, segment)
is numbered by one task, so that the bytes never depend on the threads. ``segment`` does both in one task for each
(unit, segment), see ``segment_cluster``.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.neuron_vectors import LANES, VectorSource, pixel_entries, vector_source
from adr_tvm.schedules.numbering import SPREAD, numbering, table_slots
from adr_tvm.schedules.pixel_keys import group_count, pixel_keys
from adr_tvm.schedules.segment_cluster import number_segments
from adr_tvm.schedules.transpose_tile import TILE, lanes
from adr_tvm.schedules.vector_key import NO_VECTOR, NON_FINITE, exact_key, padded_bits
from adr_tvm.settings import ReuseSetting

KEY_CHUNK = 512  # vectors whose bit patterns one task hashes
SPARE_CENTROIDS = 16  # rows behind the last centroid, so that a register tile may read past it
UNLIMITED = 2**31 - 1


def capacity(setting: ReuseSetting, vectors):
    """Clusters a (unit, segment) can have, non-finite vectors apart: min(2^H, vectors) + 1."""
    if setting.hash == "exact":
        return vectors + 1
    if isinstance(vectors, int):
        return min(2**setting.H, vectors) + 1
    return tirx.min(tirx.IntImm("int64", 2**setting.H), vectors) + 1


def units(setting: ReuseSetting, batch):
    """(units U, images per unit G) of a batch."""
    return (batch, 1) if setting.scope == "image" else (1, batch)


def _exact_keys(source: VectorSource, setting: ReuseSetting):
    """Inline ``(X, codes, words, B)``: 64-bit hashes of the bit patterns of all vectors of B images, in parallel."""
    S, Lp, P = source.segments, source.Lp, source.per_image
    chunks, padded = -(-P // KEY_CHUNK), group_count(P) * TILE
    by_image, load, key_of = setting.scope == "image", source.load, exact_key(source.L, Lp)

    @T.inline
    def inline(X, codes, words, B):
        for task in T.parallel(B * S * chunks):
            image = T.meta_var(task // (S * chunks))
            s = T.meta_var(task // chunks % S)
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            m = T.alloc_buffer((LANES,), "int32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            code = T.alloc_buffer((1,), "int32", scope="local")
            word = T.alloc_buffer((1,), "int64", scope="local")
            for i in range(T.min(KEY_CHUNK, P - task % chunks * KEY_CHUNK)):
                p = T.meta_var(task % chunks * KEY_CHUNK + i)
                u = T.meta_var(image if by_image else 0)
                g = T.meta_var(0 if by_image else image)
                load(X, image, p, s, v, seen)
                key_of(v, m, seen, code, word)
                words[u, s, g * padded + p] = word[0] & T.int64(0x7FFFFFFFFFFFFFFF)
                codes[u, s, g * padded + p] = code[0]

    return inline


def _number_phase(source: VectorSource, setting: ReuseSetting, keyed: bool):
    """Inline: ids, centroids, counts and, ``keyed``, cluster keys of every (unit, segment); one task each."""
    S, L, Lp, P, map_size = source.segments, source.L, source.Lp, source.per_image, source.map_size
    load, map_index = source.load, source.map_index
    exact, padded = setting.hash == "exact", group_count(P) * TILE
    in_place = not exact and source.entries % L == 0  # else the last segment is short, or the data are compared

    def chunks_of(X, image, p, s):
        starts = range(0, L, TILE)
        return [T.bind(pixel_entries(X, image, p, source.geometry, s * L + c, min(TILE, L - c))) for c in starts]

    def chunks_of_copy(v):
        return [T.bind(v[lanes(c)]) for c in range(0, Lp, TILE)]

    @T.inline
    def inline(X, codes, words, ids, centroids, counts, found, U, G, cap):
        for task in T.parallel(U * S):
            u = T.meta_var(task // S)
            s = T.meta_var(task % S)
            slots_size = T.meta_var(table_slots(setting, G * P))
            steps = T.meta_var(numbering(setting, L, Lp, slots_size))
            slots = T.alloc_buffer((slots_size,), "int32")
            known = T.alloc_buffer((cap,), "int64")
            sums = T.alloc_buffer((cap + SPREAD, Lp), "float32")
            bases = T.alloc_buffer((cap + SPREAD, Lp), "float32")
            sizes = T.alloc_buffer((cap + SPREAD,), "int32")
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            n = T.alloc_buffer((2,), "int32", scope="local")
            id = T.alloc_buffer((1,), "int32", scope="local")
            steps.begin(slots, sums, bases, sizes, n)
            for i in range(G * map_size):
                ids[u, s, i] = NO_VECTOR
            for g in range(G):
                for p in range(P):
                    code = T.meta_var(codes[u, s, g * padded + p])
                    id[0] = code
                    if code >= 0:
                        if not in_place:
                            load(X, u + g, p, s, v, seen)
                        chunks = T.meta_var(chunks_of(X, u + g, p, s) if in_place else chunks_of_copy(v))
                        word = T.meta_var(words[u, s, g * padded + p] if exact else T.cast(code, "int64"))
                        steps.place(chunks, v, word, p, slots, known, sums, bases, sizes, n, id)
                    elif code == NON_FINITE:
                        n[1] = n[1] + 1
                    ids[u, s, g * map_size + map_index(p)] = id[0]
            steps.finish(centroids, u, s, sums, bases, sizes, n)
            if keyed:
                steps.write_keys(found, u, s, slots, known, n)
            counts[u, s, 0] = n[0]
            counts[u, s, 1] = n[1]

    return inline


def _gain_phase(source: VectorSource):
    """Inline ``(X, ids, centroids, counts, gains, U, G, cap)``: the factors of clause 9, in parallel over segments."""
    S, L, Lp, P, map_size = source.segments, source.L, source.Lp, source.per_image, source.map_size
    load, map_index = source.load, source.map_index

    @T.inline
    def inline(X, ids, centroids, counts, gains, U, G, cap):
        for task in T.parallel(U * S):
            u = T.meta_var(task // S)
            s = T.meta_var(task % S)
            norms = T.alloc_buffer((cap,), "float32")
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            dot = T.alloc_buffer((1,), "float32", scope="local")
            id = T.alloc_buffer((1,), "int32", scope="local")
            for cluster in range(counts[u, s, 0]):
                dot[0] = T.float32(0)
                for j in range(L):
                    dot[0] = dot[0] + centroids[u, s, cluster, j] * centroids[u, s, cluster, j]
                norms[cluster] = dot[0]
            for i in range(G * map_size):  # the padding around a map is read too, and a stray NaN times zero is NaN
                gains[u, s, i] = T.float32(1)
            for g in range(G):
                for p in range(P):
                    id[0] = ids[u, s, g * map_size + map_index(p)]
                    if id[0] >= 0:
                        load(X, u + g, p, s, v, seen)
                        dot[0] = T.float32(0)
                        for j in range(L):
                            dot[0] = dot[0] + v[j] * centroids[u, s, id[0], j]
                        if T.And(norms[id[0]] > T.float32(0), norms[id[0]] <= T.float32(3.4028234e38)):
                            gains[u, s, g * map_size + map_index(p)] = dot[0] / norms[id[0]]

    return inline


@functools.cache
def cluster(geometry: ConvGeometry, setting: ReuseSetting, keyed: bool = False) -> tirx.PrimFunc:
    """Cluster the neuron vectors of X.

    Args:
        geometry, setting: of the layer.
        keyed: the keys of the clusters are wanted too; not with ``exact``.

    Returns:
        PrimFunc of X float32 [B, H, W, C], planes float32 [S, L, Hp], thresholds float32 [S, Hp], then the outputs
        ids int32 [U, S, G * map_size], gains float32 of the same shape (1 x 1 x 1 without ``gain``),
        centroids float32 [U, S, capacity + SPARE_CENTROIDS, Lp], counts int32 [U, S, 2] (clusters; non-finite
        vectors), stats int32 [U, 2] (all of them together; 1 if the unit reuses, 0 if it runs dense) and found int32
        [U, S, capacity], the clusters' keys, 2^H for that of zeros (1 x 1 x 1 without ``keyed``).
        B is symbolic. ``exact`` takes planes [1, 1, 8] and thresholds [1, 8] and ignores them.
    """
    source = vector_source(geometry, setting)
    S, L, Lp, P, map_size = source.segments, source.L, source.Lp, source.per_image, source.map_size
    H, W, C = geometry.H, geometry.W, geometry.C
    exact, gain = setting.hash == "exact", setting.gain
    SP, LP, Hp = (1, 1, 8) if exact else (S, L, padded_bits(setting.H))
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters
    at_once = setting.granularity == "segment" and not exact
    padded = group_count(P) * TILE
    if at_once:
        number_all = number_segments(geometry, setting, keyed)
    else:
        keys = _exact_keys(source, setting) if exact else pixel_keys(source, setting)
        number = _number_phase(source, setting, keyed)
    gain_factors = _gain_phase(source)

    @T.prim_func(private=True)
    def kernel(
        x: T.handle,
        pl: T.handle,
        th: T.handle,
        i: T.handle,
        a: T.handle,
        c: T.handle,
        n: T.handle,
        st: T.handle,
        ky: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        cap = T.meta_var(capacity(setting, G * P))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        planes = T.match_buffer(pl, (T.int64(SP), T.int64(LP), T.int64(Hp)), "float32")
        thresholds = T.match_buffer(th, (T.int64(SP), T.int64(Hp)), "float32")
        ids = T.match_buffer(i, (U, T.int64(S), G * T.int64(map_size)), "int32")
        gains = T.match_buffer(
            a,
            (
                U if gain else T.int64(1),
                T.int64(S if gain else 1),
                G * T.int64(map_size) if gain else T.int64(1),
            ),
            "float32",
        )
        centroids = T.match_buffer(c, (U, T.int64(S), cap + SPARE_CENTROIDS, T.int64(Lp)), "float32")
        counts = T.match_buffer(n, (U, T.int64(S), T.int64(2)), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        found = T.match_buffer(
            ky, (U if keyed else T.int64(1), T.int64(S if keyed else 1), cap if keyed else T.int64(1)), "int32"
        )
        if at_once:
            number_all(X, planes, thresholds, ids, centroids, counts, found, B, U, G, cap)
        else:
            codes = T.alloc_buffer((U, S, G * padded), "int32")
            if exact:
                words = T.alloc_buffer((U, S, G * padded), "int64")
                keys(X, codes, words, B)
                number(X, codes, words, ids, centroids, counts, found, U, G, cap)
            else:
                keys(X, planes, thresholds, codes, B)
                number(X, codes, codes, ids, centroids, counts, found, U, G, cap)
        if gain:
            gain_factors(X, ids, centroids, counts, gains, U, G, cap)
        for u in range(U):
            stats[u, 0] = 0
            for s in range(S):
                stats[u, 0] = stats[u, 0] + counts[u, s, 0] + counts[u, s, 1]
            stats[u, 1] = T.Select(stats[u, 0] <= limit, 1, 0)

    return kernel
