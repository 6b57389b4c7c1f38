"""Local response normalisation across the channels of NHWC images, and its gradient; each one kernel.

y[c] = x[c] s[c]^-beta with s[c] = bias + f * sum of x[c - before .. c + after]^2, f = alpha / size and size = before +
1 + after (Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 3.3).
With t = dy x s^(-beta - 1): dx[c] = dy[c] s[c]^-beta - 2 beta f x[c] * sum of t[c - after .. c + before].
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.vector_math import inverse_power

TASK_PIXELS = 64


@dataclass(frozen=True)
class Lrn:
    """The window and the constants."""

    before: int
    after: int
    alpha: float
    beta: float
    bias: float

    @property
    def size(self) -> int:
        """Channels in the window."""
        return self.before + 1 + self.after

    @property
    def factor(self) -> float:
        """What the sum of squares is multiplied with."""
        return self.alpha / self.size


def _blocks(C: int, lanes: int) -> list[tuple[int, int]]:
    """(first channel, channels) of the vectors of a pixel."""
    return [(c, min(lanes, C - c)) for c in range(0, C, lanes)]


def _window(row: Any, start: int, size: int, width: int) -> tirx.PrimExpr:
    """Sum of ``size`` vectors of a row, each one entry further."""
    total = T.bind(row[across(start, width)])
    for k in range(1, size):
        total = T.bind(total + row[across(start + k, width)])
    return total


def _normaliser(squares: Any, c: int, width: int, norm: Lrn) -> tuple[tirx.PrimExpr, tirx.PrimExpr]:
    """s^-beta and s^-1 of some channels."""
    factor, bias = tirx.const(norm.factor, "float32"), tirx.const(norm.bias, "float32")
    return inverse_power(T.bind(bias + factor * _window(squares, c, norm.size, width)), norm.beta, T.bind)


@functools.cache
def lrn(pixels: int, C: int, norm: Lrn, isa: Isa) -> tirx.PrimFunc:
    """Normalise over neighbouring channels.

    Args:
        pixels: of one image.

    Returns:
        PrimFunc of X float32 [B, pixels, C], Y likewise; B is symbolic.
    """
    tasks, blocks = -(-pixels // TASK_PIXELS), _blocks(C, isa.lanes)
    width = C + norm.size - 1  # a row of squares with zeros around

    def _put_squares(X, squares, image, pixel):
        for c, lanes in blocks:
            x = T.bind(X[image, pixel, across(c, lanes)])
            T.buffer_store(squares, x * x, [across(norm.before + c, lanes)])

    def _put_result(X, Y, squares, image, pixel):
        for c, lanes in blocks:
            power, _ = _normaliser(squares, c, lanes, norm)
            place = across(c, lanes)
            T.buffer_store(Y, X[image, pixel, place] * power, [image, pixel, place])

    @T.inline
    def one(X, Y, squares, image, pixel):
        _put_squares(X, squares, image, pixel)
        _put_result(X, Y, squares, image, pixel)

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(pixels), T.int64(C)), "float32")
        Y = T.match_buffer(y, (B, T.int64(pixels), T.int64(C)), "float32")
        for task in T.parallel(B * tasks):
            squares = T.alloc_buffer((width,), "float32")
            for j in range(width):
                squares[j] = T.float32(0)
            for p in range(T.min(TASK_PIXELS, pixels - task % tasks * TASK_PIXELS)):
                one(X, Y, squares, task // tasks, task % tasks * TASK_PIXELS + p)

    return kernel


@functools.cache
def lrn_gradient(pixels: int, C: int, norm: Lrn, isa: Isa) -> tirx.PrimFunc:
    """Gradient of the input.

    Args:
        pixels: of one image.

    Returns:
        PrimFunc of X and dY float32 [B, pixels, C], dX likewise; B is symbolic.
    """
    tasks, blocks = -(-pixels // TASK_PIXELS), _blocks(C, isa.lanes)
    width = C + norm.size - 1

    def _put_squares(X, squares, image, pixel):
        for c, lanes in blocks:
            x = T.bind(X[image, pixel, across(c, lanes)])
            T.buffer_store(squares, x * x, [across(norm.before + c, lanes)])

    def _put_shares(X, DY, DX, squares, shares, image, pixel):
        for c, lanes in blocks:
            power, inverse = _normaliser(squares, c, lanes, norm)
            place = across(c, lanes)
            direct = T.bind(DY[image, pixel, place] * power)
            T.buffer_store(DX, direct, [image, pixel, place])
            T.buffer_store(shares, direct * inverse * X[image, pixel, place], [across(norm.after + c, lanes)])

    def _subtract_window(X, DX, shares, image, pixel):
        factor = tirx.const(2 * norm.beta * norm.factor, "float32")
        for c, lanes in blocks:
            place = across(c, lanes)
            total = _window(shares, c, norm.size, lanes)
            direct = DX[image, pixel, place]
            T.buffer_store(DX, direct - factor * X[image, pixel, place] * total, [image, pixel, place])

    @T.inline
    def one(X, DY, DX, squares, shares, image, pixel):
        _put_squares(X, squares, image, pixel)
        _put_shares(X, DY, DX, squares, shares, image, pixel)
        _subtract_window(X, DX, shares, image, pixel)

    @T.prim_func(private=True)
    def kernel(x: T.handle, dy: T.handle, dx: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(pixels), T.int64(C)), "float32")
        DY = T.match_buffer(dy, (B, T.int64(pixels), T.int64(C)), "float32")
        DX = T.match_buffer(dx, (B, T.int64(pixels), T.int64(C)), "float32")
        for task in T.parallel(B * tasks):
            squares = T.alloc_buffer((width,), "float32")
            shares = T.alloc_buffer((width,), "float32")
            for j in range(width):
                squares[j] = T.float32(0)
                shares[j] = T.float32(0)
            for p in range(T.min(TASK_PIXELS, pixels - task % tasks * TASK_PIXELS)):
                one(X, DY, DX, squares, shares, task // tasks, task % tasks * TASK_PIXELS + p)

    return kernel
