"""Grouped convolution: the dense implicit GEMM of each group, on its slice of the channels.

A 1x1 convolution of stride 1 reads its rows where they lie; others pack them first.
"""

from __future__ import annotations

import functools

import numpy as np
from tvm import te, tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.im2col import copy_row
from adr_tvm.schedules.packing import pack_weights
from adr_tvm.schedules.register_tile import RegisterTile, panels_left

STACK_BYTES = 1024  # buffers that TVM leaves on the stack are smaller


def pack_grouped_weights(w: np.ndarray, groups: int, NR: int) -> np.ndarray:
    """Weights float32 [KH, KW, C / groups, M] as [groups * ceil(M / groups / NR), K, NR]."""
    return np.concatenate([pack_weights(part, NR) for part in np.split(w, groups, axis=3)])


def te_pack_grouped_weights(w: te.Tensor, groups: int, NR: int) -> te.Tensor:
    """`pack_grouped_weights` for a weight that is an argument of the function, as a tensor expression."""
    KH, KW, C, M = (int(d) for d in w.shape)
    M //= groups
    blocks = -(-M // NR)

    def entry(b, k, j):
        m = b % blocks * NR + j
        value = w[k // (KW * C), k // C % KW, k % C, b // blocks * M + tirx.min(m, M - 1)]
        return tirx.if_then_else(m < M, value, tirx.const(0.0, "float32"))

    shape = [tirx.const(n, "int64") for n in (groups * blocks, KH * KW * C, NR)]
    return te.compute(shape, entry, name="pack_grouped_weights")


@functools.cache
def grouped_conv2d(group: ConvGeometry, groups: int, activation: Activation, tile: RegisterTile) -> tirx.PrimFunc:
    """Y = activation(conv(X, W) + bias), each group on its own channels.

    Args:
        group: geometry of one group: C and M are a group's channels.

    Returns:
        PrimFunc of X float32 [B, H, W, C * groups], weights as `pack_grouped_weights` leaves them, bias float32
        [M * groups + NR], Y float32 [B, OH, OW, M * groups]; B is symbolic.
    """
    H, W, C, OH, OW, M, K = group.H, group.W, group.C, group.OH, group.OW, group.M, group.K
    MR, NR, rows = tile.MR, tile.NR, group.rows
    blocks, chunk = -(-M // NR), tile.chunk_rows(K)
    chunks = -(-rows // chunk)
    direct = (group.KH, group.KW, *group.strides, *group.padding) == (1, 1, 1, 1, 0, 0, 0, 0)
    copy, act = copy_row(group), activation_expr(activation)
    # Below 1 KiB LLVM gets a stack slot, which it keeps in registers; else TVM's workspace, written back at the end.
    scope = "global" if MR * NR * 4 < STACK_BYTES else "local"

    @T.inline
    def multiply(acc, A, X, image, first, row, g, packed, block):
        for i in T.unroll(MR):
            for j in T.vectorized(NR):
                acc[i, j] = T.float32(0)
        for k in range(K):
            for i in T.unroll(MR):
                for j in T.vectorized(NR):
                    if direct:
                        n = T.meta_var(T.min(first + row + i, rows - 1))
                        acc[i, j] = acc[i, j] + X[image, n // W, n % W, g * C + k] * packed[block, k, j]
                    else:
                        acc[i, j] = acc[i, j] + A[row + i, k] * packed[block, k, j]

    @T.inline
    def store(acc, i, bias, block, Y, image, n, g, count):
        for j in T.vectorized(count):
            m = T.meta_var(g * M + block * NR + j)
            Y[image, n // OW, n % OW, m] = act(acc[i, j] + bias[m])

    @T.prim_func(private=True)
    def kernel(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C * groups)), "float32")
        packed = T.match_buffer(w, (T.int64(groups * blocks), T.int64(K), T.int64(NR)), "float32")
        bias = T.match_buffer(b, (T.int64(M * groups + NR),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M * groups)), "float32")
        for task in T.parallel(B * chunks * groups):
            image = T.meta_var(task // (chunks * groups))
            first = T.meta_var(task // groups % chunks * chunk)
            g = T.meta_var(task % groups)
            A = T.alloc_buffer((1 if direct else chunk, K), "float32")
            panels = T.meta_var(panels_left(rows - first, chunk, MR))
            if not direct:
                for i in range(panels * MR):
                    copy(X, image, first + i, rows, A, i, g * C)
            for block in range(blocks):
                for panel in range(panels):
                    acc = T.alloc_buffer((MR, NR), "float32", scope=scope)
                    multiply(acc, A, X, image, first, panel * MR, g, packed, g * blocks + block)
                    for i in T.unroll(MR):
                        n = T.meta_var(first + panel * MR + i)
                        if n < rows:
                            if block < M // NR:
                                store(acc, i, bias, block, Y, image, n, g, NR)
                            elif M % NR > 0:
                                store(acc, i, bias, block, Y, image, n, g, M % NR)

    return kernel
