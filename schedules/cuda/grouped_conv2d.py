"""Grouped and depthwise convolution for CUDA: a thread for each output, neighbours in memory side by side."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.epilogue import activation_expr

THREADS = 256


@functools.cache
def grouped_conv2d(
    geometry: ConvGeometry, groups: int, activation: Activation, dtype: str = "float32"
) -> tirx.PrimFunc:
    """Y = activation(conv(X, W) + bias), one chain of multiply-adds over (KH, KW, C) for each output.

    Args:
        geometry: of one group.
        groups: that X and Y consist of.
        dtype: of X, W and Y; sums are fp32.

    Returns:
        PrimFunc of X [B, H, W, groups * C], W [KH, KW, C, groups * M], bias float32 [groups * M] and Y
        [B, OH, OW, groups * M]; B is symbolic.
    """
    H, W, C, KH, KW, OH, OW, M = (
        geometry.H,
        geometry.W,
        geometry.C,
        geometry.KH,
        geometry.KW,
        geometry.OH,
        geometry.OW,
        geometry.M,
    )
    (SH, SW), (DH, DW), (PT, PL, _, _) = geometry.strides, geometry.dilation, geometry.padding
    channels, outputs = groups * C, groups * M
    image = OH * OW * outputs
    act = activation_expr(activation)

    @T.prim_func(private=True)
    def kernel(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(channels)), dtype)
        weights = T.match_buffer(w, (T.int64(KH), T.int64(KW), T.int64(C), T.int64(outputs)), dtype)
        bias = T.match_buffer(b, (T.int64(outputs),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(outputs)), dtype)
        flat = T.decl_buffer((B * image,), dtype, data=Y.data)
        for block in T.thread_binding((B * image + (THREADS - 1)) // THREADS, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                acc = T.alloc_buffer((1,), "float32", scope="local")
                i = T.meta_var(T.cast(block, "int64") * THREADS + t)
                if i < B * image:
                    m = T.meta_var(T.cast(i % outputs, "int32"))
                    pixel = T.meta_var(T.cast(i % image // outputs, "int32"))
                    acc[0] = T.float32(0)
                    for tap in range(KH * KW):
                        iy = T.meta_var(pixel // OW * SH - PT + tap // KW * DH)
                        ix = T.meta_var(pixel % OW * SW - PL + tap % KW * DW)
                        if T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W)):
                            for c in range(C):
                                x_in = T.meta_var(T.cast(X[i // image, iy, ix, m // M * C + c], "float32"))
                                w_in = T.meta_var(T.cast(weights[tap // KW, tap % KW, c, m], "float32"))
                                acc[0] = acc[0] + x_in * w_in
                    flat[i] = T.cast(act(acc[0] + bias[m]), dtype)

    return kernel
