"""Softmax cross entropy of a batch of logits and its gradient; labels are indices.

loss = mean over rows of log(sum of exp(x)) - sum over classes of t x, with target t = (1 - s) [class = label] + s / C
for label smoothing s; dx = dloss / rows (softmax(x) - t). A label outside of 0 to C - 1 makes both NaN: no memory is
read by it. Rows are independent of each other, and their losses are added in order.
"""

from __future__ import annotations

import functools
import math

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.sliding_window import loop_of
from adr_tvm.schedules.vector_math import exp

EXP_WORK = 16  # operations that an entry comes to
LOWEST = -3.4028234663852886e38
LANES = 16


def _row(C: int):
    """Inline ``(X, row, total)``: total[0] becomes the largest entry of a row, total[1] the sum of exp(x - largest)."""
    body, tail = C // LANES, C % LANES

    @T.inline
    def row_sums(X, row, total):
        lane = T.alloc_buffer((LANES,), "float32")
        for l in T.vectorized(LANES):
            lane[l] = T.float32(LOWEST)
        for v in range(body):
            for l in T.vectorized(LANES):
                lane[l] = T.max(lane[l], X[row, v * LANES + l])
        total[0] = T.float32(LOWEST)
        for l in range(tail):
            total[0] = T.max(total[0], X[row, body * LANES + l])
        for l in T.unroll(LANES):
            total[0] = T.max(total[0], lane[l])
        for l in T.vectorized(LANES):
            lane[l] = T.float32(0)
        for v in range(body):
            for l in T.vectorized(LANES):
                lane[l] = lane[l] + exp(X[row, v * LANES + l] - total[0])
        total[1] = T.float32(0)
        for l in range(tail):
            total[1] = total[1] + exp(X[row, body * LANES + l] - total[0])
        for l in T.unroll(LANES):
            total[1] = total[1] + lane[l]

    return row_sums


def _checked(label: tirx.PrimExpr, C: int, value: tirx.PrimExpr) -> tirx.PrimExpr:
    outside = tirx.Or(label < 0, label >= C)
    return tirx.Select(outside, tirx.const(math.nan, "float32"), value)


@functools.cache
def cross_entropy(rows: int, C: int, smoothing: float) -> tirx.PrimFunc:
    """Returns: PrimFunc of X float32 [rows, C], labels int32 [rows], loss float32 []."""
    loop = loop_of(rows, C * EXP_WORK)
    row_sums = _row(C)

    @T.prim_func(private=True)
    def kernel(x: T.handle, label: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, (T.int64(rows), T.int64(C)), "float32")
        labels = T.match_buffer(label, (T.int64(rows),), "int32")
        Y = T.match_buffer(y, (), "float32")
        losses = T.alloc_buffer((rows,), "float32")
        for row in loop(rows):
            total = T.alloc_buffer((2,), "float32")
            target = T.alloc_buffer((2,), "float32")
            row_sums(X, row, total)
            target[0] = T.float32(0)
            target[1] = T.float32(0)
            for c in range(C):
                target[0] = target[0] + T.Select(labels[row] == c, X[row, c] - total[0], T.float32(0))
                target[1] = target[1] + (X[row, c] - total[0])
            losses[row] = _checked(
                labels[row],
                C,
                T.log(total[1]) - T.float32(1.0 - smoothing) * target[0] - T.float32(smoothing / C) * target[1],
            )
        Y[()] = T.float32(0)
        for row in range(rows):
            Y[()] = Y[()] + losses[row]
        Y[()] = Y[()] * T.float32(1.0 / rows)

    return kernel


@functools.cache
def cross_entropy_gradient(rows: int, C: int, smoothing: float) -> tirx.PrimFunc:
    """Returns: PrimFunc of X float32 [rows, C], labels int32 [rows], dloss float32 [], dX float32 [rows, C]."""
    loop = loop_of(rows, 2 * C * EXP_WORK)
    row_sums = _row(C)

    @T.prim_func(private=True)
    def kernel(x: T.handle, label: T.handle, dy: T.handle, dx: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, (T.int64(rows), T.int64(C)), "float32")
        labels = T.match_buffer(label, (T.int64(rows),), "int32")
        DY = T.match_buffer(dy, (), "float32")
        DX = T.match_buffer(dx, (T.int64(rows), T.int64(C)), "float32")
        for row in loop(rows):
            total = T.alloc_buffer((2,), "float32")
            factor = T.alloc_buffer((1,), "float32")
            row_sums(X, row, total)
            factor[0] = _checked(labels[row], C, DY[()] * T.float32(1.0 / rows))
            total[1] = T.float32(1) / total[1]
            for c in range(C):
                target = T.meta_var(T.Select(labels[row] == c, T.float32(1.0 - smoothing), T.float32(0)))
                DX[row, c] = factor[0] * (exp(X[row, c] - total[0]) * total[1] - (target + T.float32(smoothing / C)))

    return kernel
