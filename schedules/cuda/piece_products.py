"""Both gradients from the sums of pieces (``docs/algorithm.md``, clauses B3 and B4; ``cluster_pieces``): two GEMMs.

    dW_{s,t}[l, m] += sum over pieces i of C_s[cluster of i, l] D_i[t, m]
    E_i[l] = sum over t, m of D_i[t, m] W_{s,t}[l, m]

Both grids are made for as many pieces as there can be; blocks without work return at once. Every sum is a chain over
the pieces, or over (t, m), in order.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.schedules.cuda.cluster_pieces import BLOCKS, ClusterPieces

BK = 16  # pieces, or channels, of a step
THREADS = 128
WIDE = 48  # entries of a vector from which on tiles are wide
SKEW = 4


def _weight_tile(layout: ClusterPieces) -> tuple[int, int, int, int]:
    """Entries of a vector and sums that a block makes, and those of a thread."""
    return (16, 128, 4, 4) if layout.L < WIDE else (64, 128, 8, 8)


def _centroid_tile(layout: ClusterPieces) -> tuple[int, int, int, int]:
    """Pieces and entries of a vector that a block makes, and those of a thread."""
    return (64, 16, 4, 2) if layout.L < WIDE else (64, 64, 8, 4)


def weight_parts(layout: ClusterPieces) -> int:
    """Parts of the weight gradient, which are added up in order: of the units, or of the pieces of the only one."""
    BM, BN, *_ = _weight_tile(layout)
    tiles = layout.together * -(-layout.L // BM) * -(-layout.width // BN)
    most = layout.units if layout.units > 1 else -(-layout.rows // (4 * BK))
    parts = max(1, min(BLOCKS // tiles, most))
    return -(-layout.units // -(-layout.units // parts)) if layout.units > 1 else parts


@functools.cache
def piece_weight_gradient(layout: ClusterPieces, first: bool) -> tirx.PrimFunc:
    """Adds a round to the parts of dW.

    Args:
        first: the round's pieces are the first of their segments: what the sums held does not count.

    Returns:
        PrimFunc of centroids float32 [U, S, centroid rows, Lp], owners int32 [groups, pieces], totals int32 [groups,
        2], round int32 [2] and table as of ``piece_sums``, and sums float32 [parts, K, M], which it changes.
    """
    g, L, S, U, M, K = layout.geometry, layout.L, layout.segments, layout.units, layout.geometry.M, layout.geometry.K
    rows, together, width, pieces, Lp, height = (
        layout.rows, layout.together, layout.width, layout.pieces, layout.Lp, layout.centroid_rows
    )  # fmt: skip
    BM, BN, TM, TN = _weight_tile(layout)
    parts, per_row = weight_parts(layout), BN // TN
    of_part = -(-U // parts) if U > 1 else 1  # units
    down, across = -(-L // BM), -(-width // BN)
    V = 4 if g.M % 4 == 0 else 1
    valid_length, weight_row = layout.valid_length, layout.weight_row

    def first_step(part, steps):
        return 0 if U > 1 else part * ((steps + (parts - 1)) // parts)

    def last_step(part, steps):
        return steps if U > 1 else T.min(steps, (part + 1) * ((steps + (parts - 1)) // parts))

    @T.prim_func(private=True)
    def kernel(ce: T.handle, ow: T.handle, to: T.handle, ro: T.handle, ta: T.handle, su: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        centroids = T.match_buffer(ce, (T.int64(U), T.int64(S), T.int64(height), T.int64(Lp)), "float32")
        owners = T.match_buffer(ow, (T.int64(U * S), T.int64(pieces)), "int32")
        totals = T.match_buffer(to, (T.int64(U * S), T.int64(2)), "int32")
        round = T.match_buffer(ro, (T.int64(2),), "int32")
        table = T.match_buffer(ta, (T.int64(U), T.int64(together), T.int64(rows), T.int64(width)), "float32")
        sums = T.match_buffer(su, (T.int64(parts), T.int64(K), T.int64(M)), "float32")
        flat_c = T.decl_buffer((U * S * height * Lp,), "float32", data=centroids.data)
        flat_table = T.decl_buffer((U * together * rows * width,), "float32", data=table.data)
        for block in T.thread_binding(parts * together * down * across, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                A = T.alloc_buffer((BK * BM,), "float32", scope="shared")
                Z = T.alloc_buffer((BK * BN,), "float32", scope="shared")
                acc = T.alloc_buffer((TM * TN,), "float32", scope="local")
                a = T.alloc_buffer((TM,), "float32", scope="local")
                b = T.alloc_buffer((TN,), "float32", scope="local")
                many = T.alloc_buffer((1,), "int32", scope="local")
                steps = T.alloc_buffer((2,), "int32", scope="local")
                part = T.meta_var(block // (together * down * across))
                z = T.meta_var(block // (down * across) % together)
                l0 = T.meta_var(block // across % down * BM)
                k0 = T.meta_var(block % across * BN)
                s = T.meta_var(round[0] * together + z)
                if s >= S:
                    T.evaluate(T.thread_return())
                for i in T.unroll(TM * TN):
                    acc[i] = T.float32(0)
                for unit in range(of_part):
                    u = T.meta_var(part * of_part + unit if U > 1 else 0)
                    if u < U:
                        many[0] = T.min(totals[u * S + s, 0] - round[1] * rows, rows)
                        steps[0] = first_step(part, (many[0] + (BK - 1)) // BK)
                        steps[1] = last_step(part, (many[0] + (BK - 1)) // BK)
                        for step in range(T.max(steps[1] - steps[0], 0)):
                            r0 = T.meta_var((steps[0] + step) * BK)
                            for i in T.unroll(BK * BM // THREADS):
                                r = T.meta_var((i * THREADS + t) // BM)
                                l = T.meta_var((i * THREADS + t) % BM)
                                if T.And(r0 + r < many[0], l0 + l < L):
                                    owner = T.meta_var(owners[u * S + s, round[1] * rows + r0 + r])
                                    row = T.meta_var(T.cast((u * S + s) * height + owner, "int64"))
                                    A[r * BM + l] = flat_c[row * Lp + l0 + l]
                                else:
                                    A[r * BM + l] = T.float32(0)
                            for i in T.unroll(BK * BN // V // THREADS):
                                r = T.meta_var((i * THREADS + t) // (BN // V))
                                j = T.meta_var((i * THREADS + t) % (BN // V) * V)
                                if T.And(r0 + r < many[0], k0 + j < width):
                                    row = T.meta_var(T.cast((u * together + z) * rows + r0 + r, "int64"))
                                    for v in T.vectorized(V):
                                        Z[r * BN + j + v] = flat_table[row * width + k0 + j + v]
                                else:
                                    for v in T.vectorized(V):
                                        Z[r * BN + j + v] = T.float32(0)
                            T.tvm_storage_sync("shared")
                            for r in T.unroll(BK):
                                for i in T.unroll(TM // 4):
                                    for v in T.vectorized(4):
                                        a[i * 4 + v] = A[r * BM + i * (BM // (TM // 4)) + t // per_row * 4 + v]
                                for j in T.unroll(TN // 4):
                                    for v in T.vectorized(4):
                                        b[j * 4 + v] = Z[r * BN + j * (BN // (TN // 4)) + t % per_row * 4 + v]
                                for i in T.unroll(TM):
                                    for j in T.unroll(TN):
                                        acc[i * TN + j] = acc[i * TN + j] + a[i] * b[j]
                            T.tvm_storage_sync("shared")
                for i in T.unroll(TM):
                    l = T.meta_var(l0 + i // 4 * (BM // (TM // 4)) + t // per_row * 4 + i % 4)
                    if l < valid_length(s):
                        for j in T.unroll(TN):
                            k = T.meta_var(k0 + j // 4 * (BN // (TN // 4)) + t % per_row * 4 + j % 4)
                            if k < width:
                                row = T.meta_var(weight_row(s, k // M, l))
                                sums[part, row, k % M] = (
                                    acc[i * TN + j] if first else sums[part, row, k % M] + acc[i * TN + j]
                                )

    return kernel


@functools.cache
def piece_centroid_gradient(layout: ClusterPieces) -> tirx.PrimFunc:
    """E of the pieces of a round.

    Returns:
        PrimFunc of w float32 [KH, KW, C, M], totals, round and table as of ``piece_weight_gradient`` and E float32
        [groups, pieces, L], of which it writes the round's.
    """
    g, L, S, U, M, K = layout.geometry, layout.L, layout.segments, layout.units, layout.geometry.M, layout.geometry.K
    rows, together, width, pieces = layout.rows, layout.together, layout.width, layout.pieces
    BM, BN, TM, TN = _centroid_tile(layout)
    down, across, per_row = -(-rows // BM), -(-L // BN), BN // TN
    V = 4 if M % 4 == 0 else 1
    A_PITCH, W_PITCH = BM + SKEW, BN + SKEW
    lanes = BK // V
    valid_length, weight_row = layout.valid_length, layout.weight_row

    @T.prim_func(private=True)
    def kernel(w: T.handle, to: T.handle, ro: T.handle, ta: T.handle, e: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
        weights = T.match_buffer(w, (T.int64(g.KH), T.int64(g.KW), T.int64(g.C), T.int64(M)), "float32")
        totals = T.match_buffer(to, (T.int64(U * S), T.int64(2)), "int32")
        round = T.match_buffer(ro, (T.int64(2),), "int32")
        table = T.match_buffer(ta, (T.int64(U), T.int64(together), T.int64(rows), T.int64(width)), "float32")
        E = T.match_buffer(e, (T.int64(U * S), T.int64(pieces), T.int64(L)), "float32")
        flat_w = T.decl_buffer((K * M,), "float32", data=weights.data)
        flat_table = T.decl_buffer((U * together * rows * width,), "float32", data=table.data)
        for block in T.thread_binding(U * together * down * across, "blockIdx.x"):
            for t in T.thread_binding(THREADS, "threadIdx.x"):
                A = T.alloc_buffer((BK * A_PITCH,), "float32", scope="shared")
                W = T.alloc_buffer((BK * W_PITCH,), "float32", scope="shared")
                acc = T.alloc_buffer((TM * TN,), "float32", scope="local")
                a = T.alloc_buffer((TM,), "float32", scope="local")
                b = T.alloc_buffer((TN,), "float32", scope="local")
                values = T.alloc_buffer((V,), "float32", scope="local")
                many = T.alloc_buffer((1,), "int32", scope="local")
                u = T.meta_var(block // (together * down * across))
                z = T.meta_var(block // (down * across) % together)
                r0 = T.meta_var(block // across % down * BM)
                l0 = T.meta_var(block % across * BN)
                s = T.meta_var(round[0] * together + z)
                if s >= S:
                    T.evaluate(T.thread_return())
                many[0] = T.min(totals[u * S + s, 0] - round[1] * rows, rows)
                if r0 >= many[0]:
                    T.evaluate(T.thread_return())
                for i in T.unroll(TM * TN):
                    acc[i] = T.float32(0)
                for step in range(-(-width // BK)):
                    k = T.meta_var(step * BK + t % lanes * V)
                    for i in T.unroll(-(-(BM * lanes) // THREADS)):
                        r = T.meta_var((i * THREADS + t) // lanes)
                        if T.And(r0 + r < many[0], k < width):
                            row = T.meta_var(T.cast((u * together + z) * rows + r0 + r, "int64"))
                            for v in T.vectorized(V):
                                values[v] = flat_table[row * width + k + v]
                        else:
                            for v in T.vectorized(V):
                                values[v] = T.float32(0)
                        for v in T.unroll(V):
                            A[(t % lanes * V + v) * A_PITCH + r] = values[v]
                    for i in T.unroll(-(-(BN * lanes) // THREADS)):
                        l = T.meta_var((i * THREADS + t) // lanes)
                        if l < BN:
                            if T.And(l0 + l < valid_length(s), k < width):
                                for v in T.vectorized(V):
                                    values[v] = flat_w[weight_row(s, k // M, l0 + l) * M + k % M + v]
                            else:
                                for v in T.vectorized(V):
                                    values[v] = T.float32(0)
                            for v in T.unroll(V):
                                W[(t % lanes * V + v) * W_PITCH + l] = values[v]
                    T.tvm_storage_sync("shared")
                    for j in T.unroll(BK):
                        for v in T.vectorized(4):
                            a[v] = A[j * A_PITCH + t // per_row * 4 + v]
                        if TM > 4:
                            for v in T.vectorized(4):
                                a[4 + v] = A[j * A_PITCH + BM // 2 + t // per_row * 4 + v]
                        for v in T.vectorized(TN):
                            b[v] = W[j * W_PITCH + t % per_row * TN + v]
                        for i in T.unroll(TM):
                            for v in T.unroll(TN):
                                acc[i * TN + v] = acc[i * TN + v] + a[i] * b[v]
                    T.tvm_storage_sync("shared")
                for i in T.unroll(TM):
                    r = T.meta_var(r0 + i // 4 * (BM // 2) + t // per_row * 4 + i % 4)
                    if r < many[0]:
                        for v in T.unroll(TN):
                            l = T.meta_var(l0 + t % per_row * TN + v)
                            if l < L:
                                E[u * S + s, round[1] * rows + r, l] = acc[i * TN + v]

    return kernel
