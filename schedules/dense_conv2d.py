"""Dense convolution as an implicit GEMM over packed rows (``docs/algorithm.md``, clause 11)."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.im2col import copy_row
from adr_tvm.schedules.microkernel import multiply_tile, store_row
from adr_tvm.schedules.register_tile import RegisterTile, panels_left

SMALL_ROWS = 64  # up to this many rows in a call, threads share the output channels and pack the rows again


def dense_image(geometry: ConvGeometry, activation: Activation, tile: RegisterTile):
    """Inline ``(X, packed, bias, Y, image)``: one image, its rows shared among the threads."""
    M, K, OW, rows = geometry.M, geometry.K, geometry.OW, geometry.rows
    MR, NR = tile.MR, tile.NR
    chunk = tile.chunk_rows(K)
    blocks = -(-M // NR)
    copy, multiply, store = copy_row(geometry), multiply_tile(tile), store_row(tile, M, OW, activation)

    @T.inline
    def inline(X, packed, bias, Y, image):
        for task in T.parallel(-(-rows // chunk)):
            A = T.alloc_buffer((chunk, K), "float32")
            panels = T.meta_var(panels_left(rows - task * chunk, chunk, MR))
            for i in range(panels * MR):
                copy(X, image, task * chunk + i, rows, A, i, 0)
            for block in range(blocks):
                for panel in range(panels):
                    acc = T.alloc_buffer((MR, NR), "float32", scope="local")
                    multiply(acc, A, panel * MR, K, packed, block)
                    for i in T.unroll(MR):
                        n = T.meta_var(task * chunk + panel * MR + i)
                        if n < rows:
                            store(acc, i, bias, block, Y, image, n, 0)

    return inline


@functools.cache
def dense_conv2d(
    geometry: ConvGeometry, activation: Activation, tile: RegisterTile, batch: int | None = None
) -> tirx.PrimFunc:
    """Y = activation(conv(X, W) + bias).

    Args:
        geometry: shapes of one image.
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of X float32 [B, H, W, C], packed weights float32 [M/NR, K, NR], bias float32 [M padded to NR],
        Y float32 [B, OH, OW, M]; B is symbolic.
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
    MR, NR = tile.MR, tile.NR
    blocks, rows = -(-M // NR), geometry.rows
    small = rows * (batch or 1) <= SMALL_ROWS
    if batch is not None:
        MR = min(MR, rows * batch)
    chunk = RegisterTile(MR, NR).chunk_rows(K)
    groups = blocks if small else 1  # blocks of output channels handed out as tasks of their own
    copy = copy_row(geometry)
    tile = RegisterTile(MR, NR)
    multiply, store = multiply_tile(tile), store_row(tile, M, OW, activation)

    @T.prim_func(private=True)
    def kernel(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        packed = T.match_buffer(w, (T.int64(blocks), T.int64(K), T.int64(NR)), "float32")
        bias = T.match_buffer(b, (T.int64(blocks * NR),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        for task in T.parallel((B * rows + chunk - 1) // chunk * groups):
            A = T.alloc_buffer((chunk, K), "float32")
            panels = T.meta_var(panels_left(B * rows - task // groups * chunk, chunk, MR))
            for i in range(panels * MR):
                row = T.meta_var(task // groups * chunk + i)
                copy(X, row // rows, row % rows + T.if_then_else(row < B * rows, 0, rows), rows, A, i, 0)
            for g in range(blocks // groups):
                block = T.meta_var(task % groups + g)
                for panel in range(panels):
                    acc = T.alloc_buffer((MR, NR), "float32", scope="local")
                    multiply(acc, A, panel * MR, K, packed, block)
                    for i in T.unroll(MR):
                        row = T.meta_var(task // groups * chunk + panel * MR + i)
                        if row < B * rows:
                            store(acc, i, bias, block, Y, row // rows, row % rows, 0)

    return kernel
