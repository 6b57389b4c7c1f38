"""Maximum and average pooling of NHWC images, in vectors of channels; the padding is never materialised."""

from __future__ import annotations

import functools
from typing import Literal

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.sliding_window import channel_blocks, loop_of, rows_per_task, spans_of

Kind = Literal["max", "average", "average with padding"]

LOWEST = {"float32": -3.4028234663852886e38, "float16": -65504.0}
UNROLLED = 36  # taps of a window up to which they are unrolled


@functools.cache
def pool2d(
    geometry: ConvGeometry, kind: Kind, isa: Isa, batch: int | None = None, dtype: str = "float32"
) -> tirx.PrimFunc:
    """Y[b, y, x, c] = maximum or mean of the window of X at (y, x).

    Windows may reach over the edge (``ceil_mode``). A mean divides by the entries inside of the image, or, "with
    padding", by those inside of the padded one.

    Args:
        geometry: C channels in and out (M is not read).
        isa: decides the vectors and how many accumulators there are.
        batch: number of images where it is known; decides only how work is shared.
        dtype: float32, or of a maximum also float16.

    Returns:
        PrimFunc of X [B, H, W, C], Y [B, OH, OW, C]; B is symbolic.
    """
    H, W, C, OH, OW, KH, KW = (
        *(geometry.H, geometry.W, geometry.C, geometry.OH, geometry.OW),
        *(geometry.KH, geometry.KW),
    )
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding
    blocks, lanes = channel_blocks(C, isa.lanes)
    spans = spans_of(geometry, isa)
    P, edge, inner = spans.pixels, spans.first, spans.last
    chunk = rows_per_task(OH, OW * C * KH * KW)
    chunks = -(-OH // chunk)
    tasks = loop_of(batch, OH * OW * C * KH * KW)
    taps = T.unroll if KH * KW <= UNROLLED else T.serial
    # One vector of channels at a time keeps rows that several windows read in L1; else memory is read as it lies.
    by_block = KH >= 2 * SH
    largest, divided, within = kind == "max", kind == "average", kind != "average with padding"
    first = tirx.const(LOWEST[dtype] if largest else 0.0, dtype)

    def iy(oy, ky):
        return oy * SH - PT + ky * DH

    def ix(ox, kx):
        return ox * SW - PL + kx * DW

    def count_y(oy):
        return functools.reduce(tirx.Add, [_one_if(iy(oy, ky), H) for ky in range(KH)]) if divided else KH

    def count_x(ox, checked):
        return functools.reduce(tirx.Add, [_one_if(ix(ox, kx), W) for kx in range(KW)]) if checked and within else KW

    @T.inline
    def span_of_pixels(X, Y, image, oy, s, block, checked):
        c0 = T.meta_var(T.min(block * lanes, C - lanes))
        acc = T.alloc_buffer((P, lanes), dtype)
        for i in T.unroll(P):
            for j in T.vectorized(lanes):
                acc[i, j] = first
        for ky in taps(KH):
            if iy(oy, ky) >= 0 and iy(oy, ky) < H:
                for kx in taps(KW):
                    for i in T.unroll(P):
                        x = T.meta_var(ix(s * P + i, kx))
                        if not checked or (s * P + i < OW and x >= 0 and x < W):
                            for j in T.vectorized(lanes):
                                if largest:
                                    acc[i, j] = T.max(acc[i, j], X[image, iy(oy, ky), x, c0 + j])
                                else:
                                    acc[i, j] = acc[i, j] + X[image, iy(oy, ky), x, c0 + j]
        for i in T.unroll(P):
            if not checked or s * P + i < OW:
                if largest:
                    for j in T.vectorized(lanes):
                        Y[image, oy, s * P + i, c0 + j] = acc[i, j]
                else:
                    count = T.meta_var(T.Cast("float32", count_y(oy) * count_x(s * P + i, checked)))
                    for j in T.vectorized(lanes):
                        Y[image, oy, s * P + i, c0 + j] = acc[i, j] * (T.float32(1) / count)

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(C)), dtype)
        for task in tasks(B * chunks):
            for outer in range(blocks if by_block else 1):
                for row in range(T.min(chunk, OH - task % chunks * chunk)):
                    oy = T.meta_var(task % chunks * chunk + row)
                    for s in T.unroll(edge):
                        for block in range(1 if by_block else blocks):
                            span_of_pixels(X, Y, task // chunks, oy, s, outer + block, True)
                    for s in range(inner - edge):
                        for block in range(1 if by_block else blocks):
                            span_of_pixels(X, Y, task // chunks, oy, s + edge, outer + block, False)
                    for s in T.unroll(spans.count - inner):
                        for block in range(1 if by_block else blocks):
                            span_of_pixels(X, Y, task // chunks, oy, s + inner, outer + block, True)

    return kernel


def _one_if(position: tirx.PrimExpr, size: int) -> tirx.PrimExpr:
    return tirx.Select(tirx.And(position >= 0, position < size), tirx.const(1, "int64"), tirx.const(0, "int64"))
