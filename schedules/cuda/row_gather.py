"""im2col on the way from global to shared memory: how a block reads a tile of rows, BK entries of K at a time."""

from __future__ import annotations

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cuda.thread_tile import SKEW

OUTSIDE = -(1 << 20)  # row of X that no window reaches


def find_window(geometry: ConvGeometry):
    """Inline ``(pixel, down, right, i, n)``: where the window of row n of all images lies; kept for the i-th."""
    g = geometry
    H, W, OW, rows, (SH, SW), (PT, PL) = g.H, g.W, g.OW, g.rows, g.strides, g.padding[:2]

    @T.inline
    def inline(pixel, down, right, i, n):
        pixel[i] = n // rows * (H * W)
        down[i] = n % rows // OW * SH - PT
        right[i] = n % rows % OW * SW - PL

    return inline


class RowGather:
    """The share of one thread in a tile of ``rows`` im2col rows by BK entries of K, (KH, KW, C).

    Entries of K lie side by side in memory, so neighbouring threads read them; each thread reads the same entries of
    ``count`` rows. In shared memory the tile lies transposed, [BK, pitch], in one of several slots; flat, since TVM
    would cut a second axis down to the rows.

    Attributes:
        V: neighbouring entries that a thread reads of a row: 16 bytes, or those that C lets it.
        pitch, size: floats of a row and of a slot of the tile in shared memory.
        count: rows that a thread reads from.
    """

    def __init__(self, geometry: ConvGeometry, rows: int, BK: int, threads: int, dtype: str = "float32"):
        self.geometry = geometry
        self.pitch, self.size = rows + SKEW, BK * (rows + SKEW)
        widest = (4,) if dtype == "float32" else (8, 4)
        self.V = next((V for V in widest if geometry.C % V == 0), 1)
        self.across, self.threads = BK // self.V, threads
        self.count = rows * self.across // threads
        if self.count * threads != rows * self.across or threads % self.across:
            raise ValueError(f"{threads} threads cannot share {rows} rows of {BK} entries, {self.V} at once")

    def row(self, t, i):
        """Row of the tile that is the i-th of thread t."""
        return t // self.across + i * (self.threads // self.across)

    def entry(self, t):
        """First of the entries of K that thread t reads."""
        return t % self.across * self.V

    def find(self):
        """``find_window`` of the geometry."""
        return find_window(self.geometry)

    def load(self):
        """Inline ``(X, pixel, down, right, values, i, k)``: entries k to k + V of the i-th row, as fp32; X is flat."""
        g, V, lanes = self.geometry, self.V, min(self.V, 4)
        H, W, C, K, KW, (DH, DW) = g.H, g.W, g.C, g.K, g.KW, g.dilation

        @T.inline
        def inline(X, pixel, down, right, values, i, k):
            iy = T.meta_var(down[i] + k // C // KW * DH)
            ix = T.meta_var(right[i] + k // C % KW * DW)
            if T.And(T.And(iy >= 0, iy < H), T.And(T.And(ix >= 0, ix < W), k < K)):
                for part in T.unroll(V // lanes):
                    for v in T.vectorized(lanes):
                        first = T.meta_var((T.cast(pixel[i] + iy * W + ix, "int64")) * C + k % C + part * lanes)
                        values[i * V + part * lanes + v] = T.cast(X[first + v], "float32")
            else:
                for part in T.unroll(V // lanes):
                    for v in T.vectorized(lanes):
                        values[i * V + part * lanes + v] = T.float32(0)

        return inline

    def put(self):
        """Inline ``(tile, values, slot, t)``: what was read, into shared memory."""
        V, count, row, entry, pitch, size = self.V, self.count, self.row, self.entry, self.pitch, self.size

        @T.inline
        def inline(tile, values, slot, t):
            for i in T.unroll(count):
                for v in T.unroll(V):
                    tile[slot * size + (entry(t) + v) * pitch + row(t, i)] = values[i * V + v]

        return inline
