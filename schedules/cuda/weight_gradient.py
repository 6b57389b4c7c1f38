"""Weight gradient of a convolution as a GEMM over all output pixels: dW[k, m] = sum over n of rows(X)[n, k] dZ[n, m].

A block makes BM by BN entries of dW from one part of the rows; parts are set by shapes alone and are added up in order
(``sum_parts``), so no order of threads changes a byte.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry

BM, BN, BK = 64, 64, 16  # entries of K, output channels, rows of a step
TM, TN = 4, 4
THREADS = BM // TM * (BN // TN)
BLOCKS = 512  # that should share the work, about
LEAST_ROWS = 256  # of a part
SUM_THREADS = 256


def parts_of(geometry: ConvGeometry, batch: int, step: int = BK) -> tuple[int, int]:
    """(parts, rows of each, whole steps) of the rows of a batch."""
    rows, tiles = batch * geometry.rows, -(-geometry.K // BM) * -(-geometry.M // BN)
    parts = max(1, min(BLOCKS // tiles, rows // LEAST_ROWS))
    size = -(-rows // parts // step) * step
    return -(-rows // size), size


@functools.cache
def weight_gradient(geometry: ConvGeometry, batch: int) -> tirx.PrimFunc:
    """Returns: PrimFunc of X float32 [B, H, W, C], dZ float32 [B, OH, OW, M] and sums float32 [parts, K, M]."""
    g = geometry
    H, W, C, K, KW, OH, OW, M = g.H, g.W, g.C, g.K, g.KW, g.OH, g.OW, g.M
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    rows, across, down = batch * g.rows, -(-M // BN), -(-K // BM)
    parts, size = parts_of(g, batch)
    V = 4 if M % 4 == 0 else 1
    per_row = BN // TN

    def entry(X, n, k):
        iy = n % (OH * OW) // OW * SH - PT + k // C // KW * DH
        ix = n % OW * SW - PL + k // C % KW * DW
        inside = T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W))
        return T.if_then_else(T.And(inside, T.And(n < rows, k < K)), X[n // (OH * OW), iy, ix, k % C], T.float32(0))

    @T.prim_func(private=True)
    def kernel(x: T.handle, z: T.handle, s: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        X = T.match_buffer(x, (T.int64(batch), T.int64(H), T.int64(W), T.int64(C)), "float32")
        DZ = T.match_buffer(z, (T.int64(batch), T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        sums = T.match_buffer(s, (T.int64(parts), T.int64(K), T.int64(M)), "float32")
        flat_z = T.decl_buffer((rows * M,), "float32", data=DZ.data)
        for block in T.thread_binding(parts * down * across, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                A = T.alloc_buffer((BK * BM,), "float32", scope="shared")
                Z = T.alloc_buffer((BK * BN,), "float32", scope="shared")
                acc = T.alloc_buffer((TM * TN,), "float32", scope="local")
                a = T.alloc_buffer((TM,), "float32", scope="local")
                b = T.alloc_buffer((TN,), "float32", scope="local")
                part = T.meta_var(block // (down * across))
                k0 = T.meta_var(block // across % down * BM)
                m0 = T.meta_var(block % across * BN)
                for i in T.unroll(TM * TN):
                    acc[i] = T.float32(0)
                for step in range(size // BK):
                    n0 = T.meta_var(part * size + step * BK)
                    for i in T.unroll(BK * BM // THREADS):
                        r = T.meta_var((i * THREADS + t) // BM)
                        k = T.meta_var((i * THREADS + t) % BM)
                        A[r * BM + k] = entry(X, n0 + r, k0 + k)
                    for i in T.unroll(BK * BN // V // THREADS):
                        r = T.meta_var((i * THREADS + t) // (BN // V))
                        m = T.meta_var((i * THREADS + t) % (BN // V) * V)
                        if T.And(n0 + r < rows, m0 + m < M):
                            for v in T.vectorized(V):
                                Z[r * BN + m + v] = flat_z[(n0 + r) * M + m0 + m + v]
                        else:
                            for v in T.vectorized(V):
                                Z[r * BN + m + v] = T.float32(0)
                    T.tvm_storage_sync("shared")
                    for r in T.unroll(BK):
                        for v in T.vectorized(TM):
                            a[v] = A[r * BM + t // per_row * TM + v]
                        for v in T.vectorized(TN):
                            b[v] = Z[r * BN + t % per_row * TN + v]
                        for i in T.unroll(TM):
                            for j in T.unroll(TN):
                                acc[i * TN + j] = acc[i * TN + j] + a[i] * b[j]
                    T.tvm_storage_sync("shared")
                for i in T.unroll(TM):
                    for j in T.unroll(TN):
                        k = T.meta_var(k0 + t // per_row * TM + i)
                        m = T.meta_var(m0 + t % per_row * TN + j)
                        if T.And(k < K, m < M):
                            sums[part, k, m] = acc[i * TN + j]

    return kernel


@functools.cache
def sum_parts(parts: int, shape: tuple[int, ...]) -> tirx.PrimFunc:
    """Returns: PrimFunc of sums float32 [parts, K, M] and their sum over parts, float32 ``shape`` of K M entries."""
    size = 1
    for d in shape:
        size *= d

    @T.prim_func(private=True)
    def kernel(s: T.handle, o: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        sums = T.match_buffer(s, (T.int64(parts), T.int64(size // shape[-1]), T.int64(shape[-1])), "float32")
        out = T.match_buffer(o, [T.int64(d) for d in shape], "float32")
        flat = T.decl_buffer((parts * size,), "float32", data=sums.data)
        flat_out = T.decl_buffer((size,), "float32", data=out.data)
        for block in T.thread_binding(-(-size // SUM_THREADS), "blockIdx.x"):
            for t in T.thread_binding(SUM_THREADS, "threadIdx.x"):
                total = T.alloc_buffer((1,), "float32", scope="local")
                i = T.meta_var(block * SUM_THREADS + t)
                if i < size:
                    total[0] = T.float32(0)
                    for part in range(parts):
                        total[0] = total[0] + flat[part * size + i]
                    flat_out[i] = total[0]

    return kernel
