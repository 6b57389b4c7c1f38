"""Products of centroids with the weights of every tap, made straight into a table.

Clauses 10 and 15 of ``docs/algorithm.md``.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.neuron_vectors import VectorSource
from adr_tvm.schedules.product_table import TableFormat, Vectors
from adr_tvm.schedules.transpose_tile import lanes, splat


class WeightVectors:
    """Vectors of a block of output channels in packed weights [ceil(M / NR), K, NR]."""

    def __init__(self, packed: Any, block: Any, table: TableFormat):
        self.packed, self.table = packed, table
        self.first = block * table.channels

    def load(self, row: Any) -> Vectors:
        """Row ``row`` of K; beyond the last channel it holds whatever, which nothing keeps."""
        blocks, _, NR = (int(d) for d in self.packed.shape)
        width = self.table.width
        result = []
        for v in range(self.table.vectors):
            m = self.first + v * width
            result.append(T.bind(self.packed[tirx.min(m // NR, blocks - 1), row, lanes(m % NR, width)]))
        return result


def product_gemm(source: VectorSource, table: TableFormat, rows: int):
    """Inline ``(centroids, packed, buffer, inverse, u, s, z, block, first, count)``.

    buffer[z, 1 + c, t] = the row of centroid first + c of segment s times the weights of tap t and block, c < count;
    row 0 is that of pads. ``inverse`` float32 [channels] is 1 / step.
    """
    taps, w = source.taps, table.width

    def store(buffer, index, encoded):
        size = table.row // len(encoded)
        for i, vector in enumerate(encoded):
            T.buffer_store(buffer, vector, [*index, lanes(i * size, size)])

    def encode_and_store(buffer, inverse, z, c, t, sums):
        factors = [inverse[lanes(v * w, w)] for v in range(table.vectors)] if table.scaled else []
        for i, products in enumerate(sums):
            store(buffer, [z, c + i, t], table.encode(products, factors))

    def accumulate(acc, centroids, u, s, c, l, row):
        for i in range(rows):
            for v, weights in enumerate(row):
                at = [i, lanes(v * w, w)]
                T.buffer_store(acc, acc[i, lanes(v * w, w)] + splat(centroids[u, s, c + i, l], w) * weights, at)

    @T.inline
    def multiply(centroids, packed, buffer, inverse, u, s, z, block, first, panel, t):
        acc = T.alloc_buffer((rows, table.channels), "float32", scope="local")
        for i in T.unroll(rows):
            for v in T.unroll(table.vectors):
                acc[i, lanes(v * w, w)] = splat(T.float32(0), w)
        for l in range(source.valid_length(s)):
            row = T.meta_var(WeightVectors(packed, block, table).load(source.weight_row(s, t, l)))
            accumulate(acc, centroids, u, s, first + panel * rows, l, row)
        sums = T.meta_var([[acc[i, lanes(v * w, w)] for v in range(table.vectors)] for i in range(rows)])
        encode_and_store(buffer, inverse, z, 1 + panel * rows, t, sums)

    def clear_pads(buffer, z):
        for t in range(taps):
            store(buffer, [z, 0, t], [splat(table.empty, table.row)])

    @T.inline
    def inline(centroids, packed, buffer, inverse, u, s, z, block, first, count):
        clear_pads(buffer, z)
        for panel in range((count + rows - 1) // rows):
            for t in range(taps):
                multiply(centroids, packed, buffer, inverse, u, s, z, block, first, panel, t)

    return inline


def product_steps(source: VectorSource, table: TableFormat, levels: int):
    """Inline ``(centroids, counts, packed, step, inverse, u, block)``: the steps of clause 15 and 1 / step.

    ``step`` and ``inverse`` are float32 [channels].
    """
    S, Lp, taps, w = source.segments, source.Lp, source.taps, table.width
    vectors = range(table.vectors)

    def squared_norm(centroids, u, s, c):
        total = splat(T.float32(0))
        for chunk in range(0, Lp, 16):
            entries = T.bind(centroids[u, s, c, lanes(chunk)])
            total = T.bind(total + entries * entries)
        for half in (8, 4, 2, 1):
            total = T.bind(total + T.Shuffle([total], [j ^ half for j in range(16)]))
        return T.Shuffle([total], [0])

    def add_squares(squares, weights):
        for v in vectors:
            at = [lanes(v * w, w)]
            T.buffer_store(squares, squares[lanes(v * w, w)] + weights[v] * weights[v], at)

    @T.inline
    def inline(centroids, counts, packed, step, inverse, u, block):
        squares = T.alloc_buffer((table.channels,), "float32", scope="local")
        most = T.alloc_buffer((table.channels,), "float32", scope="local")
        largest = T.alloc_buffer((1,), "float32", scope="local")
        for v in T.unroll(table.vectors):
            step[lanes(v * w, w)] = splat(T.float32(0), w)
        for s in range(S):
            largest[0] = T.float32(0)
            for c in range(counts[u, s, 0]):
                largest[0] = T.max(largest[0], squared_norm(centroids, u, s, c))
            for v in T.unroll(table.vectors):
                most[lanes(v * w, w)] = splat(T.float32(0), w)
            for t in range(taps):
                for v in T.unroll(table.vectors):
                    squares[lanes(v * w, w)] = splat(T.float32(0), w)
                for l in range(source.valid_length(s)):
                    row = T.meta_var(WeightVectors(packed, block, table).load(source.weight_row(s, t, l)))
                    add_squares(squares, row)
                for v in T.unroll(table.vectors):
                    most[lanes(v * w, w)] = T.max(most[lanes(v * w, w)], squares[lanes(v * w, w)])
            for v in T.unroll(table.vectors):
                step[lanes(v * w, w)] = T.max(step[lanes(v * w, w)], most[lanes(v * w, w)] * splat(largest[0], w))
        for j in range(table.channels):
            if step[j] > T.float32(0):
                step[j] = T.sqrt(step[j])
                inverse[j] = T.float32(levels) / step[j]
                step[j] = step[j] / T.float32(levels)
            else:
                inverse[j] = T.float32(0)

    return inline
