"""Gradient of a convolution's input from the entries of dZ that are not zero, with the bits of the dense kernel.

dX[y, x, :] = sum over taps that read (y, x), and over the non-zero dz[oy, ox, m] there, of dz[oy, ox, m] w[tap, :, m].
Input channels stay in registers while the entries of the pixels that the taps lead to go by, in the order of the dense
kernel (``input_gradient.py``: falling taps, rising m); a product with zero left out of a chain of multiply-adds changes
nothing. Where an image has more entries than are listed, the dense kernel runs instead, in the same call.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.accumulators import Accumulators, across, splat
from adr_tvm.schedules.conv_schedule import ConvSchedule
from adr_tvm.schedules.gradient_layout import int64
from adr_tvm.schedules.input_gradient import whole_input_gradient
from adr_tvm.schedules.nonzero_lists import are_few, nonzero_lists
from adr_tvm.schedules.nonzero_weight_gradient import VECTORS
from adr_tvm.schedules.register_tile import Isa


@functools.cache
def nonzero_input_gradient(
    geometry: ConvGeometry, batch: int, schedules: tuple[ConvSchedule | None, ...], isa: Isa
) -> tirx.PrimFunc:
    """The kernel.

    Args:
        schedules: of the phases of the dense kernel.

    Returns:
        PrimFunc of dZ float32 [B, OH, OW, M], weights float32 [KH, KW, C, M], the same packed for the dense kernel,
        counts, starts, channels and values by pixel as ``NonzeroLists`` has them, and dX float32 [B, H, W, C].
    """
    g, B, C, M, KH, KW = geometry, batch, geometry.C, geometry.M, geometry.KH, geometry.KW
    lists = nonzero_lists(geometry, batch)
    all_listed, (dense, size) = are_few(lists), whole_input_gradient(geometry, batch, schedules)
    cap, OH, OW, lanes = lists.capacity, g.OH, g.OW, isa.lanes
    (SH, SW), (DH, DW), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    padded = -(-C // lanes) * lanes

    def inside(y, x, ky, kx):
        """Whether the output pixel exists that reads (y, x) by a tap."""
        below, right = y + PT - ky * DH, x + PL - kx * DW
        found = [below >= 0, below < OH * SH, right >= 0, right < OW * SW]
        found += [below % SH == 0] if SH > 1 else []
        found += [right % SW == 0] if SW > 1 else []
        return tirx.all(*found)

    def add_pixel(acc, turned, values, channels, b, begin, end, tap, first):
        with T.serial(begin, end) as i:
            value = T.bind(splat(values[b, i], lanes))
            start = T.bind((tap * M + channels[b, i]) * padded + first)
            acc.add(lambda _i, v: value * turned[across(start + v * lanes, lanes)])

    def store(acc, DX, place, first, vectors):
        for v in range(vectors):
            count = min(lanes, C - first - v * lanes)
            if count == lanes:
                T.buffer_store(DX, acc.vector(0, v), [across(place + first + v * lanes, lanes)])
            else:
                for j in range(count):
                    T.buffer_store(DX, acc.entries(0, v * lanes + j, 1), [place + first + v * lanes + j])

    def add_block(turned, starts, values, channels, DX, b, y, x, first):
        vectors = min(VECTORS, (padded - first) // lanes)
        acc = Accumulators(1, vectors, lanes)
        acc.clear()
        with T.serial(0, KH) as i:
            with T.serial(0, KW) as j:
                ky, kx = KH - 1 - i, KW - 1 - j
                with T.If(inside(y, x, ky, kx)):
                    with T.Then():
                        o = T.bind((y + PT - ky * DH) // SH * OW + (x + PL - kx * DW) // SW)
                        add_pixel(acc, turned, values, channels, b, starts[b, o], starts[b, o + 1], ky * KW + kx, first)
        store(acc, DX, ((b * g.H + y) * g.W + x) * C, first, vectors)

    def add_up(turned, starts, values, channels, DX, b, y, x):
        for first in range(0, padded, VECTORS * lanes):
            add_block(turned, starts, values, channels, DX, b, y, x, first)

    @T.prim_func(private=True)
    def kernel(z: T.handle, w: T.handle, p: T.handle, n: T.handle, s: T.handle, c: T.handle, v: T.handle, d: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        DZ = T.match_buffer(z, int64(B, OH, OW, M), "float32")
        W = T.match_buffer(w, int64(KH, KW, C, M), "float32")
        P = T.match_buffer(p, int64(size), "float32")
        counts = T.match_buffer(n, int64(B), "int32")
        starts = T.match_buffer(s, int64(B, lists.pixels + 1), "int32")
        channels = T.match_buffer(c, int64(B, cap + 1), "int32")
        values = T.match_buffer(v, int64(B, cap + 1), "float32")
        DX = T.match_buffer(d, int64(B, g.H, g.W, C), "float32")
        DZf = T.decl_buffer((B * OH * OW * M,), "float32", data=DZ.data)
        DXf = T.decl_buffer((B * g.H * g.W * C,), "float32", data=DX.data)
        few = T.alloc_buffer((1,), "int32", scope="local")
        all_listed(counts, few)
        if few[0] > 0:
            turned = T.alloc_buffer((KH * KW * M * padded,), "float32")
            for tap in T.parallel(T.int64(KH * KW)):
                for m in range(M):
                    for c in range(padded):
                        turned[(tap * M + m) * padded + c] = T.if_then_else(
                            c < C, W[tap // KW, tap % KW, T.min(c, C - 1), m], T.float32(0)
                        )
            for task in T.parallel(T.int64(B * g.H)):
                for x in range(g.W):
                    add_up(turned, starts, values, channels, DXf, task // g.H, task % g.H, x)
        else:
            dense(DZf, P, DX)

    return kernel
