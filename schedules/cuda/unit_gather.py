"""Rows of 16-byte units on the way from global to shared memory, where warps take fragments of them.

In shared memory a row of the tile is its UK units side by side. The units of a row are exchanged in a way that depends
on the row, so that neither the copies nor the fragments' reads, which go down the rows, meet in a bank.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cuda.row_gather import find_window
from adr_tvm.schedules.cuda.tensor_tile import UNIT
from adr_tvm.schedules.cuda.warp_matrix import begin_copy, end_copy, store_unit

WORDS = UNIT // 4


class UnitRows:
    """The share of one thread in a tile of ``rows`` rows of UK units; it copies the same unit of ``count`` rows.

    Attributes:
        size: words of the tile.
        count: units that a thread copies.
    """

    def __init__(self, rows: int, UK: int, threads: int):
        self.rows, self.UK, self.threads = rows, UK, threads
        self.size, self.count = rows * UK * WORDS, rows * UK // threads
        if self.count * threads != rows * UK or threads % UK:
            raise ValueError(f"{threads} threads cannot share {rows} rows of {UK} units")

    def row(self, t, i):
        """Row of the tile that is the i-th of thread t."""
        return t // self.UK + i * (self.threads // self.UK)

    def unit(self, t):
        """The unit of each row that thread t copies."""
        return t % self.UK

    def word(self, row, unit):
        """Where a unit lies in the tile, in words."""
        exchanged = unit ^ (row // 2 % 4 if self.UK == 4 else row % self.UK)
        return (row * self.UK + exchanged) * WORDS

    def own_word(self, t, i):
        """Where the i-th unit of thread t lies."""
        return self.word(self.row(t, i), self.unit(t))


class UnitGather(UnitRows):
    """im2col rows in units, (KH, KW, C), gathered from X on the way; zeros outside and from K on.

    Where whole units are of one pixel, they are copied as they are; else a thread reads their entries one by one.

    Attributes:
        E: entries of a unit.
        whole: whether units are copied.
    """

    def __init__(self, geometry: ConvGeometry, rows: int, UK: int, threads: int, dtype: str):
        super().__init__(rows, UK, threads)
        self.geometry, self.dtype = geometry, dtype
        self.E = UNIT // (4 if dtype == "float32" else 2)
        self.whole = geometry.C % self.E == 0

    def find(self):
        """``find_window`` of the geometry."""
        return find_window(self.geometry)

    def begin(self, represented: bool):
        """Inline ``(tile, X, centroids, window, tap, kept, values, step, base, t)``.

        The thread's units of a step of K are asked for: those of its windows or, if ``represented``, of row
        ``centroid[i]`` of ``centroids`` where that is not negative. ``window`` is (pixel, down, right, centroid) of its
        rows, ``base`` where the tile starts in shared memory; ``kept`` and ``values`` hold ``count`` units until
        ``end``. ``tap`` takes four numbers: kept in variables, since TVM would work them out anew for each row.
        """
        g, E, UK, count, unit, own_word = self.geometry, self.E, self.UK, self.count, self.unit, self.own_word
        H, W, C, K, KW, (DH, DW) = g.H, g.W, g.C, g.K, g.KW, g.dilation
        zero = tirx.const(0, self.dtype)

        def of_window(window, tap, i):
            """Index in X of the entry, and whether there is one."""
            pixel, down, right, _ = window
            iy, ix = down[i] + tap[0], right[i] + tap[1]
            inside = T.And(T.And(iy >= 0, iy < H), T.And(T.And(ix >= 0, ix < W), tap[3] < K))
            return T.cast(pixel[i] + iy * W + ix, "int64") * C + tap[2], inside

        def of_centroid(window, tap, i):
            return T.cast(window[3][i], "int64") * K + tap[3], tap[3] < K

        def copy(tile, source, where, inside, kept, base, t, i):
            start = T.if_then_else(inside, where, T.int64(0))
            to = T.address_of(tile[base + own_word(t, i)])
            return begin_copy(T.address_of(kept[i * WORDS]), to, T.address_of(source[start]), inside)

        @T.inline
        def find_tap(tap, k):
            tap[3] = k
            tap[0] = tap[3] // (KW * C) * DH
            tap[1] = tap[3] // C % KW * DW
            tap[2] = tap[3] % C

        @T.inline
        def whole_units(tile, X, centroids, window, tap, kept, values, step, base, t):
            find_tap(tap, (step * UK + unit(t)) * E)
            for i in T.unroll(count):
                if represented:
                    if window[3][i] >= 0:
                        T.evaluate(copy(tile, centroids, *of_centroid(window, tap, i), kept, base, t, i))
                    else:
                        T.evaluate(copy(tile, X, *of_window(window, tap, i), kept, base, t, i))
                else:
                    T.evaluate(copy(tile, X, *of_window(window, tap, i), kept, base, t, i))

        @T.inline
        def read(source, at, values, place):
            values[place] = zero
            if at[1]:
                values[place] = source[at[0]]

        @T.inline
        def entries(tile, X, centroids, window, tap, kept, values, step, base, t):
            for e in T.unroll(E):
                find_tap(tap, (step * UK + unit(t)) * E + e)
                for i in T.unroll(count):
                    if represented:
                        if window[3][i] >= 0:
                            read(centroids, of_centroid(window, tap, i), values, i * E + e)
                        else:
                            read(X, of_window(window, tap, i), values, i * E + e)
                    else:
                        read(X, of_window(window, tap, i), values, i * E + e)

        return whole_units if self.whole else entries

    def end(self):
        """Inline ``(tile, kept, values, base, t)``: what was asked for is, after the next wait, in the tile."""
        count, E, own_word = self.count, self.E, self.own_word
        if self.whole:
            return _end_copies(self)

        @T.inline
        def inline(tile, kept, values, base, t):
            for i in T.unroll(count):
                T.evaluate(store_unit(T.address_of(tile[base + own_word(t, i)]), T.address_of(values[i * E])))

        return inline


def _end_copies(rows: UnitRows):
    count, own_word = rows.count, rows.own_word

    @T.inline
    def inline(tile, kept, values, base, t):
        for i in T.unroll(count):
            T.evaluate(end_copy(T.address_of(kept[i * WORDS]), T.address_of(tile[base + own_word(t, i)])))

    return inline


class WeightRows(UnitRows):
    """Weights [M padded, K padded], K along the rows, as they are read: padded to whole tiles, so all are there."""

    def begin(self, row_entries: int, E: int):
        """Inline ``(tile, packed, kept, first, step, base, t)``: the units of a step of K, from row ``first`` on."""
        UK, count, unit, row, own_word = self.UK, self.count, self.unit, self.row, self.own_word

        @T.inline
        def inline(tile, packed, kept, first, step, base, t):
            for i in T.unroll(count):
                where = T.meta_var((first + row(t, i)) * row_entries + (step * UK + unit(t)) * E)
                to = T.meta_var(T.address_of(tile[base + own_word(t, i)]))
                T.evaluate(begin_copy(T.address_of(kept[i * WORDS]), to, T.address_of(packed[where]), True))

        return inline

    def end(self):
        """Inline ``(tile, kept, values, base, t)``."""
        return _end_copies(self)
