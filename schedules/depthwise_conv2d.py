"""Depthwise convolution: every channel meets its own KH x KW weights, in vectors of channels."""

from __future__ import annotations

import functools

import numpy as np
from tvm import te, tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.sliding_window import channel_blocks, loop_of, rows_per_task, spans_of


def pack_depthwise_weights(w: np.ndarray, lanes: int) -> np.ndarray:
    """Weights float32 [KH, KW, 1, C] as [blocks, KH * KW, width], the blocks as `channel_blocks` says."""
    KH, KW, _, C = w.shape
    blocks, width = channel_blocks(C, lanes)
    flat = w.reshape(KH * KW, C)
    return np.stack([flat[:, start : start + width] for start in (min(b * width, C - width) for b in range(blocks))])


def te_pack_depthwise_weights(w: te.Tensor, lanes: int) -> te.Tensor:
    """`pack_depthwise_weights` for a weight that is an argument of the function, as a tensor expression."""
    KH, KW, _, C = (int(d) for d in w.shape)
    blocks, width = channel_blocks(C, lanes)
    return te.compute(
        [tirx.const(n, "int64") for n in (blocks, KH * KW, width)],
        lambda b, t, j: w[t // KW, t % KW, 0, tirx.min(b * width, C - width) + j],
        name="pack_depthwise_weights",
    )


@functools.cache
def depthwise_conv2d(
    geometry: ConvGeometry, activation: Activation, isa: Isa, batch: int | None = None
) -> tirx.PrimFunc:
    """Y = activation(depthwise conv(X, W) + bias), one output channel for each input channel.

    Args:
        geometry: of one channel as far as C and M go (C = channels, M is not read).
        isa: decides the vectors and how many accumulators there are.
        batch: number of images where it is known; decides only how work is shared.

    Returns:
        PrimFunc of X float32 [B, H, W, C], weights as `pack_depthwise_weights` leaves them, bias float32 [C],
        Y float32 [B, OH, OW, C]; B is symbolic.
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
    loop = loop_of(batch, OH * OW * C * KH * KW)
    act = activation_expr(activation)

    @T.inline
    def span_of_pixels(X, kernel, shift, Y, image, oy, s, c0, checked):
        acc = T.alloc_buffer((P, lanes), "float32")
        for i in T.unroll(P):
            for j in T.vectorized(lanes):
                acc[i, j] = T.float32(0)
        for ky in T.unroll(KH):
            iy = T.meta_var(oy * SH - PT + ky * DH)
            if iy >= 0 and iy < H:
                for kx in T.unroll(KW):
                    for i in T.unroll(P):
                        ix = T.meta_var((s * P + i) * SW - PL + kx * DW)
                        if not checked or (s * P + i < OW and ix >= 0 and ix < W):
                            for j in T.vectorized(lanes):
                                acc[i, j] = acc[i, j] + X[image, iy, ix, c0 + j] * kernel[ky * KW + kx, j]
        for i in T.unroll(P):
            if not checked or s * P + i < OW:
                for j in T.vectorized(lanes):
                    Y[image, oy, s * P + i, c0 + j] = act(acc[i, j] + shift[j])

    @T.prim_func(private=True)
    def kernel(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        weights = T.match_buffer(w, (T.int64(blocks), T.int64(KH * KW), T.int64(lanes)), "float32")
        bias = T.match_buffer(b, (T.int64(C),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(C)), "float32")
        for task in loop(B * chunks):
            image = T.meta_var(task // chunks)
            for block in range(blocks):
                c0 = T.meta_var(T.min(block * lanes, C - lanes))
                kept = T.alloc_buffer((KH * KW, lanes), "float32")
                shift = T.alloc_buffer((lanes,), "float32")
                for t in T.unroll(KH * KW):
                    for j in T.vectorized(lanes):
                        kept[t, j] = weights[block, t, j]
                for j in T.vectorized(lanes):
                    shift[j] = bias[c0 + j]
                for row in range(T.min(chunk, OH - task % chunks * chunk)):
                    oy = T.meta_var(task % chunks * chunk + row)
                    for s in T.unroll(edge):
                        span_of_pixels(X, kept, shift, Y, image, oy, s, c0, True)
                    for s in range(inner - edge):
                        span_of_pixels(X, kept, shift, Y, image, oy, s + edge, c0, False)
                    for s in T.unroll(spans.count - inner):
                        span_of_pixels(X, kept, shift, Y, image, oy, s + inner, c0, True)

    return kernel
