"""Cropping, striding and padding of NHWC images in one copy.

y[b, i, j, c] = x[b, y0 + sy i', x0 + sx j', c'] with i', j', c' the position without the padding; positions in the
padding hold a value, or what lies at the position mirrored at the edge (``reflect``) or at the edge (``replicate``).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.sliding_window import loop_of
from adr_tvm.schedules.transpose_tile import lanes

LANES = 16
TASK_FLOATS = 8 * 1024

Mode = Literal["constant", "reflect", "replicate"]


@dataclass(frozen=True)
class Window:
    """What of an image [H, W, C] is kept, and what is put around it.

    Attributes:
        start, step, size: (row, column) of the first pixel kept, between two, and how many.
        before, after: entries of padding along (rows, columns, channels); channels are padded by ``value`` alone.
    """

    H: int
    W: int
    C: int
    start: tuple[int, int]
    step: tuple[int, int]
    size: tuple[int, int]
    before: tuple[int, int, int] = (0, 0, 0)
    after: tuple[int, int, int] = (0, 0, 0)
    mode: Mode = "constant"
    value: float = 0.0

    @property
    def out(self) -> tuple[int, int, int]:
        """Rows, columns and channels of the result."""
        sizes = (*self.size, self.C)
        rows, cols, channels = (b + n + a for b, n, a in zip(self.before, sizes, self.after, strict=True))
        return rows, cols, channels


@functools.cache
def pad2d(window: Window, batch: int | None = None) -> tirx.PrimFunc:
    """The copy.

    Args:
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of X float32 [B, H * W * C] and Y float32 [B, entries of the result]; B is symbolic.
    """
    w = window
    OH, OW, OC = w.out
    rows_per_task = max(1, TASK_FLOATS // (OW * OC))
    tasks = -(-OH // rows_per_task)
    loop = loop_of(batch, OH * OW * OC)
    whole = w.step[1] == 1 and OC == w.C  # pixels of a row lie together in both

    def row(X: Any, Y: Any, b: Any, i: Any) -> None:
        left, cols = w.before[1], w.size[1]
        y = w.start[0] + w.step[0] * _inside(i - w.before[0], w.size[0], w.mode)
        target = i * (OW * OC)

        def pixel(j: Any) -> None:
            x = w.start[1] + w.step[1] * _inside(j - left, cols, w.mode)
            _fill(Y, b, target + j * OC, w.before[2], w.value)
            _copy(X, (y * w.W + x) * w.C, Y, target + j * OC + w.before[2], b, w.C)
            _fill(Y, b, target + j * OC + w.before[2] + w.C, w.after[2], w.value)

        def kept() -> None:
            if whole:
                _copy(X, (y * w.W + w.start[1]) * w.C, Y, target + left * OC, b, cols * w.C)
                return
            with T.serial(0, cols) as j:
                pixel(j + left)

        if w.mode == "constant":
            inside = T.And(i >= w.before[0], i < w.before[0] + w.size[0])
            with T.If(inside):
                with T.Then():
                    _fill(Y, b, target, left * OC, w.value)
                    kept()
                    _fill(Y, b, target + (left + cols) * OC, w.after[1] * OC, w.value)
                with T.Else():
                    _fill(Y, b, target, OW * OC, w.value)
            return
        for first, count in ((0, left), (left + cols, w.after[1])):
            if count:
                with T.serial(0, count) as j:
                    pixel(first + j)
        kept()

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(w.H * w.W * w.C)), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH * OW * OC)), "float32")
        for task in loop(B * tasks):
            for i in range(T.min(rows_per_task, OH - task % tasks * rows_per_task)):
                row(X, Y, task // tasks, task % tasks * rows_per_task + i)

    return kernel


def _inside(i: Any, size: int, mode: Mode) -> Any:
    """Where the entry at position ``i`` of the padded axis comes from."""
    if mode == "reflect":
        i = T.max(i, -i)
        return T.min(i, 2 * (size - 1) - i)
    if mode == "replicate":
        return T.max(0, T.min(i, size - 1))
    return i


def _copy(X: Any, source: Any, Y: Any, target: Any, b: Any, count: int) -> None:
    """Copy ``count`` entries; the last vector may overlap the one before."""
    if count < LANES:
        if count:
            with T.vectorized(0, count) as l:
                T.buffer_store(Y, X[b, source + l], [b, target + l])
        return
    with T.serial(0, -(-count // LANES)) as v:
        at = T.min(v * LANES, count - LANES)
        T.buffer_store(Y, X[b, lanes(source + at)], [b, lanes(target + at)])


def _fill(Y: Any, b: Any, target: Any, count: int, value: float) -> None:
    if count < LANES:
        if count:
            with T.vectorized(0, count) as l:
                T.buffer_store(Y, T.float32(value), [b, target + l])
        return
    with T.serial(0, -(-count // LANES)) as v:
        at = T.min(v * LANES, count - LANES)
        T.buffer_store(Y, T.Broadcast(T.float32(value), LANES), [b, lanes(target + at)])
