"""Instance normalisation of NHWC images in two passes over memory.

The pixels of an image are cut into chunks that fit the cache, by shape alone. Each chunk gives its mean and its sum of
squared deviations from it; merging two sets of n_a and n_b pixels, with d the difference of their means,

    mean = mean_a + d n_b / n        M2 = M2_a + M2_b + d^2 n_a n_b / n        (Chan, Golub, LeVeque 1979)

in the order of the chunks, so that the bytes do not depend on threads and no digits go where the mean is large. Then
y = activation((x - mean) * scale / sqrt(M2 / n + epsilon) + shift + residual).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.register_tile import Isa

CHUNK_FLOATS = 16 * 1024
SUMS = 8  # vectors that are summed side by side where channels are few


@dataclass(frozen=True)
class NormShape:
    """An image [rows, cols, C], as it is read.

    Attributes:
        phases: (py, px): the input is [rows, cols, py, px, C], the output [rows * py, cols * px, C].
    """

    rows: int
    cols: int
    C: int
    phases: tuple[int, int] = (1, 1)

    @property
    def pixels(self) -> int:
        """Pixels of the output."""
        return self.rows * self.cols * self.phases[0] * self.phases[1]


@functools.cache
def instance_norm(shape: NormShape, epsilon: float, activation: Activation, residual: bool, isa: Isa) -> tirx.PrimFunc:
    """Normalise each channel of each image.

    Args:
        residual: whether a tensor of the output's shape is added before the activation.

    Returns:
        PrimFunc of X float32 [B, pixels * C], scale [C], shift [C], perhaps R [B, pixels * C], Y [B, pixels * C];
        B is symbolic.
    """
    C, N, (PY, PX) = shape.C, shape.pixels, shape.phases
    lanes = isa.lanes
    # As many whole pixels as fill vectors: entry j of such a group always belongs to channel j % C.
    group = lanes // math.gcd(C, lanes) * C
    width = group * max(1, SUMS * lanes // group)
    chunk = width * max(1, CHUNK_FLOATS // width)
    chunks = -(-N * C // chunk)
    run = (shape.cols if PX == 1 else 1) * PX * C  # entries that lie together in both input and output
    runs = N * C // run
    runs_per_task = max(1, CHUNK_FLOATS // run)
    tasks = -(-runs // runs_per_task)
    act = activation_expr(activation)
    vectors = T.unroll if group <= SUMS * lanes else T.serial

    def source(r):
        """Where run ``r`` of the output begins in the input."""
        if PX == 1 and PY == 1:
            return r * run
        if PX == 1:  # runs of a row: [rows, PY] of the output, but the input is [rows, cols, PY, C]
            raise ValueError("phases of rows alone are not handled")
        row, col = r // shape.cols, r % shape.cols
        return ((row // PY * shape.cols + col) * PY + row % PY) * run

    @T.inline
    def add_up(X, image, start, count, acc, centre, squared):
        for j in range(width // lanes):
            for l in T.vectorized(lanes):
                acc[j * lanes + l] = T.float32(0)
        for g in range(count // width):
            for j in T.unroll(width // lanes):
                for l in T.vectorized(lanes):
                    x = T.meta_var(X[image, start + g * width + j * lanes + l])
                    if squared:
                        d = T.meta_var(x - centre[j * lanes + l])
                        acc[j * lanes + l] = acc[j * lanes + l] + d * d
                    else:
                        acc[j * lanes + l] = acc[j * lanes + l] + x
        for j in range(count % width):
            x = T.meta_var(X[image, start + count // width * width + j])
            if squared:
                acc[j] = acc[j] + (x - centre[j]) * (x - centre[j])
            else:
                acc[j] = acc[j] + x

    @T.inline
    def statistics(X, parts, image, c):
        count = T.meta_var(T.min(chunk, N * C - c * chunk))
        acc = T.alloc_buffer((width,), "float32")
        centre = T.alloc_buffer((width,), "float32")
        add_up(X, image, c * chunk, count, acc, centre, False)
        for j in range(C):
            parts[image, c, 0, j] = T.float32(0)
            for k in range(width // C):
                parts[image, c, 0, j] = parts[image, c, 0, j] + acc[k * C + j]
            parts[image, c, 0, j] = parts[image, c, 0, j] / T.Cast("float32", count // C)
        for k in range(width // C):
            for j in range(C):
                centre[k * C + j] = parts[image, c, 0, j]
        add_up(X, image, c * chunk, count, acc, centre, True)
        for j in range(C):
            parts[image, c, 1, j] = T.float32(0)
            for k in range(width // C):
                parts[image, c, 1, j] = parts[image, c, 1, j] + acc[k * C + j]

    @T.inline
    def merge(parts, scale, shift, affine, image):
        for c in range(chunks - 1):
            for j in range(C):
                before = T.meta_var(T.Cast("float32", (c + 1) * (chunk // C)))
                count = T.meta_var(T.Cast("float32", T.min(chunk, N * C - (c + 1) * chunk) // C))
                d = T.meta_var(parts[image, c + 1, 0, j] - parts[image, 0, 0, j])
                parts[image, 0, 1, j] = (
                    parts[image, 0, 1, j] + parts[image, c + 1, 1, j] + d * d * (before * count / (before + count))
                )
                parts[image, 0, 0, j] = parts[image, 0, 0, j] + d * (count / (before + count))
        for k in range(group // C):
            for j in range(C):
                affine[image, 0, k * C + j] = parts[image, 0, 0, j]
                affine[image, 1, k * C + j] = scale[j] / T.sqrt(
                    parts[image, 0, 1, j] / T.float32(N) + T.float32(epsilon)
                )
                affine[image, 2, k * C + j] = shift[j]

    @T.inline
    def entry(X, R, Y, affine, image, x, y, j):
        normal = T.meta_var((X[image, x] - affine[image, 0, j]) * affine[image, 1, j] + affine[image, 2, j])
        if residual:
            Y[image, y] = act(normal + R[image, y])
        else:
            Y[image, y] = act(normal)

    @T.inline
    def apply(X, R, Y, affine, image, r):
        for g in range(run // group):
            for v in vectors(group // lanes):
                for l in T.vectorized(lanes):
                    j = T.meta_var(v * lanes + l)
                    entry(X, R, Y, affine, image, source(r) + g * group + j, r * run + g * group + j, j)
        for j in range(run % group):
            k = T.meta_var(run // group * group + j)
            entry(X, R, Y, affine, image, source(r) + k, r * run + k, j)

    @T.inline
    def body(X, scale, shift, R, Y, B):
        parts = T.alloc_buffer((B, chunks, 2, C), "float32")
        affine = T.alloc_buffer((B, 3, group), "float32")
        for task in T.parallel(B * chunks):
            statistics(X, parts, task // chunks, task % chunks)
        for image in range(B):
            merge(parts, scale, shift, affine, image)
        for task in T.parallel(B * tasks):
            for i in range(T.min(runs_per_task, runs - task % tasks * runs_per_task)):
                apply(X, R, Y, affine, task // tasks, task % tasks * runs_per_task + i)

    if residual:

        @T.prim_func(private=True)
        def kernel(x: T.handle, a: T.handle, b: T.handle, r: T.handle, y: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            B = T.int64()
            X = T.match_buffer(x, (B, T.int64(N * C)), "float32")
            scale = T.match_buffer(a, (T.int64(C),), "float32")
            shift = T.match_buffer(b, (T.int64(C),), "float32")
            R = T.match_buffer(r, (B, T.int64(N * C)), "float32")
            Y = T.match_buffer(y, (B, T.int64(N * C)), "float32")
            body(X, scale, shift, R, Y, B)
    else:

        @T.prim_func(private=True)
        def kernel(x: T.handle, a: T.handle, b: T.handle, y: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            B = T.int64()
            X = T.match_buffer(x, (B, T.int64(N * C)), "float32")
            scale = T.match_buffer(a, (T.int64(C),), "float32")
            shift = T.match_buffer(b, (T.int64(C),), "float32")
            Y = T.match_buffer(y, (B, T.int64(N * C)), "float32")
            body(X, scale, shift, X, Y, B)

    return kernel
