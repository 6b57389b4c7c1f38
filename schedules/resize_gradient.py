"""Gradient of resizing NHWC images: every input pixel gathers from the few output pixels that read it.

dX[b, h, w, c] = sum over i, j of FH[h, i] FW[w, j] dY[b, PH[h, i], PW[w, j], c], in that order; P are places of output
rows and columns, F the factors with which they read the input's row or column (0 where there are fewer).
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.accumulators import across
from adr_tvm.schedules.pool_windows import channel_groups
from adr_tvm.schedules.register_tile import Isa


@functools.cache
def resize_gradient(
    size: tuple[int, int], out: tuple[int, int], taps: tuple[int, int], C: int, isa: Isa
) -> tirx.PrimFunc:
    """Returns: PrimFunc of dY float32 [B, OH, OW, C], PH int32 [H, I], FH float32 [H, I], PW int32 [W, J], FW float32
    [W, J], dX float32 [B, H, W, C]; B is symbolic.

    Args:
        size: H, W.
        out: OH, OW.
        taps: I, J.
    """
    (H, W), (OH, OW), (I, J) = size, out, taps
    groups, vectors, lanes = channel_groups(C, isa)

    def add(DY, total, b, y, x, c0, factor):
        f = T.bind(factor)
        for v in range(vectors):
            value = total[v, across(0, lanes)] + DY[b, y, x, across(c0 + v * lanes, lanes)] * f
            T.buffer_store(total, value, [v, across(0, lanes)])

    @T.prim_func(private=True)
    def kernel(dy: T.handle, ph: T.handle, fh: T.handle, pw: T.handle, fw: T.handle, dx: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        DY = T.match_buffer(dy, (B, T.int64(OH), T.int64(OW), T.int64(C)), "float32")
        PH = T.match_buffer(ph, (T.int64(H), T.int64(I)), "int32")
        FH = T.match_buffer(fh, (T.int64(H), T.int64(I)), "float32")
        PW = T.match_buffer(pw, (T.int64(W), T.int64(J)), "int32")
        FW = T.match_buffer(fw, (T.int64(W), T.int64(J)), "float32")
        DX = T.match_buffer(dx, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        for task in T.parallel(B * H):
            for w in range(W):
                for group in range(groups):
                    c0 = T.meta_var(T.min(group * (vectors * lanes), C - vectors * lanes))
                    total = T.alloc_buffer((vectors, lanes), "float32")
                    for v in T.unroll(vectors):
                        for j in T.vectorized(lanes):
                            total[v, j] = T.float32(0)
                    for i in range(I):
                        for j in range(J):
                            factor = T.meta_var(FH[task % H, i] * FW[w, j])
                            add(DY, total, task // H, PH[task % H, i], PW[w, j], c0, factor)
                    for v in T.unroll(vectors):
                        for j in T.vectorized(lanes):
                            DX[task // H, task % H, w, c0 + v * lanes + j] = total[v, j]

    return kernel
