"""Local response normalisation across the channels of NHWC images, in one kernel.

y[c] = x[c] / (bias + alpha / size * sum of x[c - before .. c + after]^2) ^ beta, with size = before + 1 + after.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.register_tile import Isa

TASK_PIXELS = 64


@dataclass(frozen=True)
class Lrn:
    """The window and the constants; ``beta`` is one of `BETAS`."""

    before: int
    after: int
    alpha: float
    beta: float
    bias: float


BETAS = {
    0.5: lambda s: tirx.sqrt(s),
    0.75: lambda s: tirx.sqrt(s) * tirx.sqrt(tirx.sqrt(s)),
    1.0: lambda s: s,
}
"""Powers that need no logarithm, as functions of an expression."""


@functools.cache
def lrn(pixels: int, C: int, norm: Lrn, isa: Isa) -> tirx.PrimFunc:
    """Normalise over neighbouring channels.

    Args:
        pixels: of one image.

    Returns:
        PrimFunc of X float32 [B, pixels, C], Y likewise; B is symbolic.
    """
    size, lanes = norm.before + 1 + norm.after, isa.lanes
    blocks = -(-C // lanes)
    tasks = -(-pixels // TASK_PIXELS)
    power = BETAS[norm.beta]
    factor = norm.alpha / size
    # A row of squares with zeros around, wide enough for whole vectors.
    width = norm.before + blocks * lanes + norm.after

    @T.inline
    def squares(X, image, pixel, row):
        for v in range(C // lanes):
            for j in T.vectorized(lanes):
                x = T.meta_var(X[image, pixel, v * lanes + j])
                row[norm.before + v * lanes + j] = x * x
        for j in range(C % lanes):
            x = T.meta_var(X[image, pixel, C // lanes * lanes + j])
            row[norm.before + C // lanes * lanes + j] = x * x

    @T.inline
    def divide(X, Y, image, pixel, row, v, count):
        total = T.alloc_buffer((lanes,), "float32")
        for j in T.vectorized(lanes):
            total[j] = row[v * lanes + j]
        for k in T.unroll(size - 1):
            for j in T.vectorized(lanes):
                total[j] = total[j] + row[v * lanes + k + 1 + j]
        for j in T.vectorized(lanes):
            total[j] = power(T.float32(norm.bias) + T.float32(factor) * total[j])
        for j in T.vectorized(count):
            Y[image, pixel, v * lanes + j] = X[image, pixel, v * lanes + j] / total[j]

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(pixels), T.int64(C)), "float32")
        Y = T.match_buffer(y, (B, T.int64(pixels), T.int64(C)), "float32")
        for task in T.parallel(B * tasks):
            row = T.alloc_buffer((width,), "float32")
            for j in range(width):
                row[j] = T.float32(0)
            for p in range(T.min(TASK_PIXELS, pixels - task % tasks * TASK_PIXELS)):
                pixel = T.meta_var(task % tasks * TASK_PIXELS + p)
                squares(X, task // tasks, pixel, row)
                for v in range(C // lanes):
                    divide(X, Y, task // tasks, pixel, row, v, lanes)
                if C % lanes > 0:
                    divide(X, Y, task // tasks, pixel, row, C // lanes, C % lanes)

    return kernel
