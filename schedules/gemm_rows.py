"""GEMM over the representatives of rows clustered by sign hashes, and the copy of products to the other rows."""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import capacity, units
from adr_tvm.schedules.im2col import LANES, copy_row
from adr_tvm.schedules.microkernel import multiply_tile, store_row
from adr_tvm.schedules.register_tile import RegisterTile, panels_left
from adr_tvm.settings import ReuseSetting

COPY_ROWS = 64  # rows one task of the scatter looks at


@functools.cache
def gemm_rows(
    geometry: ConvGeometry, setting: ReuseSetting, activation: Activation, tile: RegisterTile
) -> tirx.PrimFunc:
    """Products of the representatives, written to their own rows of Y; the other rows stay unwritten.

    Returns:
        PrimFunc of X float32 [B, H, W, C], packed weights float32 [M/NR, K, NR], bias float32 [M padded to NR],
        lead, reps, source int32 [U, N] and centroids float32 [U, capacity, K] of ``cluster_rows``, and Y float32
        [B, OH, OW, M].
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
    MR, NR, rows = tile.MR, tile.NR, geometry.rows
    blocks, chunk = -(-M // NR), tile.chunk_rows(geometry.K)
    copy, multiply, store = copy_row(geometry), multiply_tile(tile), store_row(tile, M, OW, activation)

    @T.inline
    def copy_centroid(centroids, u, c, A, i):
        for k in range(K // LANES):
            for j in T.vectorized(LANES):
                A[i, k * LANES + j] = centroids[u, c, k * LANES + j]
        for j in range(K % LANES):
            A[i, K // LANES * LANES + j] = centroids[u, c, K // LANES * LANES + j]

    @T.prim_func(private=True)
    def kernel(
        x: T.handle,
        w: T.handle,
        b: T.handle,
        ld: T.handle,
        rp: T.handle,
        so: T.handle,
        c: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        N = T.meta_var(G * T.int64(rows))
        cap = T.meta_var(capacity(setting, N if setting.scope == "batch" else rows))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        packed = T.match_buffer(w, (T.int64(blocks), T.int64(K), T.int64(NR)), "float32")
        bias = T.match_buffer(b, (T.int64(blocks * NR),), "float32")
        lead = T.match_buffer(ld, (U, N), "int32")
        reps = T.match_buffer(rp, (U, N), "int32")
        source = T.match_buffer(so, (U, N), "int32")
        centroids = T.match_buffer(c, (U, cap, T.int64(K)), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        works = T.alloc_buffer((U,), "int64")
        for u in T.parallel(U):
            works[u] = T.int64(0)
            for n in range(N):
                if lead[u, n] == T.cast(n, "int32"):
                    works[u] = works[u] + T.int64(1)
        for u in range(U):
            for task in T.parallel((works[u] + T.int64(chunk - 1)) // T.int64(chunk)):
                A = T.alloc_buffer((chunk, K), "float32")
                panels = T.meta_var(panels_left(works[u] - task * chunk, chunk, MR))
                for i in range(panels * MR):
                    work = T.meta_var(task * chunk + i)
                    if work < works[u]:
                        if source[u, work] >= 0:
                            copy_centroid(centroids, u, source[u, work], A, i)
                        else:
                            copy(X, u * G + reps[u, work] // rows, reps[u, work] % rows, rows, A, i, 0)
                    else:
                        for k in range(K):
                            A[i, k] = T.float32(0)
                for block in range(blocks):
                    for panel in range(panels):
                        acc = T.alloc_buffer((MR, NR), "float32", scope="local")
                        multiply(acc, A, panel * MR, K, packed, block)
                        for i in T.unroll(MR):
                            work = T.meta_var(task * chunk + panel * MR + i)
                            if work < works[u]:
                                store(
                                    acc,
                                    i,
                                    bias,
                                    block,
                                    Y,
                                    u * G + reps[u, work] // rows,
                                    T.cast(reps[u, work] % rows, "int64"),
                                    0,
                                )

    return kernel


@functools.cache
def scatter_rows(geometry: ConvGeometry, setting: ReuseSetting) -> tirx.PrimFunc:
    """Copy each representative's output row to the rows it leads, in place.

    Returns:
        PrimFunc of lead int32 [U, N] and Y float32 [B, OH, OW, M] (read and written).
    """
    OH, OW, M, rows = geometry.OH, geometry.OW, geometry.M, geometry.rows
    chunks = -(-rows // COPY_ROWS)
    body = M // LANES

    @T.prim_func(private=True)
    def kernel(ld: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        lead = T.match_buffer(ld, (U, G * T.int64(rows)), "int32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        for task in T.parallel(B * chunks):
            image = T.meta_var(task // chunks)
            for i in range(T.min(COPY_ROWS, rows - task % chunks * COPY_ROWS)):
                n = T.meta_var(task % chunks * COPY_ROWS + i)
                leader = T.meta_var(lead[image // G, image % G * rows + n])
                if leader != T.cast(image % G * rows + n, "int32"):
                    source = T.meta_var(image // G * G + leader // rows)
                    m = T.meta_var(leader % rows)
                    for c in range(body):
                        for j in T.vectorized(LANES):
                            Y[image, n // OW, n % OW, c * LANES + j] = Y[source, m // OW, m % OW, c * LANES + j]
                    for j in range(M % LANES):
                        Y[image, n // OW, n % OW, body * LANES + j] = Y[source, m // OW, m % OW, body * LANES + j]

    return kernel
