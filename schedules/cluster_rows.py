"""Clustering of whole im2col rows by sign hashes (``row`` granularity; ``docs/algorithm.md``, clauses 1 to 7, 13).

The outcome is a work list rather than a table: ``reps[u, w]`` is the row whose product is computed, ``source[u, w]``
the centroid that stands for it (-1: the row itself) and ``lead[u, n]`` the row whose product row n receives. A unit
that does not reuse lists all of its rows, so that the GEMM that follows is the dense one.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, capacity, units
from adr_tvm.schedules.hash_table import find_cluster, slot_count
from adr_tvm.schedules.im2col import copy_row
from adr_tvm.schedules.neuron_vectors import LANES
from adr_tvm.schedules.vector_key import NON_FINITE, ZERO, padded_bits, sign_key
from adr_tvm.settings import ReuseSetting

KEY_ROWS = 16  # rows whose keys one task computes


def _key_phase(geometry: ConvGeometry, setting: ReuseSetting):
    """Inline ``(X, planes, thresholds, codes, U, G)``: the key or code of every row, in parallel."""
    K, rows = geometry.K, geometry.rows
    Kp = -(-K // LANES) * LANES
    Hp = padded_bits(setting.H)
    chunks = -(-rows // KEY_ROWS)
    copy, sign = copy_row(geometry), sign_key(K, Kp, setting.H)

    @T.inline
    def inline(X, planes, thresholds, codes, U, G):
        for task in T.parallel(U * G * chunks):
            A = T.alloc_buffer((1, Kp), "float32")
            v = T.alloc_buffer((Kp,), "float32")
            dot = T.alloc_buffer((Hp,), "float32", scope="local")
            bits = T.alloc_buffer((Hp,), "int32", scope="local")
            m = T.alloc_buffer((LANES,), "int32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            key = T.alloc_buffer((1,), "int32", scope="local")
            seen[0] = 1
            for j in T.vectorized(LANES):
                A[0, Kp - LANES + j] = T.float32(0)
            for i in range(T.min(KEY_ROWS, rows - task % chunks * KEY_ROWS)):
                n = T.meta_var(task % chunks * KEY_ROWS + i)
                copy(X, task // chunks, n, rows, A, 0, 0)
                for c in range(Kp // LANES):
                    for j in T.vectorized(LANES):
                        v[c * LANES + j] = A[0, c * LANES + j]
                sign(v, planes, thresholds, 0, dot, bits, m, seen, key)
                codes[task // chunks // G, task // chunks % G * rows + n] = key[0]

    return inline


def _number_phase():
    """Inline: ids, first members, sizes and counts of every unit from the codes; one task each."""
    find = find_cluster()

    @T.inline
    def inline(codes, ids, first, sizes, stats, U, N, cap, slots_size, limit):
        for u in T.parallel(U):
            slots = T.alloc_buffer((slots_size,), "int32")
            words = T.alloc_buffer((cap,), "int64")
            n = T.alloc_buffer((3,), "int32", scope="local")  # clusters, non-finite rows, zero cluster
            probe = T.alloc_buffer((1,), "int64", scope="local")
            found = T.alloc_buffer((1,), "int32", scope="local")
            hit = T.alloc_buffer((1,), "int32", scope="local")
            n[0] = 0
            n[1] = 0
            n[2] = -1
            for i in range(slots_size):
                slots[i] = -1
            for row in range(N):
                code = T.meta_var(codes[u, row])
                if code == NON_FINITE:
                    n[1] = n[1] + 1
                    ids[u, row] = NON_FINITE
                else:
                    if code == ZERO:
                        found[0] = n[2]
                    else:
                        find(slots, words, slots_size, T.cast(code, "int64"), probe, found, hit)
                        if found[0] < 0:
                            slots[probe[0]] = n[0]
                            words[n[0]] = T.cast(code, "int64")
                    if found[0] < 0:
                        found[0] = n[0]
                        n[0] = n[0] + 1
                        if code == ZERO:
                            n[2] = found[0]
                            words[found[0]] = T.int64(-1)
                        first[u, found[0]] = T.cast(row, "int32")
                        sizes[u, found[0]] = 0
                    sizes[u, found[0]] = sizes[u, found[0]] + 1
                    ids[u, row] = found[0]
            stats[u, 0] = n[0] + n[1]
            stats[u, 1] = T.Select(n[0] + n[1] <= limit, 1, 0)

    return inline


def _mean_phase(geometry: ConvGeometry):
    """Inline: centroids of every unit that reuses; one task sums one tap's channels over all rows, in order."""
    C, KW, OW, rows = geometry.C, geometry.KW, geometry.OW, geometry.rows
    H, W, taps = geometry.H, geometry.W, geometry.KH * geometry.KW
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding

    def iy(row, tap):
        return row % rows // OW * SH - PT + tap // KW * DH

    def ix(row, tap):
        return row % rows % OW * SW - PL + tap % KW * DW

    def inside(row, tap):
        y, x = iy(row, tap), ix(row, tap)
        return T.And(T.And(y >= 0, y < H), T.And(x >= 0, x < W))

    def entry(X, image, row, tap, c):
        return T.if_then_else(inside(row, tap), X[image + row // rows, iy(row, tap), ix(row, tap), c], T.float32(0))

    @T.inline
    def inline(X, ids, first, sizes, centroids, stats, U, G):
        for task in T.parallel(U * taps):
            u = T.meta_var(task // taps)
            tap = T.meta_var(task % taps)
            if stats[u, 1] != 0:
                for row in range(G * rows):
                    id = T.meta_var(ids[u, row])
                    if id >= 0:
                        for c in range(C):
                            k = T.meta_var(tap * C + c)
                            base = T.meta_var(entry(X, u * G, first[u, id], tap, c))
                            if first[u, id] == T.cast(row, "int32"):
                                centroids[u, id, k] = T.float32(0)
                            else:
                                centroids[u, id, k] = centroids[u, id, k] + (entry(X, u * G, row, tap, c) - base)
                for row in range(G * rows):
                    id = T.meta_var(ids[u, row])
                    if id >= 0:
                        if first[u, id] == T.cast(row, "int32"):
                            for c in range(C):
                                k = T.meta_var(tap * C + c)
                                centroids[u, id, k] = entry(X, u * G, row, tap, c) + centroids[u, id, k] / T.cast(
                                    sizes[u, id], "float32"
                                )

    return inline


@functools.cache
def cluster_rows(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Cluster the im2col rows of X by their keys.

    Returns:
        PrimFunc of X float32 [B, H, W, C], planes float32 [1, K, Hp] in the order (KH, KW, C), thresholds
        float32 [1, Hp], then the outputs ids int32 [U, N] (-2: its own cluster), lead, reps, source int32 [U, N],
        centroids float32 [U, capacity, K], stats int32 [U, 2] (clusters; 1 if the unit reuses). A unit that runs
        dense lists all N rows. B is symbolic.
    """
    H, W, C, K, rows, Hp = (
        geometry.H,
        geometry.W,
        geometry.C,
        geometry.K,
        geometry.rows,
        padded_bits(setting.H),
    )
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters
    keys, number, means = _key_phase(geometry, setting), _number_phase(), _mean_phase(geometry)

    @T.prim_func(private=True)
    def kernel(
        x: T.handle,
        pl: T.handle,
        th: T.handle,
        i: T.handle,
        ld: T.handle,
        rp: T.handle,
        so: T.handle,
        c: T.handle,
        st: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        cap = T.meta_var(capacity(setting, N if setting.scope == "batch" else rows))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        planes = T.match_buffer(pl, (T.int64(1), T.int64(K), T.int64(Hp)), "float32")
        thresholds = T.match_buffer(th, (T.int64(1), T.int64(Hp)), "float32")
        ids = T.match_buffer(i, (U, N), "int32")
        lead = T.match_buffer(ld, (U, N), "int32")
        reps = T.match_buffer(rp, (U, N), "int32")
        source = T.match_buffer(so, (U, N), "int32")
        centroids = T.match_buffer(c, (U, cap, T.int64(K)), "float32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        codes = T.alloc_buffer((U, N), "int32")
        first = T.alloc_buffer((U, cap), "int32")
        sizes = T.alloc_buffer((U, cap), "int32")
        keys(X, planes, thresholds, codes, U, G)
        number(
            codes,
            ids,
            first,
            sizes,
            stats,
            U,
            N,
            cap,
            slot_count(setting, N if setting.scope == "batch" else rows),
            limit,
        )
        means(X, ids, first, sizes, centroids, stats, U, G)
        for u in T.parallel(U):
            work = T.alloc_buffer((1,), "int32", scope="local")
            work[0] = 0
            for row in range(N):
                if T.Or(ids[u, row] < 0, stats[u, 1] == 0):
                    lead[u, row] = T.cast(row, "int32")
                    reps[u, work[0]] = T.cast(row, "int32")
                    source[u, work[0]] = -1
                    work[0] = work[0] + 1
                else:
                    lead[u, row] = first[u, ids[u, row]]
                    if first[u, ids[u, row]] == T.cast(row, "int32"):
                        reps[u, work[0]] = T.cast(row, "int32")
                        source[u, work[0]] = ids[u, row]
                        work[0] = work[0] + 1

    return kernel
