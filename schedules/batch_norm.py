"""Batch normalisation with the statistics of the batch, and its gradient; each reads its input from memory twice.

For x [rows, C], all by channel: mean, variance = mean of (x - mean)^2, r = 1 / sqrt(variance + epsilon),
y = gamma (x - mean) r + beta. With x' = (x - mean) r: dbeta = sum of dy, dgamma = sum of dy x',
dx = gamma r (dy - dbeta / rows - x' dgamma / rows) (Ioffe, Szegedy, "Batch Normalization", ICML 2015, section 3).

Rows are cut into parts by shape alone. The part's mean and its sum of squares around that mean are taken while it is in
the cache, and parts are joined in order by Chan's formula, so nothing cancels and no byte depends on the threads.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.register_tile import Isa

PART_FLOATS = 64 * 1024  # of a part: twice 256 KB stay in L2
ROWS = 4  # added in a register before a sum is stored again


def _parts(rows: int, C: int) -> tuple[int, int]:
    """(rows of a part, number of parts)."""
    size = max(1, min(rows, PART_FLOATS // C))
    return size, -(-rows // size)


def _vector_loop(C: int, isa: Isa, body: Any) -> Any:
    """Inline that emits ``body(arguments, first channel, channels)`` for the vectors of a row."""
    lanes, rest = isa.lanes, C % isa.lanes

    @T.inline
    def loop(arguments):
        for v in range(C // lanes):
            body(arguments, v * lanes, lanes)
        if rest > 0:
            body(arguments, C - rest, rest)

    return loop


@functools.cache
def batch_norm(rows: int, C: int, epsilon: float, isa: Isa) -> tirx.PrimFunc:
    """Returns: PrimFunc of X [rows, C], gamma and beta [C], Y [rows, C], mean and variance [C], all float32."""
    size, parts = _parts(rows, C)

    def add_values(arguments, c, lanes):
        X, sums, part, first, count = arguments
        total = T.bind(sums[part, across(c, lanes)])
        for i in range(count):
            total = T.bind(total + X[first + i, across(c, lanes)])
        T.buffer_store(sums, total, [part, across(c, lanes)])

    def add_squares(arguments, c, lanes):
        X, sums, squares, part, first, count, factor = arguments
        mean = T.bind(sums[part, across(c, lanes)] * factor)
        total = T.bind(squares[part, across(c, lanes)])
        for i in range(count):
            centred = T.bind(X[first + i, across(c, lanes)] - mean)
            total = T.bind(total + centred * centred)
        T.buffer_store(squares, total, [part, across(c, lanes)])

    def normalise(arguments, c, lanes):
        X, Y, scale, shift, row = arguments
        place = across(c, lanes)
        T.buffer_store(Y, X[row, place] * scale[place] + shift[place], [row, place])

    values, squared, normalised = (_vector_loop(C, isa, body) for body in (add_values, add_squares, normalise))

    @T.inline
    def statistics(X, sums, squares, part):
        for c in range(C):
            sums[part, c] = T.float32(0)
            squares[part, c] = T.float32(0)
        count = T.meta_var(T.min(T.int64(size), rows - part * size))
        factor = T.meta_var(T.float32(1) / T.Cast("float32", count))
        for block in range(count // ROWS):
            values((X, sums, part, part * size + block * ROWS, ROWS))
        for i in range(count % ROWS):
            values((X, sums, part, part * size + count // ROWS * ROWS + i, 1))
        for block in range(count // ROWS):
            squared((X, sums, squares, part, part * size + block * ROWS, ROWS, factor))
        for i in range(count % ROWS):
            squared((X, sums, squares, part, part * size + count // ROWS * ROWS + i, 1, factor))

    @T.inline
    def join(sums, squares, mean, variance):
        for c in range(C):
            mean[c] = T.float32(0)
            variance[c] = T.float32(0)
        for part in range(parts):
            before = T.meta_var(T.Cast("float32", part * size))
            count = T.meta_var(T.Cast("float32", T.min(size, rows - part * size)))
            for c in range(C):
                distance = T.meta_var(sums[part, c] / count - mean[c])
                # First the squares: they need the mean of the parts before.
                variance[c] = variance[c] + squares[part, c] + distance * distance * (before * count / (before + count))
                mean[c] = mean[c] + distance * (count / (before + count))
        for c in range(C):
            variance[c] = variance[c] * T.float32(1.0 / rows)

    @T.prim_func(private=True)
    def kernel(x: T.handle, g: T.handle, b: T.handle, y: T.handle, m: T.handle, v: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, (T.int64(rows), T.int64(C)), "float32")
        gamma = T.match_buffer(g, (T.int64(C),), "float32")
        beta = T.match_buffer(b, (T.int64(C),), "float32")
        Y = T.match_buffer(y, (T.int64(rows), T.int64(C)), "float32")
        mean = T.match_buffer(m, (T.int64(C),), "float32")
        variance = T.match_buffer(v, (T.int64(C),), "float32")
        sums = T.alloc_buffer((parts, C), "float32")
        squares = T.alloc_buffer((parts, C), "float32")
        scale = T.alloc_buffer((C,), "float32")
        shift = T.alloc_buffer((C,), "float32")
        for part in T.parallel(T.int64(parts)):
            statistics(X, sums, squares, part)
        join(sums, squares, mean, variance)
        for c in range(C):
            scale[c] = gamma[c] / T.sqrt(variance[c] + T.float32(epsilon))
            shift[c] = beta[c] - mean[c] * scale[c]
        for part in T.parallel(T.int64(parts)):
            for i in range(T.min(T.int64(size), rows - part * size)):
                normalised((X, Y, scale, shift, part * size + i))

    return kernel


@functools.cache
def batch_norm_gradient(rows: int, C: int, epsilon: float, isa: Isa) -> tirx.PrimFunc:
    """Returns: PrimFunc of X [rows, C], gamma, mean and variance [C], dY [rows, C], dX [rows, C], dgamma and dbeta [C],
    all float32."""
    size, parts = _parts(rows, C)

    def add(arguments, c, lanes):
        X, DY, mean, sums, products, part, first, count = arguments
        place = across(c, lanes)
        centre = T.bind(mean[place])
        total, product = T.bind(sums[part, place]), T.bind(products[part, place])
        for i in range(count):
            dy = T.bind(DY[first + i, place])
            total = T.bind(total + dy)
            product = T.bind(product + dy * (X[first + i, place] - centre))
        T.buffer_store(sums, total, [part, place])
        T.buffer_store(products, product, [part, place])

    def combine(arguments, c, lanes):
        X, DY, DX, scale, slope, shift, row = arguments
        place = across(c, lanes)
        dx = scale[place] * DY[row, place] + slope[place] * X[row, place] + shift[place]
        T.buffer_store(DX, dx, [row, place])

    added, combined = (_vector_loop(C, isa, body) for body in (add, combine))

    @T.inline
    def part_sums(X, DY, mean, sums, products, part):
        for c in range(C):
            sums[part, c] = T.float32(0)
            products[part, c] = T.float32(0)
        count = T.meta_var(T.min(T.int64(size), rows - part * size))
        for block in range(count // ROWS):
            added((X, DY, mean, sums, products, part, part * size + block * ROWS, ROWS))
        for i in range(count % ROWS):
            added((X, DY, mean, sums, products, part, part * size + count // ROWS * ROWS + i, 1))

    @T.prim_func(private=True)
    def kernel(
        x: T.handle,
        g: T.handle,
        m: T.handle,
        v: T.handle,
        dy: T.handle,
        dx: T.handle,
        dg: T.handle,
        db: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, (T.int64(rows), T.int64(C)), "float32")
        gamma = T.match_buffer(g, (T.int64(C),), "float32")
        mean = T.match_buffer(m, (T.int64(C),), "float32")
        variance = T.match_buffer(v, (T.int64(C),), "float32")
        DY = T.match_buffer(dy, (T.int64(rows), T.int64(C)), "float32")
        DX = T.match_buffer(dx, (T.int64(rows), T.int64(C)), "float32")
        DG = T.match_buffer(dg, (T.int64(C),), "float32")
        DB = T.match_buffer(db, (T.int64(C),), "float32")
        sums = T.alloc_buffer((parts, C), "float32")
        products = T.alloc_buffer((parts, C), "float32")
        scale = T.alloc_buffer((C,), "float32")
        slope = T.alloc_buffer((C,), "float32")
        shift = T.alloc_buffer((C,), "float32")
        for part in T.parallel(T.int64(parts)):
            part_sums(X, DY, mean, sums, products, part)
        for c in range(C):
            DG[c] = T.float32(0)
            DB[c] = T.float32(0)
        for part in range(parts):
            for c in range(C):
                DG[c] = DG[c] + products[part, c]
                DB[c] = DB[c] + sums[part, c]
        for c in range(C):
            scale[c] = T.float32(1) / T.sqrt(variance[c] + T.float32(epsilon))
            DG[c] = DG[c] * scale[c]
            # dx = gamma r dy + slope x + shift
            slope[c] = T.float32(-1.0 / rows) * gamma[c] * scale[c] * scale[c] * DG[c]
            scale[c] = scale[c] * gamma[c]
            shift[c] = T.float32(-1.0 / rows) * scale[c] * DB[c] - slope[c] * mean[c]
        for part in T.parallel(T.int64(parts)):
            for i in range(T.min(T.int64(size), rows - part * size)):
                combined((X, DY, DX, scale, slope, shift, part * size + i))

    return kernel
