"""Gradient of a convolution's weights from the entries of dZ that are not zero, with the bits of the dense kernel.

dW[tap, :, m] = sum over the non-zero dz[n, m] of x[n shifted by tap, :] dz[n, m]. The input channels of one tap (of
few channels, those of a row of taps) stay in registers while the entries of a channel m of an image go by. Parts and
the order of a part's pixels are those of ``weight_gradient``: a product with zero left out of a chain of multiply-adds
changes nothing, so the sums are the same, bit by bit. Where an image has more entries than are listed, the dense
kernel runs instead, in the same call.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.accumulators import Accumulators, across, splat
from adr_tvm.schedules.gradient_layout import int64
from adr_tvm.schedules.im2col import copy_floats, zero_floats
from adr_tvm.schedules.nonzero_lists import are_few, nonzero_lists
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.weight_gradient import whole_epilogue_weight_gradient, whole_weight_gradient
from adr_tvm.schedules.weight_gradient_schedule import WeightGradientSchedule, layout_of, parts_of

VECTORS = 8  # accumulators: as many as hide the latency of a multiply-add


def can_skip_zeros(geometry: ConvGeometry, batch: int) -> bool:
    """Whether the kernel is for such layers: of several taps, whose parts are whole images."""
    return geometry.KH * geometry.KW > 1 and layout_of(geometry, batch).batch > 1


@functools.cache
def nonzero_weight_gradient(
    geometry: ConvGeometry, batch: int, schedule: WeightGradientSchedule, isa: Isa
) -> tirx.PrimFunc:
    """The kernel.

    Args:
        schedule: of the dense kernel.

    Returns:
        PrimFunc of X float32 [B, H, W, C], dZ float32 [B, OH, OW, M], counts, starts, pixels and values by channel as
        ``NonzeroLists`` has them, and dW float32 [KH, KW, C, M].
    """
    g, B, M, K, lists = geometry, batch, geometry.M, geometry.K, nonzero_lists(geometry, batch)
    all_listed, dense = are_few(lists), whole_weight_gradient(geometry, batch, schedule)
    sparse, _ = _sparse(geometry, batch, isa)

    @T.prim_func(private=True)
    def kernel(x: T.handle, z: T.handle, n: T.handle, s: T.handle, p: T.handle, v: T.handle, w: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, int64(B, g.H, g.W, g.C), "float32")
        DZ = T.match_buffer(z, int64(B, g.OH, g.OW, M), "float32")
        counts = T.match_buffer(n, int64(B), "int32")
        starts = T.match_buffer(s, int64(B, M + 1), "int32")
        pixels = T.match_buffer(p, int64(B, lists.capacity + 1), "int32")
        values = T.match_buffer(v, int64(B, lists.capacity + 1), "float32")
        DW = T.match_buffer(w, int64(g.KH, g.KW, g.C, M), "float32")
        Xf = T.decl_buffer((T.int64(B * g.H * g.W * g.C),), "float32", data=X.data)
        DZf = T.decl_buffer((T.int64(B * g.OH * g.OW * M),), "float32", data=DZ.data)
        DWf = T.decl_buffer((T.int64(K * M),), "float32", data=DW.data)
        few = T.alloc_buffer((1,), "int32", scope="local")
        all_listed(counts, few)
        if few[0] > 0:
            sparse(Xf, starts, pixels, values, DWf)
        else:
            dense(Xf, DZf, DWf)

    return kernel


@functools.cache
def nonzero_epilogue_weight_gradient(
    geometry: ConvGeometry, activation: Activation, batch: int, schedule: WeightGradientSchedule, isa: Isa
) -> tirx.PrimFunc:
    """The same without dZ, with the gradient of the bias, for a schedule that ``packs_once``.

    Returns:
        PrimFunc of X float32 [B, H, W, C], Y and dY float32 [B, OH, OW, M], counts, starts, pixels and values by
        channel, dW float32 [KH, KW, C, M], dbias float32 [M].
    """
    g, B, M, K, lists = geometry, batch, geometry.M, geometry.K, nonzero_lists(geometry, batch)
    all_listed, dense = are_few(lists), whole_epilogue_weight_gradient(geometry, activation, batch, schedule)
    sparse, add_values = _sparse(geometry, batch, isa)

    @T.prim_func(private=True)
    def kernel(
        x: T.handle, y: T.handle, d: T.handle, n: T.handle, s: T.handle, p: T.handle, v: T.handle, w: T.handle,
        db: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, int64(B, g.H, g.W, g.C), "float32")
        Y = T.match_buffer(y, int64(B, g.OH, g.OW, M), "float32")
        DY = T.match_buffer(d, int64(B, g.OH, g.OW, M), "float32")
        counts = T.match_buffer(n, int64(B), "int32")
        starts = T.match_buffer(s, int64(B, M + 1), "int32")
        pixels = T.match_buffer(p, int64(B, lists.capacity + 1), "int32")
        values = T.match_buffer(v, int64(B, lists.capacity + 1), "float32")
        DW = T.match_buffer(w, int64(g.KH, g.KW, g.C, M), "float32")
        DB = T.match_buffer(db, int64(M), "float32")
        Xf = T.decl_buffer((T.int64(B * g.H * g.W * g.C),), "float32", data=X.data)
        Yf = T.decl_buffer((T.int64(B * g.OH * g.OW * M),), "float32", data=Y.data)
        DYf = T.decl_buffer((T.int64(B * g.OH * g.OW * M),), "float32", data=DY.data)
        DWf = T.decl_buffer((T.int64(K * M),), "float32", data=DW.data)
        few = T.alloc_buffer((1,), "int32", scope="local")
        all_listed(counts, few)
        if few[0] > 0:
            sparse(Xf, starts, pixels, values, DWf)
            add_values(starts, values, DB)
        else:
            dense(Xf, Yf, DYf, DWf, DB)

    return kernel


def _sparse(geometry: ConvGeometry, batch: int, isa: Isa) -> tuple[Any, Any]:
    """Inline ``(X, starts, pixels, values, DW)``, X and dW flat, and inline ``(starts, values, DB)``."""
    g, B, M = geometry, batch, geometry.M
    lay, parts = layout_of(geometry, batch), parts_of(geometry, batch)
    (SH, SW), (DH, DW_), (PT, PL, _, _) = g.strides, g.dilation, g.padding
    rows, taps, KX, lanes = lay.rows, lay.KH * lay.KX, lay.KX, isa.lanes
    padded = -(-rows // lanes) * lanes
    # The image with its padding, so that every tap of every pixel is there, and behind it what a vector may reach.
    high = max(PT + g.H, (g.OH - 1) * SH + (g.KH - 1) * DH + 1)
    wide = max(PL + g.W, (g.OW - 1) * SW + (g.KW - 1) * DW_ + 1)
    line = wide * g.C
    floats = high * line + padded
    zero_line, zero_left, zero_right = zero_floats(line), zero_floats(PL * g.C), zero_floats((wide - PL - g.W) * g.C)
    copy_line, zero_end = copy_floats(g.W * g.C), zero_floats(padded)

    def add_entries(partial, image, pixels, values, b, part, place, begin, end, offset):
        """Into the sums of one tap and channel, from ``place`` on, which wait in memory from image to image."""
        for first in range(0, padded, VECTORS * lanes):
            add_block(partial, image, pixels, values, b, part, place + first, begin, end, offset + first,
                      min(VECTORS, (padded - first) // lanes))  # fmt: skip

    def add_block(partial, image, pixels, values, b, part, place, begin, end, offset, vectors):
        sums = Accumulators(1, vectors, lanes)
        sums.fill(lambda _i, v: partial[part, across(place + v * lanes, lanes)])
        with T.serial(begin, end) as i:
            o = T.bind(T.Cast("int64", pixels[b, i]))
            value = T.bind(splat(values[b, i], lanes))
            start = T.bind(o // g.OW * (SH * line) + o % g.OW * (SW * g.C) + offset)
            sums.add(lambda _i, v: value * image[0, across(start + v * lanes, lanes)])
        for v in range(vectors):
            T.buffer_store(partial, sums.vector(0, v), [part, across(place + v * lanes, lanes)])

    @T.inline
    def clear(partial, image, part):
        for i in range(taps * M * padded // lanes):
            for j in T.vectorized(lanes):
                partial[part, i * lanes + j] = T.float32(0)
        for y in range(high):
            if y < PT or y >= PT + g.H:
                zero_line(image, 0, y * line)
            else:
                zero_left(image, 0, y * line)
                zero_right(image, 0, y * line + (PL + g.W) * g.C)
        zero_end(image, 0, high * line)

    @T.inline
    def add_image(X, image, partial, starts, pixels, values, b, part):
        for y in range(g.H):
            copy_line(image, 0, (PT + y) * line + PL * g.C, X, (b * g.H + y) * (g.W * g.C))
        for m in range(M):
            if starts[b, m + 1] > starts[b, m]:
                for tap in range(taps):
                    add_entries(
                        partial, image, pixels, values, b, part, (tap * M + m) * padded, starts[b, m], starts[b, m + 1],
                        tap // KX * (DH * line) + tap % KX * (DW_ * g.C),
                    )  # fmt: skip

    def add_parts(partial, DW, tap, r, m):
        total = partial[0, (tap * M + m) * padded + r]
        for part in range(1, parts.count):
            total = total + partial[part, (tap * M + m) * padded + r]
        T.buffer_store(DW, total, [(tap * rows + r) * M + m])

    @T.inline
    def inline(X, starts, pixels, values, DW):
        partial = T.alloc_buffer((parts.count, taps * M * padded), "float32")
        for part in T.parallel(T.int64(parts.count)):
            image = T.alloc_buffer((1, floats), "float32")
            clear(partial, image, part)
            for i in range(T.min(parts.images, B - part * parts.images)):
                add_image(X, image, partial, starts, pixels, values, part * parts.images + i, part)
        for tap in T.parallel(T.int64(taps)):
            for r in range(rows):
                for m in range(M):
                    add_parts(partial, DW, tap, r, m)

    @T.inline
    def add_values(starts, values, DB):
        total = T.alloc_buffer((1,), "float32", scope="local")
        for m in range(M):
            DB[m] = T.float32(0)
            for part in range(parts.count):
                total[0] = T.float32(0)
                for i in range(T.min(parts.images, B - part * parts.images)):
                    b = T.meta_var(part * parts.images + i)
                    for j in T.serial(starts[b, m], starts[b, m + 1]):
                        total[0] = total[0] + values[b, j]
                DB[m] = DB[m] + total[0]

    return inline, add_values
