"""Clusters take over the centroids that their keys had in earlier batches (``docs/algorithm.md``, clause 16).

After clustering, before products: for each segment the clusters of the batch are looked up in a table of at most C
centroids. One that is found replaces the mean, one that is not is added; of more than C those used last stay, of
equally recent ones those with the smaller key. One task does a segment, so that the bytes never depend on the threads.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.hash_table import find_cluster
from adr_tvm.settings import MAX_BITS
from adr_tvm.stream_table import StreamTable


def _rank(used, key):
    """Of two places the one with the higher rank stays; no two have the same, and that of a free one is below 2^20."""
    return T.shift_left(T.cast(used, "int64"), T.int64(MAX_BITS)) + T.cast((1 << MAX_BITS) - 1 - key, "int64")


def _lowest_rank(C: int):
    """Inline ``(known, used, keys, added, now, s, n, count, bounds)``: bounds[0] = rank from which on just C stay.

    By bisection: the number of ranks at or above a bound falls one by one. bounds int64 [3] and count int32 [1] are
    local buffers, ``added`` int32 lists n[0] clusters that are new.
    """

    @T.inline
    def inline(known, used, keys, added, now, s, n, count, bounds):
        bounds[0] = T.int64(0)
        bounds[1] = _rank(now + 1, 0)
        while bounds[1] - bounds[0] > T.int64(1):
            bounds[2] = T.shift_right(bounds[0] + bounds[1], T.int64(1))
            count[0] = 0
            for slot in range(C):
                if T.And(used[s, slot] > 0, _rank(used[s, slot], known[s, slot]) >= bounds[2]):
                    count[0] = count[0] + 1
            for i in range(n[0]):
                if _rank(now, keys[0, s, added[i]]) >= bounds[2]:
                    count[0] = count[0] + 1
            if count[0] >= C:
                bounds[0] = bounds[2]
            else:
                bounds[1] = bounds[2]

    return inline


@functools.cache
def stream_centroids(table: StreamTable, H: int, rows: int, capacity: int, padded: int) -> tirx.PrimFunc:
    """Take over centroids, and keep those of this batch.

    Args:
        table: S segments, C places, vectors of L entries.
        H: hash bits; the cluster of zeros has the key 2^H and is left alone.
        rows: of the batch's centroids.
        capacity: clusters a segment can have.
        padded: L as the batch's centroids have it.

    Returns:
        PrimFunc of keys int32 [1, S, capacity], counts int32 [1, S, 2] (clusters first) and now int32 [1], the step
        from 1; of centroids float32 [1, S, rows, padded], table float32 [S, C, L], known and used int32 [S, C], which
        it changes; and the output streamed int32 [S], clusters found.
    """
    S, C, L = table.segments, table.slots, table.length
    find, lowest_rank = find_cluster(), _lowest_rank(C)

    @T.prim_func(private=True)
    def kernel(
        ky: T.handle,
        cn: T.handle,
        nw: T.handle,
        ce: T.handle,
        tb: T.handle,
        kn: T.handle,
        us: T.handle,
        so: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        keys = T.match_buffer(ky, (T.int64(1), T.int64(S), T.int64(capacity)), "int32")
        counts = T.match_buffer(cn, (T.int64(1), T.int64(S), T.int64(2)), "int32")
        now = T.match_buffer(nw, (T.int64(1),), "int32")
        centroids = T.match_buffer(ce, (T.int64(1), T.int64(S), T.int64(rows), T.int64(padded)), "float32")
        kept = T.match_buffer(tb, (T.int64(S), T.int64(C), T.int64(L)), "float32")
        known = T.match_buffer(kn, (T.int64(S), T.int64(C)), "int32")
        used = T.match_buffer(us, (T.int64(S), T.int64(C)), "int32")
        streamed = T.match_buffer(so, (T.int64(S),), "int32")
        for s in T.parallel(S):
            index = T.alloc_buffer((2 * C,), "int32")
            words = T.alloc_buffer((C,), "int64")
            added = T.alloc_buffer((capacity,), "int32")
            n = T.alloc_buffer((4,), "int32", scope="local")  # clusters that are new, places taken, found, next place
            probe = T.alloc_buffer((1,), "int64", scope="local")
            found = T.alloc_buffer((1,), "int32", scope="local")
            hit = T.alloc_buffer((1,), "int32", scope="local")
            bounds = T.alloc_buffer((3,), "int64", scope="local")
            for i in T.unroll(4):
                n[i] = 0
            for i in range(2 * C):
                index[i] = -1
            for slot in range(C):
                if used[s, slot] > 0:
                    words[slot] = T.cast(known[s, slot], "int64")
                    find(index, words, 2 * C, words[slot], probe, found, hit)
                    index[probe[0]] = T.cast(slot, "int32")
                    n[1] = n[1] + 1
            for cluster in range(counts[0, s, 0]):
                key = T.meta_var(keys[0, s, cluster])
                if key < T.int32(1 << H):
                    find(index, words, 2 * C, T.cast(key, "int64"), probe, found, hit)
                    if found[0] >= 0:
                        used[s, found[0]] = now[0]
                        n[2] = n[2] + 1
                        for l in range(L):
                            centroids[0, s, cluster, l] = kept[s, found[0], l]
                    else:
                        added[n[0]] = T.cast(cluster, "int32")
                        n[0] = n[0] + 1
            bounds[0] = T.int64(0)
            if n[0] + n[1] > C:
                lowest_rank(known, used, keys, added, now[0], s, n, found, bounds)
                for slot in range(C):
                    if _rank(used[s, slot], known[s, slot]) < bounds[0]:
                        used[s, slot] = 0
            for i in range(n[0]):
                cluster = T.meta_var(added[i])
                if _rank(now[0], keys[0, s, cluster]) >= bounds[0]:
                    while used[s, n[3]] > 0:
                        n[3] = n[3] + 1
                    used[s, n[3]] = now[0]
                    known[s, n[3]] = keys[0, s, cluster]
                    for l in range(L):
                        kept[s, n[3], l] = centroids[0, s, cluster, l]
            streamed[s] = n[2]

    return kernel
