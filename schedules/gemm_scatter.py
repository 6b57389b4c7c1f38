"""Centroid GEMM and gather-add for ``pixel`` and ``segment`` (``docs/algorithm.md``, clauses 10 to 13 and 15).

Per unit and block of output channels: the products of a few segments' centroids with the weights of every tap form
a table that stays in L2, then each output pixel adds the table rows its ids name. Tables hold a fixed number of
clusters; more clusters take more rounds. GEMM and scatter share one kernel because only so does the table never
leave the cache, and memory never grow with the number of clusters. A unit over its ``max_clusters`` runs dense.
"""

from __future__ import annotations

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import SPARE_CENTROIDS, capacity, units
from adr_tvm.schedules.dense_conv2d import dense_image
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.gather_add import find_places, gather_add, piece_columns, place_pairs
from adr_tvm.schedules.neuron_vectors import vector_source
from adr_tvm.schedules.product_gemm import WeightVectors, product_gemm, product_steps
from adr_tvm.schedules.product_table import row_of, table_format
from adr_tvm.schedules.register_tile import RegisterTile
from adr_tvm.schedules.reuse_schedule import BAND_ROWS, UNROLLED, ReuseSchedule, table_clusters, table_of
from adr_tvm.schedules.transpose_tile import lanes, splat
from adr_tvm.schedules.vector_key import NON_FINITE
from adr_tvm.settings import ReuseSetting


def _vector_width(NR: int, channels: int, table: str) -> int:
    """Floats handled as one vector: they lie in one block of packed weights, and formats that pair vectors get two."""
    return math.gcd(16, NR, channels // 2 if table in ("bfloat16", "int8") else channels)


class _Output:
    """One block of channels of Y [B, OH, OW, M], as vectors of ``width``; the last may be part empty."""

    def __init__(self, Y, bias, geometry: ConvGeometry, block, channels: int, width: int, act):
        self.Y, self.bias, self.geometry, self.act = Y, bias, geometry, act
        self.first, self.width, self.vectors = block * channels, width, range(channels // width)
        self.whole = geometry.M % channels == 0

    def at(self, image, n, m) -> list:
        return [image, n // self.geometry.OW, n % self.geometry.OW, m]

    def load(self, image, n) -> list:
        """The sums so far of output pixel n; beyond the last channel they are whatever."""
        if self.whole:
            return [
                T.bind(self.Y[(*self.at(image, n, lanes(self.first + v * self.width, self.width)),)])
                for v in self.vectors
            ]
        last = self.geometry.M - 1
        return [
            T.bind(
                T.Shuffle(
                    [
                        self.Y[(*self.at(image, n, T.min(self.first + (v * self.width + j), last)),)]
                        for j in range(self.width)
                    ],
                    list(range(self.width)),
                )
            )
            for v in self.vectors
        ]

    def finished(self, sums) -> list:
        """The epilogue."""
        top = int(self.bias.shape[0]) - self.width
        starts = [self.first + v * self.width for v in self.vectors]
        if not self.whole:
            starts = [T.min(m, top) for m in starts]
        return [T.bind(self.act(s + self.bias[lanes(m, self.width)])) for s, m in zip(sums, starts, strict=True)]

    def store(self, sums, image, n) -> None:
        """Write output pixel n."""
        M, w = self.geometry.M, self.width
        for v in self.vectors:
            m = self.first + v * w
            if self.whole:
                T.buffer_store(self.Y, sums[v], self.at(image, n, lanes(m, w)))
                continue
            for j in range(w):
                with T.If(m + j < M), T.Then():
                    T.buffer_store(self.Y, T.Shuffle([sums[v]], [j]), self.at(image, n, m + j))


@functools.cache
def gemm_scatter(
    geometry: ConvGeometry, setting: ReuseSetting, activation: Activation, tile: RegisterTile, schedule: ReuseSchedule
) -> tirx.PrimFunc:
    """Y = activation(sum of centroid products + bias).

    Args:
        tile: that of the packed weights; with it a unit runs dense.
        schedule: how the rest is cut up.

    Returns:
        PrimFunc of X float32 [B, H, W, C], packed weights float32 [M/NR, K, NR], bias float32 [M padded to NR],
        the outputs of ``cluster`` (ids, gains, centroids, counts, stats), and Y float32 [B, OH, OW, M].
    """
    source = vector_source(geometry, setting)
    grid, act = source.grid, activation_expr(activation)
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
    NR, gain, NB = tile.NR, setting.gain, schedule.channels
    together, at_once, blocks = schedule.together, min(schedule.columns, grid.columns), -(-M // schedule.channels)
    kind = table_of(geometry, setting)
    w = _vector_width(NR, NB, kind)
    table = table_format(kind, NB, w, taps, S)
    clusters, rounds = table_clusters(geometry, setting), -(-S // together)
    rows = schedule.rows
    fill, dense = product_gemm(source, table, rows), dense_image(geometry, activation, tile)
    find_steps = product_steps(source, table, table.levels if table.scaled else 1)
    bands = schedule.bands if setting.scope == "batch" else min(schedule.bands, grid.rows)
    least = -(-BAND_ROWS // grid.columns)  # rows of a band
    in_piece = piece_columns(grid, at_once)
    segment_size = (clusters + 1 + rows) * taps * table.row
    unit = max(1, min(together, UNROLLED // (taps * at_once * table.vectors)))  # segments written out
    tap_index, load = source.tap_index, source.load
    sum_lanes, sum_dtype, sum_count = table.accumulator

    def zeros() -> list:
        return [splat(T.float32(0), w)] * (NB // w)

    def read_sums(sums, columns) -> list:
        return [[T.bind(sums[c, a, lanes(0, sum_lanes)]) for a in range(sum_count)] for c in range(columns)]

    def write_sums(sums, values) -> None:
        for c, column in enumerate(values):
            for a, vector in enumerate(column):
                T.buffer_store(sums, vector, [c, a, lanes(0, sum_lanes)])

    def add_segments(sums, columns, flat, places, gains, u, s, z, x, start, count) -> None:
        values = read_sums(sums, columns)
        for i in range(count):

            def factor(ky, dx, s=s + i):
                return gains[u, s, start + (ky * grid.DH * grid.pitch + dx)]

            rows = (flat, lambda z: T.cast(z, "int64") * segment_size)
            values = gather_add(
                grid, table, values, rows, places, z + i, x, factor if gain else None, at_once * grid.SW % 2 == 0
            )
        write_sums(sums, values)

    def old_sums(output, image, n, columns, first) -> list:
        return [zeros() if first else output.load(image, n + c) for c in range(columns)]

    def begin(sums, output, image, n, columns, first) -> None:
        write_sums(sums, [table.start(old) for old in old_sums(output, image, n, columns, first)])

    def end(sums, output, image, n, columns, first, last, terms, step) -> None:
        olds = old_sums(output, image, n, columns, first) if table.scaled else [[]] * columns
        steps = [step[lanes(v * w, w)] for v in range(NB // w)] if table.scaled else []
        for c, (values, old) in enumerate(zip(read_sums(sums, columns), olds, strict=True)):
            result = table.total(values, old, terms, steps)
            output.store(output.finished(result) if last else result, image, n + c)

    @T.inline
    def columns_of(Y, bias, flat, places, gains, step, u, image, block, n, x, start, columns, r, first, last):
        """Output pixels n ... of an image, the first at column x of the piece whose ids start at ``start``."""
        output = T.meta_var(_Output(Y, bias, geometry, block, NB, w, act))
        sums = T.alloc_buffer((columns, sum_count, sum_lanes), sum_dtype, scope="local")
        count = T.meta_var(T.min(together, S - r * together))
        begin(sums, output, image, n, columns, first)
        for i in range(count // unit):
            add_segments(sums, columns, flat, places, gains, u, r * together + i * unit, i * unit, x, start, unit)
        if unit > 1:
            for i in range(count % unit):
                z = T.meta_var(count // unit * unit + i)
                add_segments(sums, columns, flat, places, gains, u, r * together + z, z, x, start, 1)
        end(sums, output, image, n, columns, first, last, count * taps, step)

    @T.inline
    def piece(Y, bias, flat, places, ids, gains, step, u, g, block, y, x, columns, r, first, last):
        start = T.meta_var(g * map_size + y * (grid.SH * grid.pitch) + x * grid.SW)
        find = T.meta_var(find_places(grid, columns, taps * table.row))
        n = T.meta_var(y * grid.columns + x)
        rest = T.meta_var(columns % at_once)
        for z in range(T.min(together, S - r * together)):
            find(places, ids, u, r * together + z, z, start)
        for i in range(columns // at_once):
            columns_of(
                Y,
                bias,
                flat,
                places,
                gains,
                step,
                u,
                u + g,
                block,
                n + i * at_once,
                i * at_once,
                start,
                at_once,
                r,
                first,
                last,
            )
        if columns % at_once > 0:
            columns_of(
                Y,
                bias,
                flat,
                places,
                gains,
                step,
                u,
                u + g,
                block,
                n + (columns - rest),
                columns - rest,
                start,
                rest,
                r,
                first,
                last,
            )

    def lines_of(G, band):
        """(first, number) of the rows of output pixels of a band, counted through the images of a unit."""
        lines = G * grid.rows
        size = T.max(-(-lines // bands), least) if setting.scope == "batch" else -(-grid.rows // bands)
        return band * size, T.max(T.min(size, lines - band * size), 0)

    @T.inline
    def gather(Y, bias, flat, places, ids, gains, step, u, G, block, band, r, first, last):
        begin = T.meta_var(lines_of(G, band)[0])
        for i in range(lines_of(G, band)[1]):
            g = T.meta_var((begin + i) // grid.rows)
            y = T.meta_var((begin + i) % grid.rows)
            for j in range(grid.columns // in_piece):
                piece(Y, bias, flat, places, ids, gains, step, u, g, block, y, j * in_piece, in_piece, r, first, last)
            if grid.columns % in_piece > 0:
                rest = T.meta_var(grid.columns % in_piece)
                x = T.meta_var(grid.columns - rest)
                piece(Y, bias, flat, places, ids, gains, step, u, g, block, y, x, rest, r, first, last)

    def add_own_product(own, v, packed, s, t, l, block) -> None:
        for i, weights in enumerate(WeightVectors(packed, block, table).load(source.weight_row(s, t, l))):
            at = lanes(i * w, w)
            T.buffer_store(own, own[at] + splat(v[l], w) * weights, [at])

    def add_row(own, buffer, gains, step, u, s, z, q, t, here) -> None:
        steps = [step[lanes(v * w, w)] for v in range(NB // w)] if table.scaled else []
        old = [T.bind(own[lanes(v * w, w)]) for v in range(NB // w)]
        factor = T.bind(gains[u, s, q]) if gain else None
        result = table.total(
            table.add(table.start(old), row_of(buffer, [z, here + 1, t]), factor), old, T.int32(1), steps
        )
        keep(own, result)

    def keep(own, values) -> None:
        for v, vector in enumerate(values):
            T.buffer_store(own, vector, [lanes(v * w, w)])

    def values_of(own) -> list:
        return [T.bind(own[lanes(v * w, w)]) for v in range(NB // w)]

    @T.inline
    def gather_any(X, packed, Y, bias, buffer, ids, gains, step, u, G, block, band, r, part, parts, v, seen):
        """Any number of clusters, and vectors that stand for themselves."""
        own = T.alloc_buffer((NB,), "float32", scope="local")
        output = T.meta_var(_Output(Y, bias, geometry, block, NB, w, act))
        begin_line = T.meta_var(lines_of(G, band)[0])
        for i in range(lines_of(G, band)[1] * grid.columns):
            g = T.meta_var((begin_line * grid.columns + i) // (grid.rows * grid.columns))
            n = T.meta_var((begin_line * grid.columns + i) % (grid.rows * grid.columns))
            if T.And(r == 0, part == 0):
                keep(own, zeros())
            else:
                keep(own, output.load(u + g, n))
            for z in range(T.min(together, S - r * together)):
                s = T.meta_var(r * together + z)
                for t in range(taps):
                    q = T.meta_var(g * map_size + tap_index(n, t))
                    here = T.meta_var(ids[u, s, q] - part * clusters)
                    if T.And(ids[u, s, q] >= 0, T.And(here >= 0, here < clusters)):
                        add_row(own, buffer, gains, step, u, s, z, q, t, here)
                    elif T.And(ids[u, s, q] == NON_FINITE, part == 0):
                        load(X, u + g, source.tap_position(n, t), s, v, seen)
                        for l in range(source.valid_length(s)):
                            add_own_product(own, v, packed, s, t, l, block)
            if T.And(r == rounds - 1, part == parts - 1):
                keep(own, output.finished(values_of(own)))
            output.store(values_of(own), u + g, n)

    @T.prim_func(private=True)
    def kernel(
        x: T.handle,
        w_: T.handle,
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
        packed = T.match_buffer(w_, (T.int64(-(-M // NR)), T.int64(K), T.int64(NR)), "float32")
        bias = T.match_buffer(b, (T.int64(-(-M // NR) * NR),), "float32")
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
        for task in T.parallel(U * blocks * bands):
            u = T.meta_var(task // (blocks * bands))
            block = T.meta_var(task // bands % blocks)
            band = T.meta_var(task % bands)
            buffer = T.alloc_buffer((together, clusters + 1 + rows, taps, table.row), table.dtype)
            flat = T.decl_buffer((together * segment_size,), table.dtype, data=buffer.data)
            places = T.alloc_buffer((together, grid.KH, place_pairs(grid, in_piece)), "int64")
            step = T.alloc_buffer((NB,), "float32")
            inverse = T.alloc_buffer((NB,), "float32")
            v = T.alloc_buffer((Lp,), "float32", scope="local")
            seen = T.alloc_buffer((1,), "int32", scope="local")
            most = T.alloc_buffer((2,), "int32", scope="local")  # clusters of the fullest segment; non-finite vectors
            if T.And(stats[u, 1] != 0, lines_of(G, band)[1] > 0):
                if table.scaled:
                    find_steps(centroids, counts, packed, step, inverse, u, block)
                for r in range(rounds):
                    most[0] = 0
                    most[1] = 0
                    for z in range(T.min(together, S - r * together)):
                        most[0] = T.max(most[0], counts[u, r * together + z, 0])
                        most[1] = most[1] + counts[u, r * together + z, 1]
                    parts = T.meta_var(T.max((most[0] + clusters - 1) // clusters, 1))
                    for part in range(parts):
                        for z in range(T.min(together, S - r * together)):
                            s = T.meta_var(r * together + z)
                            count = T.meta_var(T.max(T.min(clusters, counts[u, s, 0] - part * clusters), 0))
                            fill(centroids, packed, buffer, inverse, u, s, z, block, part * clusters, count)
                        if T.Or(most[0] > clusters, most[1] > 0):
                            gather_any(
                                X, packed, Y, bias, buffer, ids, gains, step, u, G, block, band, r, part, parts, v, seen
                            )
                        elif rounds == 1:
                            gather(Y, bias, flat, places, ids, gains, step, u, G, block, band, r, True, True)
                        elif r == 0:
                            gather(Y, bias, flat, places, ids, gains, step, u, G, block, band, r, True, False)
                        elif r == rounds - 1:
                            gather(Y, bias, flat, places, ids, gains, step, u, G, block, band, r, False, True)
                        elif rounds > 2:
                            gather(Y, bias, flat, places, ids, gains, step, u, G, block, band, r, False, False)
        for u in range(U):
            if stats[u, 1] == 0:
                for g in range(G):
                    dense(X, packed, bias, Y, u + g)

    return kernel
