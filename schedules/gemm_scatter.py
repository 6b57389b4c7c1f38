"""Centroid GEMM and gather-add for ``pixel`` and ``segment`` (``docs/algorithm.md``, clauses 10 to 13).

Per unit and block of output channels: the products of a few segments' centroids with the weights of every tap form
a table that stays in L2, then each output pixel adds the table rows its ids name. Tables hold a fixed number of
clusters; more clusters take more rounds. GEMM and scatter share one kernel because only so does the table never
leave the cache, and memory never grow with the number of clusters. A unit over its ``max_clusters`` runs dense.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
from adr_tvm.schedules.dense_conv2d import dense_image
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.neuron_vectors import VectorSource, vector_source
from adr_tvm.schedules.register_tile import RegisterTile
from adr_tvm.schedules.vector_key import NON_FINITE
from adr_tvm.settings import ReuseSetting

BLOCK_CLUSTERS = 1024  # clusters of one segment in a table
TABLE_BYTES = 512 * 1024  # aim for the tables of the segments processed together


def table_shape(source: VectorSource, setting: ReuseSetting, NR: int) -> tuple[int, int]:
    """(segments processed together, clusters of each in a table), from shapes alone."""
    clusters = BLOCK_CLUSTERS if setting.hash == "exact" else min(2**setting.H + 1, BLOCK_CLUSTERS)
    if setting.scope == "image":
        clusters = min(clusters, source.per_image + 1)
    together = TABLE_BYTES // (4 * source.taps * (clusters + 1) * NR)
    return max(1, min(together, source.segments)), clusters


def _fill_tables(source: VectorSource, tile: RegisterTile):
    """Inline ``(centroids, packed, table, u, s, z, block, first, count)``.

    table[z, t, 1 + c] = centroid first + c of segment s times the weights of tap t and block; row 0 is zero.
    """
    MR, NR, taps = tile.MR, tile.NR, source.taps

    @T.inline
    def inline(centroids, packed, table, u, s, z, block, first, count):
        for t in range(taps):
            for j in T.vectorized(NR):
                table[z, t, 0, j] = T.float32(0)
            for panel in range((count + MR - 1) // MR):
                acc = T.alloc_buffer((MR, NR), "float32", scope="local")
                for i in T.unroll(MR):
                    for j in T.vectorized(NR):
                        acc[i, j] = T.float32(0)
                for l in range(source.valid_length(s)):
                    for i in T.unroll(MR):
                        for j in T.vectorized(NR):
                            acc[i, j] = (
                                acc[i, j]
                                + centroids[u, s, first + panel * MR + i, l]
                                * packed[block, source.weight_row(s, t, l), j]
                            )
                for i in T.unroll(MR):
                    for j in T.vectorized(NR):
                        table[z, t, 1 + panel * MR + i, j] = acc[i, j]

    return inline


@functools.cache
def gemm_scatter(
    geometry: ConvGeometry, setting: ReuseSetting, activation: Activation, tile: RegisterTile
) -> tirx.PrimFunc:
    """Y = activation(sum of centroid products + bias).

    Returns:
        PrimFunc of X float32 [B, H, W, C], packed weights float32 [M/NR, K, NR], bias float32 [M padded to NR],
        the outputs of ``cluster`` (ids, gains, centroids, counts, stats), and Y float32 [B, OH, OW, M].
    """
    source = vector_source(geometry, setting)
    S, Lp, P, taps, map_size = source.segments, source.Lp, source.per_image, source.taps, source.map_size
    H, W, C, OH, OW, M, K = (
        geometry.H,
        geometry.W,
        geometry.C,
        geometry.OH,
        geometry.OW,
        geometry.M,
        geometry.K,
    )
    MR, NR, rows = tile.MR, tile.NR, geometry.rows
    blocks, gain = -(-M // NR), setting.gain
    together, table_clusters = table_shape(source, setting, NR)
    rounds = -(-S // together)
    act = activation_expr(activation)
    fill, dense = _fill_tables(source, tile), dense_image(geometry, activation, tile)
    tap_index, weight_row, load = source.tap_index, source.weight_row, source.load

    @T.inline
    def add_row(acc, table, gains, z, u, s, q, t, row):
        for j in T.vectorized(NR):
            if gain:
                acc[j] = acc[j] + gains[u, s, q] * table[z, t, row, j]
            else:
                acc[j] = acc[j] + table[z, t, row, j]

    @T.inline
    def add_own_product(acc, X, packed, u, g, s, t, n, block, v, seen):
        load(X, u + g, source.tap_position(n, t), s, v, seen)
        for l in range(source.valid_length(s)):
            for j in T.vectorized(NR):
                acc[j] = acc[j] + v[l] * packed[block, weight_row(s, t, l), j]

    @T.inline
    def read_partial(acc, Y, image, n, block):
        if block < M // NR:
            for j in T.vectorized(NR):
                acc[j] = Y[image, n // OW, n % OW, block * NR + j]
        else:
            for j in range(M % NR):
                acc[j] = Y[image, n // OW, n % OW, block * NR + j]

    @T.inline
    def write_partial(acc, Y, image, n, block):
        if block < M // NR:
            for j in T.vectorized(NR):
                Y[image, n // OW, n % OW, block * NR + j] = acc[j]
        else:
            for j in range(M % NR):
                Y[image, n // OW, n % OW, block * NR + j] = acc[j]

    @T.prim_func(private=True)
    def kernel(
        x: T.handle,
        w: T.handle,
        b: T.handle,
        i: T.handle,
        a: T.handle,
        c: T.handle,
        k: T.handle,
        st: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        packed = T.match_buffer(w, (T.int64(blocks), T.int64(K), T.int64(NR)), "float32")
        bias = T.match_buffer(b, (T.int64(blocks * NR),), "float32")
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
        centroids = T.match_buffer(
            c, (U, T.int64(S), capacity(setting, G * P) + SPARE_CENTROIDS, T.int64(Lp)), "float32"
        )
        counts = T.match_buffer(k, (U, T.int64(S), T.int64(2)), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        for task in T.parallel(U * blocks):
            u = T.meta_var(task // blocks)
            block = T.meta_var(task % blocks)
            table = T.alloc_buffer((together, taps, table_clusters + 1 + MR, NR), "float32")
            acc = T.alloc_buffer((NR,), "float32", scope="local")
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            most = T.alloc_buffer((2,), "int32", scope="local")  # clusters of the fullest segment; non-finite vectors
            if stats[u, 1] != 0:
                for r in range(rounds):
                    most[0] = 0
                    most[1] = 0
                    for z in range(T.min(together, S - r * together)):
                        most[0] = T.max(most[0], counts[u, r * together + z, 0])
                        most[1] = most[1] + counts[u, r * together + z, 1]
                    parts = T.meta_var(T.max((most[0] + table_clusters - 1) // table_clusters, 1))
                    for part in range(parts):
                        first = T.meta_var(part * table_clusters)
                        for z in range(T.min(together, S - r * together)):
                            s = T.meta_var(r * together + z)
                            fill(
                                centroids,
                                packed,
                                table,
                                u,
                                s,
                                z,
                                block,
                                first,
                                T.max(T.min(table_clusters, counts[u, s, 0] - first), 0),
                            )
                        for g in range(G):
                            for n in range(rows):
                                image = T.meta_var(u + g)
                                if T.And(r == 0, part == 0):
                                    for j in T.vectorized(NR):
                                        acc[j] = T.float32(0)
                                else:
                                    read_partial(acc, Y, image, n, block)
                                for z in range(T.min(together, S - r * together)):
                                    s = T.meta_var(r * together + z)
                                    if T.And(most[0] <= table_clusters, most[1] == 0):
                                        for t in T.unroll(taps):
                                            q = T.meta_var(g * map_size + tap_index(n, t))
                                            add_row(acc, table, gains, z, u, s, q, t, ids[u, s, q] + 1)
                                    else:
                                        for t in range(taps):
                                            q = T.meta_var(g * map_size + tap_index(n, t))
                                            here = T.meta_var(ids[u, s, q] - first)
                                            if T.And(ids[u, s, q] >= 0, T.And(here >= 0, here < table_clusters)):
                                                add_row(acc, table, gains, z, u, s, q, t, here + 1)
                                            elif T.And(ids[u, s, q] == NON_FINITE, part == 0):
                                                add_own_product(acc, X, packed, u, g, s, t, n, block, v, seen)
                                if T.And(r == rounds - 1, part == parts - 1):
                                    for j in T.vectorized(NR):
                                        acc[j] = act(acc[j] + bias[block * NR + j])
                                write_partial(acc, Y, image, n, block)
        for u in range(U):
            if stats[u, 1] == 0:
                for g in range(G):
                    dense(X, packed, bias, Y, u + g)

    return kernel
