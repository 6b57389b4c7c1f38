"""The GEMM microkernel: MR x NR accumulators in registers, one FMA chain over K for each."""

from __future__ import annotations

from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.register_tile import RegisterTile


def multiply_tile(tile: RegisterTile):
    """Inline ``(acc, A, row, K, packed, block)``: acc [MR, NR] = A[row : row + MR, :K] times block of weights."""
    MR, NR = tile.MR, tile.NR

    @T.inline
    def inline(acc, A, row, K, packed, block):
        for i in T.unroll(MR):
            for j in T.vectorized(NR):
                acc[i, j] = T.float32(0)
        for k in range(K):
            for i in T.unroll(MR):
                for j in T.vectorized(NR):
                    acc[i, j] = acc[i, j] + A[row + i, k] * packed[block, k, j]

    return inline


def store_row(tile: RegisterTile, M: int, OW: int, activation: Activation):
    """Inline ``(acc, i, bias, block, Y, image, n, m0)``: row i of acc, epilogue applied, to output pixel n.

    The block's channels are counted from channel m0 of Y and of the bias, which is readable a block beyond its end.
    """
    NR = tile.NR
    act = activation_expr(activation)

    @T.inline
    def inline(acc, i, bias, block, Y, image, n, m0):
        if block < M // NR:
            for j in T.vectorized(NR):
                Y[image, n // OW, n % OW, m0 + block * NR + j] = act(acc[i, j] + bias[m0 + block * NR + j])
        else:
            for j in range(M % NR):
                Y[image, n // OW, n % OW, m0 + block * NR + j] = act(acc[i, j] + bias[m0 + block * NR + j])

    return inline
