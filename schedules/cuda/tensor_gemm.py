"""Convolution as an implicit GEMM on tensor cores, of all rows or of those in a list.

As ``implicit_gemm``, with products of warps in place of threads' multiply-adds: a block multiplies BM im2col rows by BN
output channels, a step of K at a time, of which several are on their way from global to shared memory. Factors are
fp16, bf16 or tf32, sums fp32. Each output is one chain of products over K in the order (KH, KW, C), 32 bytes of K at a
time; neither the tile nor the list changes it.

Weights are [M padded to BN, K padded to a step], K along the rows. A fragment of sums holds two neighbouring columns of
every eight, so the rows of each 16 channels are packed in an order that gives a thread four neighbouring channels of
Y (``packed_channel``).
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.precision import Precision
from adr_tvm.schedules.cluster import capacity, units
from adr_tvm.schedules.cuda.implicit_gemm import Rows
from adr_tvm.schedules.cuda.row_gather import OUTSIDE
from adr_tvm.schedules.cuda.tensor_tile import UNIT, TensorTile
from adr_tvm.schedules.cuda.unit_gather import WORDS, UnitGather, WeightRows
from adr_tvm.schedules.cuda.warp_matrix import commit_copies, load_matrices, multiply, round_tf32, wait_copies
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.settings import ReuseSetting

GROUP = 16  # channels that are packed in an order of their own
KINDS = {"fp16": "f16", "bf16": "bf16", "tf32": "tf32"}


def packed_channel(row: int) -> int:
    """The output channel whose weights are a row of the packed ones."""
    half, pair, one = row % GROUP // 8, row % 8 // 2, row % 2
    return row // GROUP * GROUP + pair * 4 + half * 2 + one


def padded_k(geometry: ConvGeometry, tile: TensorTile, precision: Precision) -> int:
    """Entries of a row of the weights, zero from K on."""
    step = tile.UK * UNIT * 8 // precision.bits
    return -(-geometry.K // step) * step


def padded_m(geometry: ConvGeometry, tile: TensorTile) -> int:
    """Rows of the weights, zero from M on; and entries of the bias."""
    return -(-geometry.M // tile.BN) * tile.BN


def _block(
    geometry: ConvGeometry,
    activation: Activation,
    tile: TensorTile,
    precision: Precision,
    residual: bool,
    rows_from: Rows,
) -> Any:
    """Inline ``(X, packed, bias, R, work, source, centroids, total, Y, bx, by, t)``; tensors are flat."""
    M, Kp, dtype = geometry.M, padded_k(geometry, tile, precision), precision.storage
    BM, BN, WM, WN, UK, stages, threads = tile.BM, tile.BN, tile.WM, tile.WN, tile.UK, tile.stages, tile.threads
    rows, columns = UnitGather(geometry, BM, UK, threads, dtype), WeightRows(BN, UK, threads)
    steps = Kp // (UK * rows.E)
    find, begin_rows, end_rows = rows.find(), rows.begin(rows_from == "represented"), rows.end()
    begin_columns, end_columns = columns.begin(Kp, rows.E), columns.end()
    row_word, column_word, row_of = rows.word, columns.word, rows.row
    count, column_count, E, size, column_size = rows.count, columns.count, rows.E, rows.size, columns.size
    high, wide_n, warps_n = WM // 16, WN // 8, BN // WN  # fragments of a warp down and across; warps across
    kind, tf32 = KINDS[precision.name], precision.name == "tf32"
    act = activation_expr(activation)
    listed, represented = rows_from != "all", rows_from == "represented"
    wide = M % 4 == 0

    @T.inline
    def find_rows(work, source, total, window, bx, t):
        for i in T.unroll(count):
            w = T.meta_var(bx * BM + row_of(t, i))
            window[0][i] = 0
            window[1][i] = OUTSIDE
            window[2][i] = 0
            window[3][i] = -1
            if w < total:
                find(window[0], window[1], window[2], i, work[w] if listed else w)
                if represented:
                    window[3][i] = source[w]

    @T.inline
    def fetch(A, Bt, X, packed, centroids, window, tap, kept, values, kept_b, step, slot, by, t):
        begin_rows(A, X, centroids, window, tap, kept, values, step, slot * size, t)
        begin_columns(Bt, packed, kept_b, by * BN, step, slot * column_size, t)

    @T.inline
    def put(A, Bt, kept, values, kept_b, slot, t):
        end_rows(A, kept, values, slot * size, t)
        end_columns(Bt, kept_b, values, slot * column_size, t)

    @T.inline
    def advance(slot, i):
        slot[i] = T.if_then_else(slot[i] == stages - 1, 0, slot[i] + 1)

    @T.inline
    def multiply_step(A, Bt, a, b, acc, slot, wm, wn, lane):
        for k in T.unroll(UK // 2):
            for i in T.unroll(high):
                row = T.meta_var(wm * WM + i * 16 + lane % 16)
                place = T.meta_var(slot * size + row_word(row, k * 2 + lane // 16))
                T.evaluate(load_matrices(T.address_of(a[i * 4]), T.address_of(A[place])))
                if tf32:
                    for e in T.unroll(4):
                        a[i * 4 + e] = round_tf32(a[i * 4 + e])
            for j in T.unroll(wide_n // 2):
                row = T.meta_var(wn * WN + j * 16 + lane // 16 * 8 + lane % 8)
                place = T.meta_var(slot * column_size + column_word(row, k * 2 + lane // 8 % 2))
                T.evaluate(load_matrices(T.address_of(b[j * 4]), T.address_of(Bt[place])))
            for i in T.unroll(high):
                for j in T.unroll(wide_n):
                    T.evaluate(
                        multiply(
                            kind,
                            T.address_of(acc[(i * wide_n + j) * 4]),
                            T.address_of(a[i * 4]),
                            T.address_of(b[j * 2]),
                        )
                    )

    def finished(acc, bias, R, out, m, index):
        value = acc[index] + bias[m]
        value = act(value + T.cast(R[out], "float32")) if residual else act(value)
        return T.cast(value, dtype)

    @T.inline
    def store(acc, bias, R, work, total, Y, bx, by, wm, wn, lane):
        for i in T.unroll(high):
            for h in T.unroll(2):
                w = T.meta_var(bx * BM + wm * WM + i * 16 + h * 8 + lane // 4)
                if w < total:
                    n = T.meta_var(T.cast(work[w] if listed else w, "int64") * M)
                    for j in T.unroll(wide_n // 2):
                        m = T.meta_var(by * BN + wn * WN + j * GROUP + lane % 4 * 4)
                        at = T.meta_var((i * wide_n + j * 2) * 4 + h * 2)
                        if wide:
                            if m < M:
                                for v in T.vectorized(4):
                                    Y[n + m + v] = finished(acc, bias, R, n + m + v, m + v, at + v // 2 * 4 + v % 2)
                        else:
                            for v in T.unroll(4):
                                if m + v < M:
                                    Y[n + m + v] = finished(acc, bias, R, n + m + v, m + v, at + v // 2 * 4 + v % 2)

    @T.inline
    def clear(words, size):
        for i in T.unroll(size):
            words[i] = T.uint32(0)

    @T.inline
    def inline(X, packed, bias, R, work, source, centroids, total, Y, bx, by, t):
        A = T.alloc_buffer((stages * size,), "uint32", scope="shared")
        Bt = T.alloc_buffer((stages * column_size,), "uint32", scope="shared")
        acc = T.alloc_buffer((high * wide_n * 4,), "float32", scope="local")
        a = T.alloc_buffer((high * 4,), "uint32", scope="local")
        b = T.alloc_buffer((wide_n * 2,), "uint32", scope="local")
        kept = T.alloc_buffer((count * WORDS,), "uint32", scope="local")
        kept_b = T.alloc_buffer((column_count * WORDS,), "uint32", scope="local")
        values = T.alloc_buffer((count * E,), dtype, scope="local")
        pixel = T.alloc_buffer((count,), "int32", scope="local")
        down = T.alloc_buffer((count,), "int32", scope="local")
        right = T.alloc_buffer((count,), "int32", scope="local")
        centroid = T.alloc_buffer((count,), "int32", scope="local")
        tap = T.alloc_buffer((4,), "int32", scope="local")
        slot = T.alloc_buffer((2,), "int32", scope="local")  # that is multiplied, and that is filled
        window = T.meta_var((pixel, down, right, centroid))
        if bx * BM >= total:
            T.evaluate(T.thread_return())
        wm = T.meta_var(t // 32 // warps_n)
        wn = T.meta_var(t // 32 % warps_n)
        find_rows(work, source, total, window, bx, t)
        for i in T.unroll(high * wide_n * 4):
            acc[i] = T.float32(0)
        # TVM cuts buffers down to the words that it sees in use, and of a fragment it sees the first.
        clear(a, high * 4)
        clear(b, wide_n * 2)
        clear(kept, count * WORDS)
        clear(kept_b, column_count * WORDS)
        slot[0] = 0
        slot[1] = stages - 1
        for s in T.unroll(stages - 1):
            if s < steps:
                fetch(A, Bt, X, packed, centroids, window, tap, kept, values, kept_b, s, s, by, t)
                put(A, Bt, kept, values, kept_b, s, t)
            T.evaluate(commit_copies())
        for step in range(steps):
            T.evaluate(wait_copies(stages - 2))
            T.tvm_storage_sync("shared")
            ahead = T.meta_var(step + (stages - 1))
            if ahead < steps:
                fetch(A, Bt, X, packed, centroids, window, tap, kept, values, kept_b, ahead, slot[1], by, t)
            multiply_step(A, Bt, a, b, acc, slot[0], wm, wn, t % 32)
            if ahead < steps:
                put(A, Bt, kept, values, kept_b, slot[1], t)
            T.evaluate(commit_copies())
            advance(slot, 0)
            advance(slot, 1)
        store(acc, bias, R, work, total, Y, bx, by, wm, wn, t % 32)

    return inline


@functools.cache
def tensor_gemm(
    geometry: ConvGeometry, activation: Activation, tile: TensorTile, precision: Precision, residual: bool = False
) -> tirx.PrimFunc:
    """Y = activation(conv(X, W) + bias [+ R]).

    Returns:
        PrimFunc of X [B, H, W, C], weights [M padded to BN, K padded to a step], bias float32 [M padded to BN], with
        ``residual`` R [B, OH, OW, M], and Y [B, OH, OW, M]; B is symbolic. All but the bias are of the precision's
        storage type.
    """
    H, W, C, OH, OW, M = geometry.H, geometry.W, geometry.C, geometry.OH, geometry.OW, geometry.M
    Kp, Mp, rows = padded_k(geometry, tile, precision), padded_m(geometry, tile), geometry.rows
    dtype = precision.storage
    BM, across = tile.BM, Mp // tile.BN
    block = _block(geometry, activation, tile, precision, residual, "all")

    @T.inline
    def body(X, packed, bias, R, Y, B):
        flat_x = T.decl_buffer((B * (H * W * C),), dtype, data=X.data)
        flat_w = T.decl_buffer((Kp * Mp,), dtype, data=packed.data)
        flat_r = T.decl_buffer((B * (rows * M),), dtype, data=R.data)
        flat_y = T.decl_buffer((B * (rows * M),), dtype, data=Y.data)
        # Blocks of the same rows are neighbours, so that these come from memory once.
        for bx in T.thread_binding((B * rows + (BM - 1)) // BM * across, "blockIdx.x"):
            for t in T.thread_binding(tile.threads, "threadIdx.x"):
                total = T.meta_var(T.cast(B * rows, "int32"))
                place = T.meta_var(T.cast(bx, "int32"))
                row, column = T.meta_var(place // across), T.meta_var(place % across)
                block(flat_x, flat_w, bias, flat_r, bias, bias, flat_x, total, flat_y, row, column, t)

    if residual:

        @T.prim_func(private=True)
        def with_residual(x: T.handle, w: T.handle, b: T.handle, r: T.handle, y: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
            packed = T.match_buffer(w, (T.int64(Mp), T.int64(Kp)), dtype)
            bias = T.match_buffer(b, (T.int64(Mp),), "float32")
            R = T.match_buffer(r, (B, T.int64(OH), T.int64(OW), T.int64(M)), dtype)
            Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), dtype)
            body(X, packed, bias, R, Y, B)

        return with_residual

    @T.prim_func(private=True)
    def plain(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
        packed = T.match_buffer(w, (T.int64(Mp), T.int64(Kp)), dtype)
        bias = T.match_buffer(b, (T.int64(Mp),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), dtype)
        body(X, packed, bias, Y, Y, B)

    return plain


@functools.cache
def tensor_gemm_of_rows(
    geometry: ConvGeometry, activation: Activation, tile: TensorTile, precision: Precision, setting: ReuseSetting
) -> tirx.PrimFunc:
    """Rows of Y that are in a list; the others stay unwritten.

    Returns:
        PrimFunc of X, weights and bias as of ``tensor_gemm``, work int32 [B * rows], totals int32 [2], whose first is
        the length of the list, and Y. Where rows are clustered by signs, source int32 [B * rows] and centroids
        [U * capacity, K], of the storage type, come before Y: a row whose source is not -1 is that centroid.
    """
    g, dtype = geometry, precision.storage
    H, W, C, OH, OW, M, K = g.H, g.W, g.C, g.OH, g.OW, g.M, g.K
    Kp, Mp, rows = padded_k(g, tile, precision), padded_m(g, tile), g.rows
    BM, across, exact = tile.BM, Mp // tile.BN, setting.hash == "exact"
    block = _block(g, activation, tile, precision, False, "listed" if exact else "represented")

    @T.inline
    def body(X, packed, bias, work, totals, source, centroids, Y, B):
        flat_x = T.decl_buffer((B * (H * W * C),), dtype, data=X.data)
        flat_w = T.decl_buffer((Kp * Mp,), dtype, data=packed.data)
        flat_y = T.decl_buffer((B * (rows * M),), dtype, data=Y.data)
        for bx in T.thread_binding((B * rows + (BM - 1)) // BM * across, "blockIdx.x"):
            for t in T.thread_binding(tile.threads, "threadIdx.x"):
                place = T.meta_var(T.cast(bx, "int32"))
                block(
                    flat_x, flat_w, bias, flat_y, work, source, centroids, totals[0], flat_y,
                    place // across, place % across, t,
                )  # fmt: skip

    if exact:

        @T.prim_func(private=True)
        def listed(x: T.handle, w: T.handle, b: T.handle, wo: T.handle, to: T.handle, y: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            B = T.int64()
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
            packed = T.match_buffer(w, (T.int64(Mp), T.int64(Kp)), dtype)
            bias = T.match_buffer(b, (T.int64(Mp),), "float32")
            work = T.match_buffer(wo, (B * T.int64(rows),), "int32")
            totals = T.match_buffer(to, (T.int64(2),), "int32")
            Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), dtype)
            flat = T.decl_buffer((B * (H * W * C),), dtype, data=X.data)
            body(X, packed, bias, work, totals, work, flat, Y, B)

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
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
        packed = T.match_buffer(w, (T.int64(Mp), T.int64(Kp)), dtype)
        bias = T.match_buffer(b, (T.int64(Mp),), "float32")
        work = T.match_buffer(wo, (B * T.int64(rows),), "int32")
        totals = T.match_buffer(to, (T.int64(2),), "int32")
        source = T.match_buffer(so, (B * T.int64(rows),), "int32")
        centroids = T.match_buffer(ce, (U * cap, T.int64(K)), dtype)
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), dtype)
        flat_c = T.decl_buffer((U * cap * K,), dtype, data=centroids.data)
        body(X, packed, bias, work, totals, source, flat_c, Y, B)

    return represented
