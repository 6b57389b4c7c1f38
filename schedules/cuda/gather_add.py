"""The gather-add of ``pixel`` and ``segment`` (``docs/algorithm.md``, clauses 5, 9, 10 and 12).

A thread adds up a few channels of an output pixel: for each segment and tap the row of the table that the id names.
Neighbouring threads read neighbouring channels of the same row. Between rounds of segments the sums are in Y, so their
order does not depend on how many segments a round has. Vectors that are not finite, and clusters behind the last row of
a table, are multiplied on the spot; segments without such never look for them.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
from adr_tvm.schedules.cuda.bfloat16 import bits_of, is_packed, number_of
from adr_tvm.schedules.cuda.vector_reader import VectorReader
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.reuse_schedule import table_clusters
from adr_tvm.schedules.vector_key import NON_FINITE
from adr_tvm.settings import ReuseSetting

THREADS = 128
UNROLLED_TAPS = 25


@functools.cache
def gather_add(
    geometry: ConvGeometry,
    setting: ReuseSetting,
    activation: Activation,
    together: int,
    weights_shape: tuple[int, int],
    first: bool,
    last: bool,
) -> tirx.PrimFunc:
    """Y += the products of one round of segments.

    Args:
        together: segments of a round.
        weights_shape: of the weights, as the dense kernel takes them; the bias is as long as their second axis.
        first: the round is the first: what Y held does not count.
        last: the round is the last: bias and activation follow.

    Returns:
        PrimFunc of X float32 [B, H, W, C], weights, bias, ids int32 [U, S, N], with ``gain`` gains float32 [U, S, N],
        centroids, counts, stats, round and table as of ``product_table``, and Y float32 [B, OH, OW, M], of which units
        that run dense stay as they are.
    """
    reader = VectorReader(geometry, setting)
    source, V = reader.source, reader.V
    g, gain, act = geometry, setting.gain, activation_expr(activation)
    H, W, C, OH, OW, M, rows = g.H, g.W, g.C, g.OH, g.OW, g.M, g.rows
    S, Lp, size, taps, per_image = (
        source.segments,
        source.Lp,
        source.map_size,
        source.taps,
        source.per_image,
    )
    clusters, width = table_clusters(g, setting), taps * M
    Kp, Mp = weights_shape
    MV = 4 if M % 4 == 0 else 1
    packed, rounded = is_packed(g, setting), setting.table == "bfloat16"
    stored, dtype = (width // 2, "uint32") if packed else (width, "float32")
    per_row = M // MV
    find, load, tap_index, weight_row = reader.find(), reader.load(), source.tap_index, source.weight_row

    @T.inline
    def add_tap(flat_ids, flat_gains, flat_table, acc, id, place, table_row, m, o, tap):
        id[0] = flat_ids[place + tap_index(o, tap)]
        if T.And(id[0] >= 0, id[0] < clusters):
            if packed:
                pairs = T.alloc_buffer((2,), "uint32", scope="local")
                for v in T.vectorized(2):
                    pairs[v] = flat_table[table_row + T.cast(id[0], "int64") * stored + tap * (M // 2) + m // 2 + v]
                for v in T.unroll(MV):
                    number = T.meta_var(number_of(T.shift_right(pairs[v // 2], T.uint32(v % 2 * 16))))
                    acc[v] = acc[v] + (number * flat_gains[place + tap_index(o, tap)] if gain else number)
            else:
                for v in T.vectorized(MV):
                    acc[v] = acc[v] + (
                        flat_table[table_row + T.cast(id[0], "int64") * width + tap * M + m + v]
                        * flat_gains[place + tap_index(o, tap)]
                        if gain
                        else flat_table[table_row + T.cast(id[0], "int64") * width + tap * M + m + v]
                    )

    @T.inline
    def add_taps(flat_ids, flat_gains, flat_table, acc, id, place, table_row, m, o):
        if taps <= UNROLLED_TAPS:
            for tap in T.unroll(taps):
                add_tap(flat_ids, flat_gains, flat_table, acc, id, place, table_row, m, o, tap)
        else:
            for tap in range(taps):
                add_tap(flat_ids, flat_gains, flat_table, acc, id, place, table_row, m, o, tap)

    @T.inline
    def add_others(X, flat_w, flat_ids, flat_gains, flat_c, acc, id, place, centroid_row, m, image, o, s):
        """The same for ids that no row of the table stands for."""
        base = T.alloc_buffer((1,), "int64", scope="local")
        corner = T.alloc_buffer((2,), "int32", scope="local")
        seen = T.alloc_buffer((1,), "int32", scope="local")
        values = T.alloc_buffer((V,), "float32", scope="local")
        product = T.alloc_buffer((MV,), "float32", scope="local")
        for tap in range(taps):
            id[0] = flat_ids[place + tap_index(o, tap)]
            if T.Or(id[0] == NON_FINITE, id[0] >= clusters):
                find(base, corner, seen, image, tap_index(o, tap), s)
                for v in T.unroll(MV):
                    product[v] = T.float32(0)
                for i in range(source.valid_length(s) // V):
                    if id[0] == NON_FINITE:
                        load(X, base, corner, seen, values, s, i)
                    else:
                        for v in T.unroll(V):
                            values[v] = flat_c[centroid_row + T.cast(id[0], "int64") * Lp + i * V + v]
                    for l in T.unroll(V):
                        for v in T.vectorized(MV):
                            product[v] = product[v] + values[l] * flat_w[weight_row(s, tap, i * V + l) * Mp + m + v]
                if rounded:
                    if id[0] >= 0:
                        for v in T.unroll(MV):
                            product[v] = number_of(bits_of(product[v]))
                for v in T.unroll(MV):
                    acc[v] = acc[v] + (product[v] * flat_gains[place + tap_index(o, tap)] if gain else product[v])

    @T.inline
    def body(X, weights, bias, ids, gains, centroids, counts, stats, round, table, Y, B):
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(size))
        height = T.meta_var(capacity(setting, G * T.int64(per_image)) + SPARE_CENTROIDS)
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        flat_w = T.decl_buffer((Kp * Mp,), "float32", data=weights.data)
        flat_ids = T.decl_buffer((U * S * N,), "int32", data=ids.data)
        flat_gains = T.decl_buffer((U * S * N,), "float32", data=gains.data)
        flat_c = T.decl_buffer((U * S * height * Lp,), "float32", data=centroids.data)
        flat_table = T.decl_buffer((U * (together * clusters * stored),), dtype, data=table.data)
        flat_y = T.decl_buffer((B * (rows * M),), "float32", data=Y.data)
        for block in T.thread_binding((B * (rows * per_row) + (THREADS - 1)) // THREADS, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                acc = T.alloc_buffer((MV,), "float32", scope="local")
                id = T.alloc_buffer((1,), "int32", scope="local")
                i = T.meta_var(T.cast(block, "int64") * THREADS + t)
                row = T.meta_var(T.cast(i // per_row, "int32"))
                m = T.meta_var(T.cast(i % per_row, "int32") * MV)
                image = T.meta_var(row // rows)
                o = T.meta_var(row % rows)
                u = T.meta_var(T.cast(image // T.cast(G, "int32"), "int64"))
                if i < B * (rows * per_row):
                    if stats[u, 1] != 0:
                        for v in T.vectorized(MV):
                            acc[v] = T.float32(0) if first else flat_y[T.cast(row, "int64") * M + m + v]
                        for z in range(T.min(together, S - round[0] * together)):
                            s = T.meta_var(round[0] * together + z)
                            place = T.meta_var((u * S + s) * N + image % T.cast(G, "int32") * size)
                            table_row = T.meta_var((u * together + z) * (clusters * stored))
                            add_taps(flat_ids, flat_gains, flat_table, acc, id, place, table_row, m, o)
                            if T.Or(counts[u, s, 0] > clusters, counts[u, s, 1] > 0):
                                centroid_row = T.meta_var((u * S + s) * height * Lp)
                                add_others(
                                    flat_x, flat_w, flat_ids, flat_gains, flat_c, acc, id, place, centroid_row, m,
                                    image, o, s,
                                )  # fmt: skip
                        for v in T.vectorized(MV):
                            flat_y[T.cast(row, "int64") * M + m + v] = act(acc[v] + bias[m + v]) if last else acc[v]

    if gain:

        @T.prim_func(private=True)
        def scaled(
            x: T.handle,
            w: T.handle,
            b: T.handle,
            i: T.handle,
            ga: T.handle,
            ce: T.handle,
            co: T.handle,
            st: T.handle,
            ro: T.handle,
            ta: T.handle,
            y: T.handle,
        ):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            U = T.meta_var(units(setting, B)[0])
            N = T.meta_var(units(setting, B)[1] * T.int64(size))
            height = T.meta_var(capacity(setting, units(setting, B)[1] * T.int64(per_image)) + SPARE_CENTROIDS)
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
            weights = T.match_buffer(w, (T.int64(Kp), T.int64(Mp)), "float32")
            bias = T.match_buffer(b, (T.int64(Mp),), "float32")
            ids = T.match_buffer(i, (U, T.int64(S), N), "int32")
            gains = T.match_buffer(ga, (U, T.int64(S), N), "float32")
            centroids = T.match_buffer(ce, (U, T.int64(S), height, T.int64(Lp)), "float32")
            counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
            stats = T.match_buffer(st, (U, T.int64(2)), "int32")
            round = T.match_buffer(ro, (T.int64(1),), "int32")
            table = T.match_buffer(ta, (U, T.int64(together), T.int64(clusters), T.int64(stored)), dtype)
            Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
            body(X, weights, bias, ids, gains, centroids, counts, stats, round, table, Y, B)

        return scaled

    @T.prim_func(private=True)
    def plain(
        x: T.handle,
        w: T.handle,
        b: T.handle,
        i: T.handle,
        ce: T.handle,
        co: T.handle,
        st: T.handle,
        ro: T.handle,
        ta: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        N = T.meta_var(units(setting, B)[1] * T.int64(size))
        height = T.meta_var(capacity(setting, units(setting, B)[1] * T.int64(per_image)) + SPARE_CENTROIDS)
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        weights = T.match_buffer(w, (T.int64(Kp), T.int64(Mp)), "float32")
        bias = T.match_buffer(b, (T.int64(Mp),), "float32")
        ids = T.match_buffer(i, (U, T.int64(S), N), "int32")
        centroids = T.match_buffer(ce, (U, T.int64(S), height, T.int64(Lp)), "float32")
        counts = T.match_buffer(co, (U, T.int64(S), T.int64(2)), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        round = T.match_buffer(ro, (T.int64(1),), "int32")
        table = T.match_buffer(ta, (U, T.int64(together), T.int64(clusters), T.int64(stored)), dtype)
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        body(X, weights, bias, ids, centroids, centroids, counts, stats, round, table, Y, B)

    return plain
