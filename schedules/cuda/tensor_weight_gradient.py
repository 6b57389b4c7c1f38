"""Weight gradient of a convolution on tensor cores: dW[k, m] = sum over n of rows(X)[n, k] dZ[n, m], in 16 bits.

As ``weight_gradient``, with products of warps. A block makes BM by BN entries of dW from one part of the rows, ROWS of
them at a time. Tensor cores want the entries of a chain side by side, and here the chain goes down the rows: a thread
packs two rows of a column into a word on the way to shared memory. Each entry is one chain of products of 16 rows, in
their order; parts are added up in order (``sum_parts``).
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.precision import Precision
from adr_tvm.schedules.cuda.tensor_gemm import KINDS
from adr_tvm.schedules.cuda.warp_matrix import load_matrices, multiply
from adr_tvm.schedules.cuda.weight_gradient import BM, BN, parts_of

ROWS = 32  # of a step
WM, WN = 32, 32  # entries of K and output channels of a warp
THREADS = BM // WM * (BN // WN) * 32
PAIRS = ROWS // 2  # words of a column in shared memory
STRIDE = PAIRS + 4  # from one column to the next: so eight of them meet in no bank
COUNT = BM * PAIRS // THREADS  # words of a tile that a thread packs; BM is BN


@functools.cache
def tensor_weight_gradient(geometry: ConvGeometry, batch: int, precision: Precision) -> tirx.PrimFunc:
    """Returns: PrimFunc of X [B, H, W, C] and dZ [B, OH, OW, M] in 16 bits, and sums float32 [parts, K, M]."""
    g, dtype, kind = geometry, precision.storage, KINDS[precision.name]
    H, W, C, K, KW, OH, OW, M = g.H, g.W, g.C, g.K, g.KW, g.OH, g.OW, g.M
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    rows, across, down = batch * g.rows, -(-M // BN), -(-K // BM)
    parts, size = parts_of(g, batch, ROWS)
    high, wide, warps = WM // 16, WN // 8, BN // WN
    zero = tirx.const(0.0, dtype)

    def data(X, n, k):
        iy = n % (OH * OW) // OW * SH - PT + k // C // KW * DH
        ix = n % OW * SW - PL + k // C % KW * DW
        inside = T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W))
        return T.if_then_else(T.And(inside, T.And(n < rows, k < K)), X[n // (OH * OW), iy, ix, k % C], zero)

    def gradient(DZ, n, m):
        return T.if_then_else(T.And(n < rows, m < M), DZ[n // (OH * OW), n % (OH * OW) // OW, n % OW, m], zero)

    def word(first, second):
        low, high = (T.cast(T.reinterpret("uint16", value), "uint32") for value in (first, second))
        return low | (high << T.uint32(16))

    @T.inline
    def fetch(X, DZ, kept, n0, k0, m0, t):
        for i in T.unroll(COUNT):
            n = T.meta_var(n0 + 2 * ((i * THREADS + t) // BM))
            kept[i] = word(data(X, n, k0 + t % BM), data(X, n + 1, k0 + t % BM))
            kept[COUNT + i] = word(gradient(DZ, n, m0 + t % BN), gradient(DZ, n + 1, m0 + t % BN))

    @T.inline
    def put(A, Z, kept, t):
        for i in T.unroll(COUNT):
            pair = T.meta_var((i * THREADS + t) // BM)
            A[t % BM * STRIDE + pair] = kept[i]
            Z[t % BN * STRIDE + pair] = kept[COUNT + i]

    @T.inline
    def multiply_step(A, Z, a, b, acc, wm, wn, lane):
        for s in T.unroll(ROWS // 16):
            for i in T.unroll(high):
                place = T.meta_var((wm * WM + i * 16 + lane % 16) * STRIDE + s * 8 + lane // 16 * 4)
                T.evaluate(load_matrices(T.address_of(a[i * 4]), T.address_of(A[place])))
            for j in T.unroll(wide // 2):
                column = T.meta_var(wn * WN + j * 16 + lane // 16 * 8 + lane % 8)
                place = T.meta_var(column * STRIDE + s * 8 + lane // 8 % 2 * 4)
                T.evaluate(load_matrices(T.address_of(b[j * 4]), T.address_of(Z[place])))
            for i in T.unroll(high):
                for j in T.unroll(wide):
                    sums = T.meta_var(T.address_of(acc[(i * wide + j) * 4]))
                    T.evaluate(multiply(kind, sums, T.address_of(a[i * 4]), T.address_of(b[j * 2])))

    @T.inline
    def store(acc, sums, part, k0, m0, lane):
        for i in T.unroll(high):
            for j in T.unroll(wide):
                for v in T.unroll(4):
                    k = T.meta_var(k0 + i * 16 + v // 2 * 8 + lane // 4)
                    m = T.meta_var(m0 + j * 8 + lane % 4 * 2 + v % 2)
                    if T.And(k < K, m < M):
                        sums[part, k, m] = acc[(i * wide + j) * 4 + v]

    @T.prim_func(private=True)
    def kernel(x: T.handle, z: T.handle, s: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        X = T.match_buffer(x, (T.int64(batch), T.int64(H), T.int64(W), T.int64(C)), dtype)
        DZ = T.match_buffer(z, (T.int64(batch), T.int64(OH), T.int64(OW), T.int64(M)), dtype)
        sums = T.match_buffer(s, (T.int64(parts), T.int64(K), T.int64(M)), "float32")
        for block in T.thread_binding(parts * down * across, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                A = T.alloc_buffer((BM * STRIDE,), "uint32", scope="shared")
                Z = T.alloc_buffer((BN * STRIDE,), "uint32", scope="shared")
                acc = T.alloc_buffer((high * wide * 4,), "float32", scope="local")
                a = T.alloc_buffer((high * 4,), "uint32", scope="local")
                b = T.alloc_buffer((wide * 2,), "uint32", scope="local")
                kept = T.alloc_buffer((2 * COUNT,), "uint32", scope="local")
                part = T.meta_var(block // (down * across))
                k0 = T.meta_var(block // across % down * BM)
                m0 = T.meta_var(block % across * BN)
                wm, wn, lane = T.meta_var((t // 32 // warps, t // 32 % warps, t % 32))
                for i in T.unroll(high * wide * 4):
                    acc[i] = T.float32(0)
                # TVM cuts buffers down to the words that it sees in use, and of a fragment it sees the first.
                for i in T.unroll(high * 4):
                    a[i] = T.uint32(0)
                for i in T.unroll(wide * 2):
                    b[i] = T.uint32(0)
                fetch(X, DZ, kept, part * size, k0, m0, t)
                for step in T.serial(size // ROWS, annotations={"disable_unroll": True}):
                    put(A, Z, kept, t)
                    T.tvm_storage_sync("shared")
                    if step + 1 < size // ROWS:
                        fetch(X, DZ, kept, part * size + (step + 1) * ROWS, k0, m0, t)
                    multiply_step(A, Z, a, b, acc, wm, wn, lane)
                    T.tvm_storage_sync("shared")
                store(acc, sums, part, k0 + wm * WM, m0 + wn * WN, lane)

    return kernel
