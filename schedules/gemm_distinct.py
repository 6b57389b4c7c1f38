"""Convolution of the distinct rows alone (``row`` + ``exact``), from and to the compact form of activations.

The compact form of an activation [B, H, W, C] is a table of the same size, of which each unit fills its first rows with
its distinct pixels, and the ids of the pixels in it. Nothing is copied to the pixels that share a row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.conv_schedule import THREADS, ConvSchedule, KSteps, k_steps
from adr_tvm.schedules.dense_conv2d import Destination, conv_task
from adr_tvm.schedules.im2col import copy_floats, zero_floats

Source = Literal["pixels", "ids", "rows"]


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer, and how its product is cut up."""

    geometry: ConvGeometry
    activation: Activation
    schedule: ConvSchedule


def filled(stats, u, rows):
    """Rows of a unit's table that hold something."""
    return T.if_then_else(stats[u, 1] != 0, T.cast(stats[u, 0], "int64"), rows)


def evenly(tasks):
    """A number of tasks, no smaller, that threads share evenly."""
    return T.if_then_else(tasks < THREADS, tasks, (tasks + (THREADS - 1)) // THREADS * THREADS)


def listed(stats, u, index, entry):
    """``entry`` of a map of a unit, where the unit has one: without, everything is at its own place."""
    return T.if_then_else(stats[u, 1] != 0, T.cast(entry, "int64"), T.cast(index, "int64"))


class Rows(NamedTuple):
    """Where the rows of a unit's table come from: buffers and expressions of a kernel.

    Attributes:
        x: the input, flat float32.
        ids, in_stats: int32 [U, P] and [U, 2] of its pixels.
        reps, stats: int32 [U, N] and [U, 2] of the output's.
        unit: number of the unit.
    """

    x: Any
    ids: Any
    in_stats: Any
    reps: Any
    stats: Any
    unit: Any


def _gather_rows(geometry: ConvGeometry, steps: KSteps, compact: bool):
    """Inline ``(rows, A, first, i, step, end)``: one step of K of row first + i of the output's table to A[i].

    Args:
        compact: whether the input is.
    """
    g, units, parts, entries, together = geometry, steps.units, steps.parts, steps.entries, steps.together
    H, W, C, KW, OW, per_image = g.H, g.W, g.C, g.KW, g.OW, g.rows
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    copy, zero = copy_floats(entries), zero_floats(entries)

    def place(rows: Rows, pixel, c0):
        here = listed(rows.in_stats, rows.unit, pixel, rows.ids[rows.unit, pixel]) if compact else pixel
        return (rows.unit * (rows.reps.shape[1] // per_image * (H * W)) + here) * C + c0

    @T.inline
    def inline(rows, A, first, i, step, end):
        work = T.min(first + i, end - 1) - rows.unit * rows.reps.shape[1]
        n = listed(rows.stats, rows.unit, work, rows.reps[rows.unit, work])
        for q in range(T.min(together, units - step * together)):
            tap = T.meta_var((step * together + q) // parts)
            c0 = T.meta_var((step * together + q) % parts * entries)
            iy = n % per_image // OW * SH - PT + tap // KW * DH
            ix = n % per_image % OW * SW - PL + tap % KW * DW
            if first + i < end and iy >= 0 and iy < H and ix >= 0 and ix < W:
                start = place(rows, n // per_image * (H * W) + iy * W + ix, c0)
                copy(A, i, q * entries, rows.x, start)
            else:
                zero(A, i, q * entries)

    return inline


@functools.cache
def gemm_distinct(layer: Layer, scope: str, source: Source) -> tirx.PrimFunc:
    """Rows of the output's table: products of the representatives, or of all rows of a unit that does not reuse.

    Args:
        layer: the layer; its schedule decides nothing about the result.
        scope: of the units.
        source: what X is: ``pixels`` (an ordinary activation), ``ids`` (compact), or ``rows``: compact, and the windows
            are its pixels, so that row w of the output is row w of the input.

    Returns:
        PrimFunc of X float32 [B, H, W, C], its ids int32 [U, G * H * W] and stats int32 [U, 2] (``pixels``: any int32
        [U, N] and [U, 2], not read), packed weights float32 [M/NR, K, NR], bias float32 [M padded to NR], reps int32
        [U, N] and stats int32 [U, 2] of the output, and its table float32 [B, OH, OW, M].
    """
    g, schedule = layer.geometry, layer.schedule
    H, W, C, OH, OW, M, K = g.H, g.W, g.C, g.OH, g.OW, g.M, g.K
    MR, NR, groups = schedule.tile.MR, schedule.tile.NR, schedule.groups
    direct = source == "rows"
    gather = None if direct else _gather_rows(g, k_steps(g, schedule.k_step), source == "ids")
    multiply = conv_task(g, layer.activation, schedule, Destination(), gather)
    blocks = -(-M // NR)
    loop = T.parallel if schedule.parallel else T.serial

    @T.prim_func(private=True)
    def kernel(
        x: T.handle, pi: T.handle, ps: T.handle, w: T.handle, b: T.handle, rp: T.handle, st: T.handle, y: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        U = T.meta_var(B if scope == "image" else T.int64(1))
        G = T.meta_var(T.int64(1) if scope == "image" else B)
        N = T.meta_var(G * T.int64(g.rows))
        P = T.meta_var(G * T.int64(H * W))
        image = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), "float32")
        ids = T.match_buffer(pi, (U, N if source == "pixels" else P), "int32")
        in_stats = T.match_buffer(ps, (U, T.int64(2)), "int32")
        packed = T.match_buffer(w, (T.int64(blocks), T.int64(K), T.int64(NR)), "float32")
        bias = T.match_buffer(b, (T.int64(blocks * NR),), "float32")
        reps = T.match_buffer(rp, (U, N), "int32")
        stats = T.match_buffer(st, (U, T.int64(2)), "int32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(M)), "float32")
        flat = T.decl_buffer((B * (H * W * C),), "float32", data=image.data)
        tasks = T.alloc_buffer((U,), "int64")  # of a unit and those before it
        task_rows = T.alloc_buffer((U,), "int64")
        for u in range(U):
            panels = (filled(stats, u, N) + (MR - 1)) // MR
            chunks = evenly((panels + (schedule.panels - 1)) // schedule.panels)
            task_rows[u] = (panels + (chunks - 1)) // chunks * MR
            here = (filled(stats, u, N) + (task_rows[u] - 1)) // task_rows[u] * groups
            tasks[u] = here + T.if_then_else(u > 0, tasks[T.max(u - 1, 0)], T.int64(0))
        for task in loop(tasks[U - 1]):
            unit = T.alloc_buffer((1,), "int64", scope="local")
            unit[0] = T.int64(0)
            while task >= tasks[unit[0]]:
                unit[0] = unit[0] + 1
            u = unit[0]
            t = task - T.if_then_else(u > 0, tasks[T.max(u - 1, 0)], T.int64(0))
            first = u * N + t // groups * task_rows[u]
            end = T.min(first + task_rows[u], u * N + filled(stats, u, N))
            X = T.meta_var(flat if direct else Rows(flat, ids, in_stats, reps, stats, u))
            multiply(X, packed, bias, Y, Y, first, end, t % groups)

    return kernel
