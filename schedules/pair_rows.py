"""Elementwise operators of two compact activations whose ids differ, such as the sum at the end of a residual block.

A pixel of the result is known by the pair of ids that it has in the two inputs; equal pairs get one number, as equal
windows do (``schedules/number_windows.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.cluster import UNLIMITED, units
from adr_tvm.schedules.compact_rows import TASK_ROWS
from adr_tvm.schedules.gemm_distinct import filled, listed
from adr_tvm.schedules.im2col import LANES
from adr_tvm.schedules.number_windows import WindowSource, number_windows
from adr_tvm.settings import ReuseSetting

# By operator; each rounds once, so that it gives the bits of the same operator on ordinary activations.
PAIRED: dict[str, Callable[[Any, Any], Any]] = {
    "relax.add": lambda a, b: a + b,
    "relax.subtract": lambda a, b: a - b,
    "relax.multiply": lambda a, b: a * b,
}


@functools.cache
def pair_rows(H: int, W: int, C: int, setting: ReuseSetting) -> tirx.PrimFunc:
    """Number the pairs of ids.

    Returns:
        PrimFunc of X float32 [B, H, W, C] (not read: its shape gives B), of both inputs the ids int32 [U, G * H * W]
        and stats int32 [U, 2], then the outputs ids, reps and stats likewise. A unit that is known by ids in both
        inputs reuses.
    """
    limit = UNLIMITED if setting.max_clusters is None else setting.max_clusters
    by_image = setting.scope == "image"

    def name(pair, image, iy, ix, c):
        place = iy * W + ix
        a, b = (ids[image, place] if by_image else ids[0, image * (H * W) + place] for ids in pair)
        if isinstance(c, int):
            return (a, b)[c] + 1
        return T.Select(c == 0, a, b) + 1

    number = number_windows(ConvGeometry(H, W, C, 1, 1, C), WindowSource(2, name, floats=False))

    @T.prim_func(private=True)
    def kernel(
        x: T.handle,
        ai: T.handle,
        ats: T.handle,
        bi: T.handle,
        bts: T.handle,
        i: T.handle,
        rp: T.handle,
        st: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(units(setting, B)[0])
        G = T.meta_var(units(setting, B)[1])
        P = T.meta_var(G * T.int64(H * W))
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")  # noqa: F841
        a_ids = T.match_buffer(ai, (U, P), "int32")
        a_stats = T.match_buffer(ats, (U, T.int64(2)), "int32")
        b_ids = T.match_buffer(bi, (U, P), "int32")
        b_stats = T.match_buffer(bts, (U, T.int64(2)), "int32")
        ids = T.match_buffer(i, (U, P), "int32")
        reps = T.match_buffer(rp, (U, P), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        go = T.alloc_buffer((U,), "int32")
        count = T.alloc_buffer((U,), "int32")
        pair = T.meta_var((a_ids, b_ids))
        for u in range(U):
            go[u] = a_stats[u, 1] & b_stats[u, 1]
        number(pair, ids, reps, go, count, U, G, B, limit)
        for u in range(U):
            stats[u, 0] = count[u]
            stats[u, 1] = go[u]

    return kernel


@functools.cache
def paired(H: int, W: int, C: int, scope: str, operator: str) -> tirx.PrimFunc:
    """The operator on the pairs' representatives.

    Returns:
        PrimFunc of each input's table float32 [B, H, W, C], ids int32 [U, G * H * W] and stats int32 [U, 2], then reps
        int32 [U, G * H * W] and stats of the result, and its table.
    """
    op = PAIRED[operator]

    @T.prim_func(private=True)
    def kernel(
        a: T.handle,
        ai: T.handle,
        ats: T.handle,
        b: T.handle,
        bi: T.handle,
        bts: T.handle,
        rp: T.handle,
        st: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(B if scope == "image" else T.int64(1))
        G = T.meta_var(T.int64(1) if scope == "image" else B)
        P = T.meta_var(G * T.int64(H * W))
        first = T.match_buffer(a, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        a_ids = T.match_buffer(ai, (U, P), "int32")
        a_stats = T.match_buffer(ats, (U, T.int64(2)), "int32")
        second = T.match_buffer(b, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        b_ids = T.match_buffer(bi, (U, P), "int32")
        b_stats = T.match_buffer(bts, (U, T.int64(2)), "int32")
        reps = T.match_buffer(rp, (U, P), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        result = T.match_buffer(y, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        A = T.decl_buffer((B * (H * W), T.int64(C)), "float32", data=first.data)
        Z = T.decl_buffer((B * (H * W), T.int64(C)), "float32", data=second.data)
        Y = T.decl_buffer((B * (H * W), T.int64(C)), "float32", data=result.data)
        for u in range(U):
            works = filled(stats, u, P)
            for task in T.parallel((works + (TASK_ROWS - 1)) // TASK_ROWS):
                for i in range(T.min(T.int64(TASK_ROWS), works - task * TASK_ROWS)):
                    work = T.meta_var(task * TASK_ROWS + i)
                    pixel = listed(stats, u, work, reps[u, work])
                    row = u * P + listed(a_stats, u, pixel, a_ids[u, pixel])
                    other = u * P + listed(b_stats, u, pixel, b_ids[u, pixel])
                    for c in range(C // LANES):
                        for j in T.vectorized(LANES):
                            Y[u * P + work, c * LANES + j] = op(A[row, c * LANES + j], Z[other, c * LANES + j])
                    for c in range(C // LANES * LANES, C):
                        Y[u * P + work, c] = op(A[row, c], Z[other, c])

    return kernel
