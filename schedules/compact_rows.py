"""Operators on the compact form of activations (``schedules/gemm_distinct.py``): pooling, concatenation, expansion."""

from __future__ import annotations

import functools
import math

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as TB

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.gemm_distinct import filled, listed
from adr_tvm.schedules.im2col import LANES, copy_floats

TASK_ROWS = 64  # rows one task makes
LOWEST = -3.4028234663852886e38  # where a maximum starts, as in the dense pooling


def _shape(batch, *dims: int):
    return batch, *(tirx.IntImm("int64", d) for d in dims)


@functools.cache
def max_pool_distinct(geometry: ConvGeometry, scope: str) -> tirx.PrimFunc:
    """Max pooling of the distinct windows.

    Returns:
        PrimFunc of X float32 [B, H, W, C], its ids int32 [U, G * H * W] and stats int32 [U, 2], reps int32 [U, N] and
        stats int32 [U, 2] of the output, and its table float32 [B, OH, OW, C].
    """
    g = geometry
    H, W, C, OH, OW, KH, KW, rows = g.H, g.W, g.C, g.OH, g.OW, g.KH, g.KW, g.rows
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding

    @T.prim_func(private=True)
    def kernel(x: T.handle, pi: T.handle, ps: T.handle, rp: T.handle, st: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(B if scope == "image" else T.int64(1))
        G = T.meta_var(T.int64(1) if scope == "image" else B)
        N = T.meta_var(G * T.int64(rows))
        P = T.meta_var(G * T.int64(H * W))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        ids = T.match_buffer(pi, (U, P), "int32")
        in_stats = T.match_buffer(ps, (U, T.int64(2)), "int32")
        reps = T.match_buffer(rp, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(C)), "float32")
        table = T.decl_buffer((B * T.int64(H * W), T.int64(C)), "float32", data=X.data)
        pooled = T.decl_buffer((B * T.int64(rows), T.int64(C)), "float32", data=Y.data)
        for u in range(U):
            works = filled(stats, u, N)
            for task in T.parallel((works + TASK_ROWS - 1) // TASK_ROWS):
                for i in range(T.min(T.int64(TASK_ROWS), works - task * TASK_ROWS)):
                    work = T.meta_var(task * TASK_ROWS + i)
                    n = listed(stats, u, work, reps[u, work])
                    for c in range(C // LANES):
                        for j in T.vectorized(LANES):
                            pooled[u * N + work, c * LANES + j] = T.float32(LOWEST)
                    for c in range(C // LANES * LANES, C):
                        pooled[u * N + work, c] = T.float32(LOWEST)
                    for ky in range(KH):
                        for kx in range(KW):
                            iy = T.meta_var(n % rows // OW * SH - PT + ky * DH)
                            ix = T.meta_var(n % rows % OW * SW - PL + kx * DW)
                            inside = T.meta_var(T.And(T.And(iy >= 0, iy < H), T.And(ix >= 0, ix < W)))
                            pixel = T.meta_var(n // rows * (H * W) + iy * W + ix)
                            if inside:
                                row = u * P + listed(in_stats, u, pixel, ids[u, pixel])
                                for c in range(C // LANES):
                                    for j in T.vectorized(LANES):
                                        pooled[u * N + work, c * LANES + j] = T.max(
                                            pooled[u * N + work, c * LANES + j], table[row, c * LANES + j]
                                        )
                                for c in range(C // LANES * LANES, C):
                                    pooled[u * N + work, c] = T.max(pooled[u * N + work, c], table[row, c])

    return kernel


@functools.cache
def concat_distinct(
    image: tuple[int, ...], channels: tuple[int, ...], aligned: tuple[bool, ...], scope: str
) -> tirx.PrimFunc:
    """Concatenation along the channels of compact activations, of which one tells apart all that the others do.

    Args:
        image: rows and columns, or tokens.
        channels: of each input.
        aligned: whether an input has the ids of the result.
        scope: of the units.

    Returns:
        PrimFunc of reps int32 [U, G * pixels] and stats int32 [U, 2] of the result, of each input its table
        float32 [B, *image, C_i], ids int32 [U, G * pixels] and stats, and the result's table float32 [B, *image, C].
    """
    total, pixels = sum(channels), math.prod(image)
    with IRBuilder() as builder, TB.prim_func(is_private=True):
        TB.func_attr({"tirx.noalias": True, "op_pattern": 8})
        handles = [TB.arg(f"a{i}", TB.handle()) for i in range(2 + 3 * len(channels))]
        out = TB.arg("y", TB.handle())
        B = tirx.Var("B", "int64")
        U, G = (B, 1) if scope == "image" else (tirx.IntImm("int64", 1), B)
        P = G * tirx.IntImm("int64", pixels)
        two = tirx.IntImm("int64", 2)

        def ints(handle, columns):
            return TB.match_buffer(handle, (U, columns), "int32")

        def table(handle, count):
            return TB.match_buffer(handle, _shape(B, *image, count), "float32")

        def flat(whole):
            return TB.decl_buffer((B * pixels, whole.shape[-1]), "float32", data=whole.data)

        reps, stats = ints(handles[0], P), ints(handles[1], two)
        parts = [
            (table(handles[2 + 3 * i], count), ints(handles[3 + 3 * i], P), ints(handles[4 + 3 * i], two))
            for i, count in enumerate(channels)
        ]
        result = table(out, total)
        flats = [flat(whole) for whole, _, _ in parts]
        Y = flat(result)
        with TB.serial(0, U) as u:
            works = filled(stats, u, P)
            with TB.parallel(0, (works + (TASK_ROWS - 1)) // TASK_ROWS) as task, TB.serial(0, TASK_ROWS) as i:
                work = task * TASK_ROWS + i
                with TB.If(work < works), TB.Then():
                    offset = 0
                    for X, (_, ids, in_stats), count, same in zip(flats, parts, channels, aligned, strict=True):
                        pixel = listed(stats, u, work, reps[u, work])
                        row = u * P + (work if same else listed(in_stats, u, pixel, ids[u, pixel]))
                        if count >= LANES:
                            with TB.serial(0, count // LANES) as c, TB.vectorized(0, LANES) as j:
                                TB.buffer_store(Y, X[row, c * LANES + j], [u * P + work, offset + c * LANES + j])
                        if count % LANES:
                            start = count // LANES * LANES
                            with TB.serial(0, count % LANES) as j:
                                TB.buffer_store(Y, X[row, start + j], [u * P + work, offset + start + j])
                        offset += count
    return builder.get()


@functools.cache
def expand_rows(image: tuple[int, ...], channels: int, scope: str) -> tirx.PrimFunc:
    """The ordinary form of a compact activation.

    Args:
        image: rows and columns, or tokens.
        channels: of a pixel.
        scope: of the units.

    Returns:
        PrimFunc of the table float32 [B, *image, C], ids int32 [U, G * pixels], stats int32 [U, 2] and Y float32
        [B, *image, C].
    """
    pixels = math.prod(image)
    tasks, copy = -(-pixels // TASK_ROWS), copy_floats(channels)

    @T.prim_func(private=True)
    def kernel(x: T.handle, pi: T.handle, ps: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(B if scope == "image" else T.int64(1))
        G = T.meta_var(T.int64(1) if scope == "image" else B)
        P = T.meta_var(G * T.int64(pixels))
        X = T.match_buffer(x, _shape(B, *image, channels), "float32")
        ids = T.match_buffer(pi, (U, P), "int32")
        stats = T.match_buffer(ps, (U, T.int64(2)), "int32")
        Y = T.match_buffer(y, _shape(B, *image, channels), "float32")
        table = T.decl_buffer((B * (pixels * channels),), "float32", data=X.data)
        flat = T.decl_buffer((B * pixels, T.int64(channels)), "float32", data=Y.data)
        for task in T.parallel(B * tasks):
            u = T.meta_var(task // tasks // G)
            for i in range(T.min(TASK_ROWS, pixels - task % tasks * TASK_ROWS)):
                pixel = T.meta_var(task // tasks % G * pixels + task % tasks * TASK_ROWS + i)
                copy(flat, u * P + pixel, 0, table, (u * P + listed(stats, u, pixel, ids[u, pixel])) * channels)

    return kernel
