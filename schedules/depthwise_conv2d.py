"""Depthwise convolution: every channel meets its own KH x KW weights, in vectors of channels."""

from __future__ import annotations

import functools

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.epilogue import activation_expr

PIXELS = 4  # output pixels of a row whose accumulators share the loaded weights


def pack_depthwise_weights(w: np.ndarray, lanes: int) -> np.ndarray:
    """Weights float32 [KH, KW, 1, C] as [ceil(C / lanes), KH * KW, lanes], zero beyond C."""
    KH, KW, _, C = w.shape
    padded = np.pad(w.reshape(KH * KW, C), ((0, 0), (0, -C % lanes)))
    return np.ascontiguousarray(padded.reshape(KH * KW, -1, lanes).transpose(1, 0, 2))


@functools.cache
def depthwise_conv2d(geometry: ConvGeometry, activation: Activation, lanes: int) -> tirx.PrimFunc:
    """Y = activation(depthwise conv(X, W) + bias), one output channel for each input channel.

    Args:
        geometry: of one channel as far as C and M go (C = channels, M is not read).
        lanes: channels of a vector.

    Returns:
        PrimFunc of X float32 [B, H, W, C], weights as `pack_depthwise_weights` leaves them, bias float32 [C padded to
        lanes], Y float32 [B, OH, OW, C]; B is symbolic.
    """
    H, W, C, OH, OW = geometry.H, geometry.W, geometry.C, geometry.OH, geometry.OW
    KW, taps = geometry.KW, geometry.KH * geometry.KW
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding
    blocks, full, tail = -(-C // lanes), C // lanes, C % lanes
    spans = -(-OW // PIXELS)
    act = activation_expr(activation)

    def iy(oy, t):
        return oy * SH - PT + t // KW * DH

    def ix(ox, t):
        return ox * SW - PL + t % KW * DW

    def inside(oy, ox, t):
        return T.And(T.And(iy(oy, t) >= 0, iy(oy, t) < H), T.And(ix(ox, t) >= 0, ix(ox, t) < W))

    @T.inline
    def accumulate(acc, i, X, weights, image, oy, ox, t, block, count):
        if inside(oy, ox, t):
            for j in T.vectorized(count):
                acc[i, j] = acc[i, j] + X[image, iy(oy, t), ix(ox, t), block * lanes + j] * weights[block, t, j]

    @T.inline
    def write(acc, i, bias, Y, image, oy, ox, block, count):
        for j in T.vectorized(count):
            Y[image, oy, ox, block * lanes + j] = act(acc[i, j] + bias[block * lanes + j])

    @T.inline
    def span_of_pixels(X, weights, bias, Y, image, oy, span, block, count):
        acc = T.alloc_buffer((PIXELS, lanes), "float32", scope="local")
        for i in T.unroll(PIXELS):
            for j in T.vectorized(lanes):
                acc[i, j] = T.float32(0)
        for t in T.unroll(taps):
            for i in T.unroll(PIXELS):
                if span * PIXELS + i < OW:
                    accumulate(acc, i, X, weights, image, oy, span * PIXELS + i, t, block, count)
        for i in T.unroll(PIXELS):
            if span * PIXELS + i < OW:
                write(acc, i, bias, Y, image, oy, span * PIXELS + i, block, count)

    @T.prim_func(private=True)
    def kernel(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        weights = T.match_buffer(w, (T.int64(blocks), T.int64(taps), T.int64(lanes)), "float32")
        bias = T.match_buffer(b, (T.int64(blocks * lanes),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(C)), "float32")
        for task in T.parallel(B * OH):
            for span in range(spans):
                for block in range(full):
                    span_of_pixels(X, weights, bias, Y, task // OH, task % OH, span, block, lanes)
                if tail > 0:
                    span_of_pixels(X, weights, bias, Y, task // OH, task % OH, span, full, tail)

    return kernel
