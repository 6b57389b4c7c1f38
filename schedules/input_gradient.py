"""Gradient of a convolution's input as convolutions of stride 1 over dz, one for each phase of the strides.

dX[y, x, c] = sum over taps with (y + PT - ky DH) / SH = oy whole, likewise x, of dz[oy, ox, m] w[ky, kx, c, m]. Input
rows with equal (y + PT) mod SH read the same taps: rows y0, y0 + SH, ... are a convolution of dz by these taps, turned
round, with C and M exchanged; its padding may be negative. Where the strides are 1 that is all of dX. So no product is
of an inserted zero, and every phase runs as ``dense_conv2d`` with a schedule of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.conv_schedule import ConvSchedule
from adr_tvm.schedules.dense_conv2d import Destination, conv_task
from adr_tvm.schedules.transpose_tile import TILE, lanes, transpose_tile


@dataclass(frozen=True)
class Phase:
    """Input pixels origin + strides * (y, x) of a convolution.

    Attributes:
        origin: the first of them.
        geometry: the convolution of dz that computes them; None: no tap reaches them, they are 0.
        first_tap, tap_step: taps (rows, columns) of the forward convolution that it reads, in falling order.
    """

    origin: tuple[int, int]
    geometry: ConvGeometry | None
    first_tap: tuple[int, int] = (0, 0)
    tap_step: tuple[int, int] = (1, 1)

    @property
    def rows(self) -> int:
        """K of its weights."""
        return 0 if self.geometry is None else self.geometry.K


@dataclass(frozen=True)
class _Axis:
    origin: int
    count: int
    taps: int
    first: int
    step: int
    dilation: int
    before: int
    after: int


def _axes(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> list[_Axis]:
    found = []
    common = math.gcd(stride, dilation)
    for phase in range(min(stride, size)):
        origin, residue = phase, (phase + pad) % stride
        count = -(-(size - origin) // stride)
        reached = [k for k in range(kernel) if (k * dilation - residue) % stride == 0]
        if not reached:
            found.append(_Axis(origin, count, 0, 0, 1, 1, 0, 0))
            continue
        shift = (reached[0] * dilation - residue) // stride - (origin + pad - residue) // stride
        apart = dilation // common  # output rows between the taps
        before = shift + (len(reached) - 1) * apart
        after = count - out - before + (len(reached) - 1) * apart
        found.append(_Axis(origin, count, len(reached), reached[0], stride // common, apart, before, after))
    return found


def phases(geometry: ConvGeometry) -> list[Phase]:
    """The phases of a convolution, SH * SW of them or as many as it has input pixels."""
    g = geometry
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    found = []
    for y in _axes(g.H, g.OH, g.KH, SH, PT, DH):
        for x in _axes(g.W, g.OW, g.KW, SW, PL, DW):
            if y.taps * x.taps == 0:
                found.append(Phase((y.origin, x.origin), None))
                continue
            padding, apart = (y.before, x.before, y.after, x.after), (y.dilation, x.dilation)
            conv = ConvGeometry(g.OH, g.OW, g.M, y.taps, x.taps, g.C, (1, 1), padding, apart)
            found.append(Phase((y.origin, x.origin), conv, (y.first, x.first), (y.step, x.step)))
    return found


def packed_floats(phase: Phase, NR: int) -> int:
    """Size of a phase's packed weights."""
    return 0 if phase.geometry is None else -(-phase.geometry.M // NR) * phase.rows * NR


@functools.cache
def pack_phase_weights(geometry: ConvGeometry, widths: tuple[int, ...]) -> tirx.PrimFunc:
    """Weights of all phases, one after the other, each as ``packing.pack_weights`` lays out a convolution's.

    Args:
        widths: NR of each phase.

    Returns:
        PrimFunc of W float32 [KH, KW, C, M] and a flat float32 buffer.
    """
    C, M, KH, KW = geometry.C, geometry.M, geometry.KH, geometry.KW
    packs: list[tuple[Callable[..., Any], int]] = []
    size = 0
    for phase, NR in zip(phases(geometry), widths, strict=True):
        if phase.geometry is not None:
            packs.append((_pack_phase(phase, phase.geometry, NR, size), -(-C // NR) * phase.geometry.KH))
        size += packed_floats(phase, NR)

    def run(W, P):
        for pack, tasks in packs:
            with T.parallel(0, T.int64(tasks)) as task:
                pack(W, P, task)

    @T.prim_func(private=True)
    def kernel(w: T.handle, p: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        W = T.match_buffer(w, (T.int64(KH), T.int64(KW), T.int64(C), T.int64(M)), "float32")
        P = T.match_buffer(p, (T.int64(size),), "float32")
        run(W, P)

    return kernel


def _pack_phase(phase: Phase, conv: ConvGeometry, NR: int, start: int) -> Callable[..., Any]:
    """Inline ``(W, P, task)``: the taps of one row in one block of channels."""
    C, M, JH, JW = conv.M, conv.C, conv.KH, conv.KW
    whole = M // TILE * TILE if NR % TILE == 0 else 0

    def transpose(W, P, ky, kx, c, m, place):
        rows = [T.bind(W[ky, kx, c + i, lanes(m)]) for i in range(TILE)]
        for i, column in enumerate(transpose_tile(rows)):
            T.buffer_store(P, column, [lanes(place + i * NR)])

    @T.inline
    def channel(W, P, ky, kx, c, first, place):
        if c < C:
            for m in range(M - first):
                P[place + (first + m) * NR] = W[ky, kx, c, first + m]
        else:
            for m in range(M - first):
                P[place + (first + m) * NR] = T.float32(0)

    @T.inline
    def tap(W, P, ky, kx, c0, place):
        for tile in range(NR // TILE if whole > 0 else 0):
            if c0 + (tile + 1) * TILE <= C:
                for m in range(whole // TILE):
                    transpose(W, P, ky, kx, c0 + tile * TILE, m * TILE, place + m * (TILE * NR) + tile * TILE)
                for j in range(TILE if whole < M else 0):
                    channel(W, P, ky, kx, c0 + tile * TILE + j, whole, place + tile * TILE + j)
            else:
                for j in range(TILE):
                    channel(W, P, ky, kx, c0 + tile * TILE + j, 0, place + tile * TILE + j)
        for j in range(0 if whole > 0 else NR):
            channel(W, P, ky, kx, c0 + j, 0, place + j)

    @T.inline
    def inline(W, P, task):
        for jx in range(JW):
            ky = T.meta_var(phase.first_tap[0] + (JH - 1 - task % JH) * phase.tap_step[0])
            kx = T.meta_var(phase.first_tap[1] + (JW - 1 - jx) * phase.tap_step[1])
            place = T.meta_var(start + (task // JH * conv.K + (task % JH * JW + jx) * M) * NR)
            tap(W, P, ky, kx, task // JH * NR, place)

    return inline


@functools.cache
def input_gradient(geometry: ConvGeometry, batch: int, schedules: tuple[ConvSchedule | None, ...]) -> tirx.PrimFunc:
    """Returns: PrimFunc of dZ float32 [B, OH, OW, M], packed weights (flat) and dX float32 [B, H, W, C].

    Args:
        schedules: of the phases, None where a phase is zero.
    """
    g, B = geometry, batch
    whole, size = whole_input_gradient(geometry, batch, schedules)

    @T.prim_func(private=True)
    def kernel(dz: T.handle, p: T.handle, dx: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        DZ = T.match_buffer(dz, (T.int64(B), T.int64(g.OH), T.int64(g.OW), T.int64(g.M)), "float32")
        P = T.match_buffer(p, (T.int64(size),), "float32")
        DX = T.match_buffer(dx, (T.int64(B), T.int64(g.H), T.int64(g.W), T.int64(g.C)), "float32")
        flat = T.decl_buffer((T.int64(B * g.OH * g.OW * g.M),), "float32", data=DZ.data)
        whole(flat, P, DX)

    return kernel


def whole_input_gradient(
    geometry: ConvGeometry, batch: int, schedules: tuple[ConvSchedule | None, ...]
) -> tuple[Callable[..., Any], int]:
    """Inline ``(DZ, P, DX)``, dZ flat: all phases; and the floats of P."""
    found = phases(geometry)
    widths = [1 if s is None else s.tile.NR for s in schedules]
    size = sum(packed_floats(phase, NR) for phase, NR in zip(found, widths, strict=True))
    most = max(-(-geometry.C // NR) * NR for NR in widths)
    runs, start = [], 0
    for phase, schedule, NR in zip(found, schedules, widths, strict=True):
        if phase.geometry is None or schedule is None:
            runs.append(_clear(geometry, batch, phase))
        else:
            runs.append(_convolve(geometry, batch, phase, phase.geometry, schedule, start))
        start += packed_floats(phase, NR)

    def run(DZ, P, zeros, DX):
        for each in runs:
            each(DZ, P, zeros, DX)

    @T.inline
    def inline(DZ, P, DX):
        zeros = T.alloc_buffer((most,), "float32")
        for c in range(most):
            zeros[c] = T.float32(0)
        run(DZ, P, zeros, DX)

    return inline, size


def _convolve(
    geometry: ConvGeometry, batch: int, phase: Phase, conv: ConvGeometry, schedule: ConvSchedule, start: int
) -> Callable[..., Any]:
    """Inline ``(DZ, P, zeros, DX)``: one phase of dX."""
    NR, chunk, groups, rows = schedule.tile.NR, schedule.tile.MR * schedule.panels, schedule.groups, batch * conv.rows
    task = conv_task(conv, Activation(), schedule, Destination(strides=geometry.strides, origin=phase.origin))
    loop = T.parallel if schedule.parallel else T.serial

    @T.inline
    def inline(DZ, P, zeros, DX):
        packed = T.decl_buffer((-(-conv.M // NR), conv.K, NR), "float32", data=P.data, elem_offset=start)
        for t in loop(T.int64(-(-rows // chunk) * groups)):
            task(DZ, packed, zeros, DX, DX, t // groups * chunk, T.int64(rows), t % groups)

    return inline


def _clear(geometry: ConvGeometry, batch: int, phase: Phase) -> Callable[..., Any]:
    """Inline ``(DZ, P, zeros, DX)``: zeros in one phase of dX."""
    (SH, SW), (y0, x0), C = geometry.strides, phase.origin, geometry.C
    height, width = -(-(geometry.H - y0) // SH), -(-(geometry.W - x0) // SW)

    @T.inline
    def inline(DZ, P, zeros, DX):
        for t in T.parallel(T.int64(batch * height)):
            for x in range(width):
                for c in range(C):
                    DX[t // height, t % height * SH + y0, x * SW + x0, c] = T.float32(0)

    return inline
