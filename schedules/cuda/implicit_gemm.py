"""Convolution as an implicit GEMM in fp32, of all rows or of those in a list (``docs/algorithm.md``, clause 11).

A block multiplies BM im2col rows, gathered from X on the way into shared memory, by BN output channels. While it
multiplies one step of BK entries of K, the next is on its way from global memory into registers. Each output is one
chain of multiply-adds over K in the order (KH, KW, C), in one thread, so neither the tile nor the list changes it.

Where the rows come from a list, the grid is made for all rows, and blocks behind the end of the list return at once:
the host never needs to know how long it is.
"""

from __future__ import annotations

import functools
from typing import Literal

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import capacity, units
from adr_tvm.schedules.cuda.row_gather import OUTSIDE, RowGather
from adr_tvm.schedules.cuda.thread_tile import ThreadTile
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.settings import ReuseSetting

Rows = Literal["all", "listed", "represented"]


def padded_k(geometry: ConvGeometry, tile: ThreadTile) -> int:
    """Rows of the weights that the kernel reads, zero from K on."""
    return -(-geometry.K // tile.BK) * tile.BK


def padded_m(geometry: ConvGeometry, tile: ThreadTile) -> int:
    """Columns of the weights that the kernel reads, zero from M on."""
    return -(-geometry.M // tile.BN) * tile.BN


def _block(geometry: ConvGeometry, activation: Activation, tile: ThreadTile, residual: bool, rows_from: Rows):
    """Inline ``(X, packed, bias, R, work, source, centroids, total, Y, bx, by, t)``; tensors are flat."""
    M, K = geometry.M, geometry.K
    BM, BN, BK, TM, TN, threads = tile.BM, tile.BN, tile.BK, tile.TM, tile.TN, tile.threads
    Mp, steps = padded_m(geometry, tile), padded_k(geometry, tile) // BK
    gather = RowGather(geometry, BM, BK, threads)
    find, load, put_rows, row, entry = gather.find(), gather.load(), gather.put(), gather.row, gather.entry
    count, V, pitch, size = gather.count, gather.V, gather.pitch, gather.size
    units = BK * BN // 4 // threads  # of four weights each, that a thread loads
    assert units * threads == BK * BN // 4
    GM, GN = min(4, TM), min(4, TN)  # neighbouring rows and channels of a thread
    column_threads = BN // TN
    act = activation_expr(activation)
    listed, represented = rows_from != "all", rows_from == "represented"
    wide = M % GN == 0

    def row_of(ty, i):
        return i // GM * (BM // (TM // GM)) + ty * GM + i % GM

    def column_of(tx, j):
        return j // GN * (BN // (TN // GN)) + tx * GN + j % GN

    @T.inline
    def find_rows(work, source, total, pixel, down, right, centroid, bx, t):
        for i in T.unroll(count):
            w = T.meta_var(bx * BM + row(t, i))
            pixel[i] = 0
            down[i] = OUTSIDE
            right[i] = 0
            if represented:
                centroid[i] = -1
            if w < total:
                find(pixel, down, right, i, work[w] if listed else w)
                if represented:
                    centroid[i] = source[w]

    @T.inline
    def fetch(X, packed, centroids, pixel, down, right, centroid, a_next, b_next, step, by, t):
        k = T.meta_var(step * BK + entry(t))
        for i in T.unroll(count):
            if represented:
                if centroid[i] >= 0:
                    if k < K:
                        for v in T.vectorized(V):
                            a_next[i * V + v] = centroids[T.cast(centroid[i], "int64") * K + k + v]
                    else:
                        for v in T.vectorized(V):
                            a_next[i * V + v] = T.float32(0)
                else:
                    load(X, pixel, down, right, a_next, i, k)
            else:
                load(X, pixel, down, right, a_next, i, k)
        for i in T.unroll(units):
            u = T.meta_var(i * threads + t)
            for v in T.vectorized(4):
                b_next[i * 4 + v] = packed[(step * BK + u // (BN // 4)) * Mp + by * BN + u % (BN // 4) * 4 + v]

    @T.inline
    def put(A, Bt, a_next, b_next, slot, t):
        put_rows(A, a_next, slot, t)
        for i in T.unroll(units):
            u = T.meta_var(i * threads + t)
            for v in T.vectorized(4):
                Bt[slot, u // (BN // 4), u % (BN // 4) * 4 + v] = b_next[i * 4 + v]

    @T.inline
    def multiply(A, Bt, a, b, acc, slot, ty, tx):
        for k in T.unroll(BK):
            for g in T.unroll(TM // GM):
                for v in T.vectorized(GM):
                    a[g * GM + v] = A[slot * size + k * pitch + row_of(ty, g * GM) + v]
            for g in T.unroll(TN // GN):
                for v in T.vectorized(GN):
                    b[g * GN + v] = Bt[slot, k, column_of(tx, g * GN) + v]
            for i in T.unroll(TM):
                for j in T.unroll(TN):
                    acc[i * TN + j] = acc[i * TN + j] + a[i] * b[j]

    def finished(acc, bias, R, out, m, index):
        value = acc[index] + bias[m]
        return act(value + R[out]) if residual else act(value)

    @T.inline
    def store(acc, bias, R, work, total, Y, bx, by, ty, tx):
        for i in T.unroll(TM):
            w = T.meta_var(bx * BM + row_of(ty, i))
            if w < total:
                n = T.meta_var(T.cast(work[w] if listed else w, "int64") * M)
                for g in T.unroll(TN // GN):
                    m = T.meta_var(by * BN + column_of(tx, g * GN))
                    if wide:
                        if m < M:
                            for v in T.vectorized(GN):
                                Y[n + m + v] = finished(acc, bias, R, n + m + v, m + v, i * TN + g * GN + v)
                    else:
                        for v in T.unroll(GN):
                            if m + v < M:
                                Y[n + m + v] = finished(acc, bias, R, n + m + v, m + v, i * TN + g * GN + v)

    @T.inline
    def inline(X, packed, bias, R, work, source, centroids, total, Y, bx, by, t):
        A = T.alloc_buffer((2 * gather.size,), "float32", scope="shared")
        Bt = T.alloc_buffer((2, BK, BN), "float32", scope="shared")
        acc = T.alloc_buffer((TM * TN,), "float32", scope="local")
        a = T.alloc_buffer((TM,), "float32", scope="local")
        b = T.alloc_buffer((TN,), "float32", scope="local")
        a_next = T.alloc_buffer((count * V,), "float32", scope="local")
        b_next = T.alloc_buffer((units * 4,), "float32", scope="local")
        pixel = T.alloc_buffer((count,), "int32", scope="local")
        down = T.alloc_buffer((count,), "int32", scope="local")
        right = T.alloc_buffer((count,), "int32", scope="local")
        centroid = T.alloc_buffer((count,), "int32", scope="local")
        if bx * BM >= total:
            T.evaluate(T.thread_return())
        find_rows(work, source, total, pixel, down, right, centroid, bx, t)
        for i in T.unroll(TM * TN):
            acc[i] = T.float32(0)
        fetch(X, packed, centroids, pixel, down, right, centroid, a_next, b_next, 0, by, t)
        put(A, Bt, a_next, b_next, 0, t)
        T.tvm_storage_sync("shared")
        for step in range(steps):
            if step + 1 < steps:
                fetch(X, packed, centroids, pixel, down, right, centroid, a_next, b_next, step + 1, by, t)
            multiply(A, Bt, a, b, acc, step % 2, t // column_threads, t % column_threads)
            if step + 1 < steps:
                put(A, Bt, a_next, b_next, (step + 1) % 2, t)
            T.tvm_storage_sync("shared")
        store(acc, bias, R, work, total, Y, bx, by, t // column_threads, t % column_threads)

    return inline


@functools.cache
def implicit_gemm(
    geometry: ConvGeometry, activation: Activation, tile: ThreadTile, residual: bool = False
) -> tirx.PrimFunc:
    """Y = activation(conv(X, W) + bias [+ R]).

    Returns:
        PrimFunc of X float32 [B, H, W, C], weights float32 [K padded to BK, M padded to BN], bias float32 [M padded to
        BN], with ``residual`` R float32 [B, OH, OW, M], and Y float32 [B, OH, OW, M]; B is symbolic.
    """
    H, W, C, OH, OW, M = geometry.H, geometry.W, geometry.C, geometry.OH, geometry.OW, geometry.M
    Kp, Mp, rows, BM, BN = padded_k(geometry, tile), padded_m(geometry, tile), geometry.rows, tile.BM, tile.BN
    block = _block(geometry, activation, tile, residual, "all")

    @T.inline
    def body(X, packed, bias, R, Y, B):
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        flat_w = T.decl_buffer((Kp * Mp,), "float32", data=packed.data)
        flat_r = T.decl_buffer((B * (rows * M),), "float32", data=R.data)
        flat_y = T.decl_buffer((B * (rows * M),), "float32", data=Y.data)
        for bx in T.thread_binding((B * rows + (BM - 1)) // BM, "blockIdx.x"):
            for by in T.thread_binding(Mp // BN, "blockIdx.y"):
                for t in T.thread_binding(tile.threads, "threadIdx.x"):
                    total = T.meta_var(T.cast(B * rows, "int32"))
                    row = T.meta_var(T.cast(bx, "int32"))
                    block(flat_x, flat_w, bias, flat_r, bias, bias, flat_x, total, flat_y, row, by, t)

    if residual:

        @T.prim_func(private=True)
        def with_residual(x: T.handle, w: T.handle, b: T.handle, r: T.handle, y: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
            packed = T.match_buffer(w, (T.int64(Kp), T.int64(Mp)), "float32")
            bias = T.match_buffer(b, (T.int64(Mp),), "float32")
            R = T.match_buffer(r, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
            Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
            body(X, packed, bias, R, Y, B)

        return with_residual

    @T.prim_func(private=True)
    def plain(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        packed = T.match_buffer(w, (T.int64(Kp), T.int64(Mp)), "float32")
        bias = T.match_buffer(b, (T.int64(Mp),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        body(X, packed, bias, Y, Y, B)

    return plain


@functools.cache
def implicit_gemm_of_rows(
    geometry: ConvGeometry, activation: Activation, tile: ThreadTile, setting: ReuseSetting
) -> tirx.PrimFunc:
    """Rows of Y that are in a list; the others stay unwritten.

    Returns:
        PrimFunc of X, weights and bias as of ``implicit_gemm``, work int32 [B * rows], totals int32 [2], whose first is
        the length of the list, and Y. Where rows are clustered by signs, source int32 [B * rows] and centroids float32
        [U * capacity, K] come before Y: a row whose source is not -1 is that centroid, multiplied in its place.
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
    Kp, Mp, rows, BM, BN = padded_k(geometry, tile), padded_m(geometry, tile), geometry.rows, tile.BM, tile.BN
    exact = setting.hash == "exact"
    block = _block(geometry, activation, tile, False, "listed" if exact else "represented")

    @T.inline
    def body(X, packed, bias, work, totals, source, centroids, Y, B):
        flat_x = T.decl_buffer((B * (H * W * C),), "float32", data=X.data)
        flat_w = T.decl_buffer((Kp * Mp,), "float32", data=packed.data)
        flat_y = T.decl_buffer((B * (rows * M),), "float32", data=Y.data)
        for bx in T.thread_binding((B * rows + (BM - 1)) // BM, "blockIdx.x"):
            for by in T.thread_binding(Mp // BN, "blockIdx.y"):
                for t in T.thread_binding(tile.threads, "threadIdx.x"):
                    row = T.meta_var(T.cast(bx, "int32"))
                    block(flat_x, flat_w, bias, flat_y, work, source, centroids, totals[0], flat_y, row, by, t)

    if exact:

        @T.prim_func(private=True)
        def listed(x: T.handle, w: T.handle, b: T.handle, wo: T.handle, to: T.handle, y: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
            packed = T.match_buffer(w, (T.int64(Kp), T.int64(Mp)), "float32")
            bias = T.match_buffer(b, (T.int64(Mp),), "float32")
            work = T.match_buffer(wo, (B * T.int64(rows),), "int32")
            totals = T.match_buffer(to, (T.int64(2),), "int32")
            Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
            body(X, packed, bias, work, totals, work, bias, Y, B)

        return listed

    @T.prim_func(private=True)
    def represented(
        x: T.handle,
        w: T.handle,
        b: T.handle,
        wo: T.handle,
        to: T.handle,
        so: T.handle,
        ce: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        N = T.meta_var(units(setting, B)[1] * T.int64(rows))
        cap = T.meta_var(capacity(setting, N if setting.scope == "batch" else rows))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        packed = T.match_buffer(w, (T.int64(Kp), T.int64(Mp)), "float32")
        bias = T.match_buffer(b, (T.int64(Mp),), "float32")
        work = T.match_buffer(wo, (B * T.int64(rows),), "int32")
        totals = T.match_buffer(to, (T.int64(2),), "int32")
        source = T.match_buffer(so, (B * T.int64(rows),), "int32")
        centroids = T.match_buffer(ce, (U * cap, T.int64(K)), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        flat_c = T.decl_buffer((U * cap * K,), "float32", data=centroids.data)
        body(X, packed, bias, work, totals, source, flat_c, Y, B)

    return represented
