"""Clustering of ``pixel`` and ``segment`` neuron vectors (``docs/algorithm.md``, clauses 1 to 9, 12, 13).

Two phases. All keys are computed in parallel; then each (unit, segment) numbers its clusters in the order of
their first members and sums their members, one thread for one segment, so the bytes never depend on the threads.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.hash_table import find_cluster, slot_count
from adr_tvm.schedules.neuron_vectors import LANES, VectorSource, vector_source
from adr_tvm.schedules.vector_key import NO_VECTOR, NON_FINITE, ZERO, exact_key, padded_bits, sign_key
from adr_tvm.settings import ReuseSetting

KEY_CHUNK = 512  # vectors whose keys one task computes
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


def _key_phase(source: VectorSource, setting: ReuseSetting):
    """Inline ``(X, planes, thresholds, codes, keys64, U, G)``: the keys or codes of all vectors, in parallel."""
    S, Lp, P = source.segments, source.Lp, source.per_image
    exact = setting.hash == "exact"
    chunks = -(-P // KEY_CHUNK)
    Hp = padded_bits(setting.H)
    sign, bitwise, load = sign_key(source.L, Lp, setting.H), exact_key(source.L, Lp), source.load

    @T.inline
    def inline(X, planes, thresholds, codes, keys64, U, G):
        for task in T.parallel(U * S * G * chunks):
            u = T.meta_var(task // (S * G * chunks))
            s = T.meta_var(task // (G * chunks) % S)
            g = T.meta_var(task // chunks % G)
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            dot = T.alloc_buffer((Hp,), "float32", scope="local")
            bits = T.alloc_buffer((Hp,), "int32", scope="local")
            m = T.alloc_buffer((LANES,), "int32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            key = T.alloc_buffer((1,), "int32", scope="local")
            key64 = T.alloc_buffer((1,), "int64", scope="local")
            for i in range(T.min(KEY_CHUNK, P - task % chunks * KEY_CHUNK)):
                p = T.meta_var(task % chunks * KEY_CHUNK + i)
                load(X, u * G + g, p, s, v, seen)
                if exact:
                    bitwise(v, m, seen, key, key64)
                    keys64[u, s, g * P + p] = key64[0]
                else:
                    sign(v, planes, thresholds, s, dot, bits, m, seen, key)
                codes[u, s, g * P + p] = key[0]

    return inline


def _number_phase(source: VectorSource, setting: ReuseSetting):
    """Inline: ids, centroids and counts of every (unit, segment) from the keys; one task each."""
    S, L, Lp, P, map_size = source.segments, source.L, source.Lp, source.per_image, source.map_size
    load, map_index = source.load, source.map_index
    exact, gain = setting.hash == "exact", setting.gain
    entries = Lp // LANES

    @T.inline
    def add_member(sums, bases, v, cluster):
        for c in range(entries):
            for j in T.vectorized(LANES):
                sums[cluster, c * LANES + j] = sums[cluster, c * LANES + j] + (
                    v[c * LANES + j] - bases[cluster, c * LANES + j]
                )

    @T.inline
    def open_cluster(sums, bases, sizes, v, cluster):
        sizes[cluster] = 0
        for c in range(entries):
            for j in T.vectorized(LANES):
                bases[cluster, c * LANES + j] = v[c * LANES + j]
                sums[cluster, c * LANES + j] = T.float32(0)

    @T.inline
    def inline(X, codes, keys64, ids, gains, centroids, counts, U, G, cap, slots_size):
        for task in T.parallel(U * S):
            u = T.meta_var(task // S)
            s = T.meta_var(task % S)
            slots = T.alloc_buffer((slots_size,), "int32")
            members = T.alloc_buffer((cap,), "int64")
            sums = T.alloc_buffer((cap, Lp), "float32")
            bases = T.alloc_buffer((cap, Lp), "float32")
            sizes = T.alloc_buffer((cap,), "int32")
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            n = T.alloc_buffer((4,), "int32", scope="local")  # clusters, non-finite, zero cluster, current id
            probe = T.alloc_buffer((1,), "int64", scope="local")
            found = T.alloc_buffer((1,), "int32", scope="local")
            hit = T.alloc_buffer((1,), "int32", scope="local")

            @T.inline
            def same_bits(other, hit):
                for j in range(L):
                    if T.reinterpret("int32", bases[other, j]) != T.reinterpret("int32", v[j]):
                        hit[0] = 0

            find = T.meta_var(find_cluster(same_bits if exact else None))
            n[0] = 0
            n[1] = 0
            n[2] = -1
            for i in range(slots_size):
                slots[i] = -1
            for i in range(G * map_size):
                ids[u, s, i] = NO_VECTOR
                if gain:  # the padding around a map is read too, and a stray NaN times zero is NaN
                    gains[u, s, i] = T.float32(1)
            for g in range(G):
                for p in range(P):
                    code = T.meta_var(codes[u, s, g * P + p])
                    n[3] = code
                    if code == NON_FINITE:
                        n[1] = n[1] + 1
                    elif code != NO_VECTOR:
                        load(X, u * G + g, p, s, v, seen)
                        if code == ZERO:
                            n[3] = n[2]
                        else:
                            word = T.meta_var(keys64[u, s, g * P + p] if exact else T.cast(code, "int64"))
                            find(slots, members, slots_size, word, probe, found, hit)
                            n[3] = found[0]
                            if n[3] < 0:
                                slots[probe[0]] = n[0]
                                members[n[0]] = word
                        if n[3] < 0:
                            n[3] = n[0]
                            n[0] = n[0] + 1
                            if code == ZERO:
                                n[2] = n[3]
                                members[n[3]] = T.int64(-1)
                            open_cluster(sums, bases, sizes, v, n[3])
                        sizes[n[3]] = sizes[n[3]] + 1
                        if not exact:
                            add_member(sums, bases, v, n[3])
                    ids[u, s, g * map_size + map_index(p)] = n[3]
            for cluster in range(n[0]):
                for c in range(entries):
                    for j in T.vectorized(LANES):
                        centroids[u, s, cluster, c * LANES + j] = bases[cluster, c * LANES + j] + sums[
                            cluster, c * LANES + j
                        ] / T.cast(sizes[cluster], "float32")
            counts[u, s, 0] = n[0]
            counts[u, s, 1] = n[1]
            if gain:
                norm = T.alloc_buffer((2,), "float32", scope="local")
                for g in range(G):
                    for p in range(P):
                        n[3] = ids[u, s, g * map_size + map_index(p)]
                        norm[0] = T.float32(0)
                        norm[1] = T.float32(0)
                        if n[3] >= 0:
                            load(X, u * G + g, p, s, v, seen)
                            for j in range(L):
                                norm[0] = norm[0] + v[j] * centroids[u, s, n[3], j]
                                norm[1] = norm[1] + centroids[u, s, n[3], j] * centroids[u, s, n[3], j]
                        gains[u, s, g * map_size + map_index(p)] = T.Select(
                            T.And(norm[1] > T.float32(0), norm[1] <= T.float32(3.4028234e38)),
                            norm[0] / norm[1],
                            T.float32(1),
                        )

    return inline


@functools.cache
def cluster(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Cluster the neuron vectors of X.

    Returns:
        PrimFunc of X float32 [B, H, W, C], planes float32 [S, L, Hp], thresholds float32 [S, Hp], then the outputs
        ids int32 [U, S, G * map_size], gains float32 of the same shape (1 x 1 x 1 without ``gain``),
        centroids float32 [U, S, capacity + SPARE_CENTROIDS, Lp], counts int32 [U, S, 2] (clusters; non-finite
        vectors) and stats int32 [U, 2] (all of them together; 1 if the unit reuses, 0 if it runs dense).
        B is symbolic. ``exact`` takes planes [1, 1, 8] and thresholds [1, 8] and ignores them.
    """
    source = vector_source(geometry, setting)
    S, L, Lp, P, map_size = source.segments, source.L, source.Lp, source.per_image, source.map_size
    H, W, C = geometry.H, geometry.W, geometry.C
    SP, LP, Hp = (1, 1, 8) if setting.hash == "exact" else (S, L, padded_bits(setting.H))
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters
    keys, number = _key_phase(source, setting), _number_phase(source, setting)
    exact, gain = setting.hash == "exact", setting.gain

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
        codes = T.alloc_buffer((U, S, G * P), "int32")
        keys64 = T.alloc_buffer((U if exact else 1, S if exact else 1, G * P if exact else 1), "int64")
        keys(X, planes, thresholds, codes, keys64, U, G)
        number(X, codes, keys64, ids, gains, centroids, counts, U, G, cap, slot_count(setting, G * P))
        for u in range(U):
            stats[u, 0] = 0
            for s in range(S):
                stats[u, 0] = stats[u, 0] + counts[u, s, 0] + counts[u, s, 1]
            stats[u, 1] = T.Select(stats[u, 0] <= limit, 1, 0)

    return kernel
