"""Dense convolution with very few output channels: vectors run over output columns instead of channels.

A 9x9 convolution to RGB would leave 13 of 16 lanes of a vector of channels empty. Here a task copies the input that a
block of outputs reads, padding included, into a planar buffer [rows, C, columns]; a tap of the kernel is then an offset
into it. Each output is the same FMA chain over (KH, KW, C) as in ``dense_conv2d`` (``docs/algorithm.md``, clause 11).
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.transpose_tile import TILE, transpose_tile
from adr_tvm.schedules.transpose_tile import lanes as across

PLANE_BYTES = 384 * 1024  # of the planar copy, in L2
MAX_ROWS = 32  # of outputs in a task
WASTE = 3  # lanes of a vector of channels for each one in use, from which on it pays


def is_narrow(isa: Isa, geometry: ConvGeometry) -> bool:
    """Whether a convolution is one for this kernel."""
    wide_enough = geometry.OW >= 2 * isa.lanes
    return geometry.M * WASTE < isa.lanes and geometry.strides[1] == 1 and wide_enough and geometry.KH * geometry.KW > 1


@functools.cache
def narrow_conv2d(geometry: ConvGeometry, activation: Activation, isa: Isa) -> tirx.PrimFunc:
    """Y = activation(conv(X, W) + bias).

    Returns:
        PrimFunc of X float32 [B, H, W, C], weights float32 [1, K, M], bias float32 [M], Y float32 [B, OH, OW, M]; B is
        symbolic.
    """
    H, W, C, OH, OW, M, K = (
        geometry.H,
        geometry.W,
        geometry.C,
        geometry.OH,
        geometry.OW,
        geometry.M,
        geometry.K,
    )
    KH, KW, SH, (DH, DW), (PT, PL, _, _) = (
        geometry.KH,
        geometry.KW,
        geometry.strides[0],
        geometry.dilation,
        geometry.padding,
    )
    lanes = isa.lanes
    vectors = max(1, min((isa.registers - M - 2) // M, -(-OW // lanes), 8))
    columns = vectors * lanes
    width = -(-(columns + (KW - 1) * DW) // TILE) * TILE
    reach = (KH - 1) * DH + 1
    rows = max(1, min(MAX_ROWS, OH, (PLANE_BYTES // (4 * C * width) - reach) // SH + 1))
    bands, tiles = -(-OH // rows), -(-OW // columns)
    act = activation_expr(activation)

    def copy_tile(X, planes, image, iy, ix, y, x, c):
        """16 columns by 16 channels, transposed in registers."""
        pixels = [T.bind(X[image, iy, ix + q, across(c)]) for q in range(TILE)]
        for q, plane in enumerate(transpose_tile(pixels)):
            T.buffer_store(planes, plane, [y, c + q, across(x)])

    @T.inline
    def copy_pixel(X, planes, image, iy, ix, y, x, c0):
        if iy >= 0 and iy < H and ix >= 0 and ix < W:
            for c in range(C - c0):
                planes[y, c0 + c, x] = X[image, iy, ix, c0 + c]
        else:
            for c in range(C - c0):
                planes[y, c0 + c, x] = T.float32(0)

    @T.inline
    def copy(X, planes, image, top, left):
        for y in range((rows - 1) * SH + reach):
            for part in range(-(-width // TILE)):
                iy = T.meta_var(top + y)
                ix = T.meta_var(left + part * TILE)
                if iy >= 0 and iy < H and ix >= 0 and ix + TILE <= W:
                    for c in range(C // TILE):
                        copy_tile(X, planes, image, iy, ix, y, part * TILE, c * TILE)
                    if C % TILE > 0:
                        for q in range(TILE):
                            copy_pixel(X, planes, image, iy, ix + q, y, part * TILE + q, C // TILE * TILE)
                else:
                    for q in range(TILE):
                        copy_pixel(X, planes, image, iy, ix + q, y, part * TILE + q, 0)

    @T.inline
    def multiply(acc, planes, packed, y):
        for ky in range(KH):
            for kx in range(KW):
                for c in range(C):
                    for v in T.unroll(vectors):
                        for m in T.unroll(M):
                            for j in T.vectorized(lanes):
                                acc[m, v * lanes + j] = (
                                    acc[m, v * lanes + j]
                                    + planes[y * SH + ky * DH, c, kx * DW + v * lanes + j]
                                    * packed[0, (ky * KW + kx) * C + c, m]
                                )

    @T.prim_func(private=True)
    def kernel(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        packed = T.match_buffer(w, (T.int64(1), T.int64(K), T.int64(M)), "float32")
        bias = T.match_buffer(b, (T.int64(M),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        for task in T.parallel(B * bands * tiles):
            planes = T.alloc_buffer(((rows - 1) * SH + reach, C, width), "float32")
            image = T.meta_var(task // (bands * tiles))
            oy = T.meta_var(task // tiles % bands * rows)
            ox = T.meta_var(task % tiles * columns)
            copy(X, planes, image, oy * SH - PT, ox - PL)
            for r in range(T.min(rows, OH - oy)):
                acc = T.alloc_buffer((M, columns), "float32", scope="local")
                for m in T.unroll(M):
                    for v in T.unroll(vectors):
                        for j in T.vectorized(lanes):
                            acc[m, v * lanes + j] = T.float32(0)
                multiply(acc, planes, packed, r)
                for i in range(T.min(columns, OW - ox)):
                    for m in T.unroll(M):
                        Y[image, oy + r, ox + i, m] = act(acc[m, i] + bias[m])

    return kernel
