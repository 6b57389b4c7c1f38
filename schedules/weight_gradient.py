"""Gradient of a convolution's weights as a GEMM whose sum runs over the output pixels of all images.

dW[ky, kx, c, m] = sum over n = (b, oy, ox) of x[n shifted by (ky, kx), c] dz[n, m]. A tile of MR entries (rows) by NR
output channels stays in registers while the pixels of a chunk go by: in NHWC both operands of a step lie side by side,
so no im2col is made. Rows are input channels of one tap, or (kx, c) of one row of taps where the channels are few.
Pixels whose tap lies in the padding are left out of the loops. A task has a group of input and of output channels; its
part of dW waits between chunks in a buffer that stays in L2, along with the chunk.

Images (of one image: rows) are cut into parts by shape alone, each summed as one FMA chain in the order of its pixels;
the sums of the parts are added in order. So neither threads nor schedule change a byte.

Where nobody else reads dz, it is not written to memory: packing makes it of y and dy (``epilogue_gradient.py``), which
it reads once, and the bias gradient with it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.accumulators import Accumulators, across
from adr_tvm.schedules.epilogue_gradient import activation_gradient
from adr_tvm.schedules.im2col import LANES, copy_floats, zero_floats
from adr_tvm.schedules.register_tile import RegisterTile
from adr_tvm.schedules.weight_gradient_schedule import WeightGradientSchedule, layout_of, parts_of


@functools.cache
def weight_gradient(geometry: ConvGeometry, batch: int, schedule: WeightGradientSchedule) -> tirx.PrimFunc:
    """Returns: PrimFunc of X float32 [B, H, W, C], dZ float32 [B, OH, OW, M] and dW float32 [KH, KW, C, M]."""
    g, B = geometry, batch
    whole = whole_weight_gradient(geometry, batch, schedule)

    @T.prim_func(private=True)
    def kernel(x: T.handle, dz: T.handle, dw: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, (T.int64(B), T.int64(g.H), T.int64(g.W), T.int64(g.C)), "float32")
        DZ = T.match_buffer(dz, (T.int64(B), T.int64(g.OH), T.int64(g.OW), T.int64(g.M)), "float32")
        DW = T.match_buffer(dw, (T.int64(g.KH), T.int64(g.KW), T.int64(g.C), T.int64(g.M)), "float32")
        Xf = T.decl_buffer((T.int64(B * g.H * g.W * g.C),), "float32", data=X.data)
        DZf = T.decl_buffer((T.int64(B * g.OH * g.OW * g.M),), "float32", data=DZ.data)
        DWf = T.decl_buffer((T.int64(g.K * g.M),), "float32", data=DW.data)
        whole(Xf, DZf, DWf)

    return kernel


def whole_weight_gradient(geometry: ConvGeometry, batch: int, schedule: WeightGradientSchedule) -> Any:
    """Inline ``(X, DZ, DW)``, flat: all of the gradient."""
    M, K = geometry.M, geometry.K
    parts = parts_of(geometry, batch)
    task, groups = weight_gradient_task(geometry, batch, schedule)
    add_parts = _add_parts(M, parts.count)

    @T.inline
    def inline(X, DZ, DW):
        if parts.count == 1:
            whole = T.decl_buffer((1, T.int64(K * M)), "float32", data=DW.data)
            for t in T.parallel(T.int64(groups)):
                task(X, DZ, whole, T.int64(0), t)
        else:
            partial = T.alloc_buffer((parts.count, K * M), "float32")
            for t in T.parallel(T.int64(parts.count * groups)):
                task(X, DZ, partial, t // groups, t % groups)
            for row in T.parallel(T.int64(K)):
                add_parts(partial, DW, row)

    return inline


class Epilogue(NamedTuple):
    """What dz is made of: buffers of a kernel.

    Attributes:
        y, dy: flat float32, output and its gradient.
        sums: float32 [parts, M], takes the sums of dz.
    """

    y: Any
    dy: Any
    sums: Any


def packs_once(geometry: ConvGeometry, batch: int, schedule: WeightGradientSchedule) -> bool:
    """Whether every entry of dz is packed, and by one task."""
    lay, tile = layout_of(geometry, batch), schedule.tile
    tiles, blocks = -(-lay.rows // tile.MR), -(-lay.M // tile.NR)
    return schedule.pack_dz and lay.M % tile.NR == 0 and tiles <= schedule.tiles and blocks <= schedule.blocks


@functools.cache
def epilogue_weight_gradient(
    geometry: ConvGeometry, activation: Activation, batch: int, schedule: WeightGradientSchedule
) -> tirx.PrimFunc:
    """Gradients of weights and bias from the output and its gradient, for a schedule that ``packs_once``.

    Returns:
        PrimFunc of X float32 [B, H, W, C], Y and dY float32 [B, OH, OW, M], dW float32 [KH, KW, C, M], dbias float32
        [M].
    """
    g, B, M, K = geometry, batch, geometry.M, geometry.K
    whole = whole_epilogue_weight_gradient(geometry, activation, batch, schedule)

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle, dy: T.handle, dw: T.handle, db: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        X = T.match_buffer(x, (T.int64(B), T.int64(g.H), T.int64(g.W), T.int64(g.C)), "float32")
        Y = T.match_buffer(y, (T.int64(B), T.int64(g.OH), T.int64(g.OW), T.int64(M)), "float32")
        DY = T.match_buffer(dy, (T.int64(B), T.int64(g.OH), T.int64(g.OW), T.int64(M)), "float32")
        DW = T.match_buffer(dw, (T.int64(g.KH), T.int64(g.KW), T.int64(g.C), T.int64(M)), "float32")
        DB = T.match_buffer(db, (T.int64(M),), "float32")
        Xf = T.decl_buffer((T.int64(B * g.H * g.W * g.C),), "float32", data=X.data)
        Yf = T.decl_buffer((T.int64(B * g.OH * g.OW * M),), "float32", data=Y.data)
        DYf = T.decl_buffer((T.int64(B * g.OH * g.OW * M),), "float32", data=DY.data)
        DWf = T.decl_buffer((T.int64(K * M),), "float32", data=DW.data)
        whole(Xf, Yf, DYf, DWf, DB)

    return kernel


def whole_epilogue_weight_gradient(
    geometry: ConvGeometry, activation: Activation, batch: int, schedule: WeightGradientSchedule
) -> Any:
    """Inline ``(X, Y, DY, DW, DB)``, flat: all of both gradients."""
    M, K = geometry.M, geometry.K
    parts = parts_of(geometry, batch)
    task, groups = weight_gradient_task(geometry, batch, schedule, activation)
    assert groups == 1 and packs_once(geometry, batch, schedule), f"{schedule} packs dz more than once"
    add_parts = _add_parts(M, parts.count)

    @T.inline
    def inline(X, Y, DY, DW, DB):
        partial = T.alloc_buffer((parts.count, K * M), "float32")
        sums = T.alloc_buffer((parts.count, M), "float32")
        for part in T.parallel(T.int64(parts.count)):
            for m in range(M):
                sums[part, m] = T.float32(0)
            task(X, Epilogue(Y, DY, sums), partial, part, T.int64(0))
        for row in T.parallel(T.int64(K)):
            add_parts(partial, DW, row)
        add_parts(sums, DB, 0)

    return inline


def _add_parts(M: int, parts: int) -> Any:
    """Inline ``(partial, out, row)``: a row of M entries of out, flat, is the sum of those of all parts."""

    def add_entries(partial, out, start, count):
        total = T.bind(partial[0, across(start, count)])
        for part in range(1, parts):
            total = T.bind(total + partial[part, across(start, count)])
        T.buffer_store(out, total, [across(start, count)])

    @T.inline
    def add_parts(partial, out, row):
        for v in range(M // LANES):
            add_entries(partial, out, row * M + v * LANES, LANES)
        for m in range(M % LANES):
            add_entries(partial, out, row * M + M // LANES * LANES + m, 1)

    return add_parts


def weight_gradient_task(
    geometry: ConvGeometry, batch: int, schedule: WeightGradientSchedule, activation: Activation | None = None
) -> tuple[Any, int]:
    """Inline ``(X, DZ, sums, part, group)``, the sum of one part for one group of channels, and the number of groups.

    X and DZ are flat; sums is [parts, K * M]. With an activation DZ is an ``Epilogue``, whose sums are added to.
    """
    lay, parts = layout_of(geometry, batch), parts_of(geometry, batch)
    H, W, C, OH, OW, M = lay.H, lay.W, lay.C, lay.OH, lay.OW, lay.M
    SH, SW, DH, DW, PT, PL = lay.SH, lay.SW, lay.DH, lay.DW, lay.PT, lay.PL
    MR, NR = schedule.tile.MR, schedule.tile.NR
    vectors, lanes = schedule.tile.vectors, NR // schedule.tile.vectors
    KH, KX, R = lay.KH, lay.KX, lay.rows
    tiles, blocks = -(-R // MR), -(-M // NR)
    in_tiles, in_blocks = min(tiles, schedule.tiles), min(blocks, schedule.blocks)
    tile_groups, block_groups = -(-tiles // in_tiles), -(-blocks // in_blocks)

    # A chunk: whole images, or a band of rows of one.
    images = max(1, min(parts.images, schedule.pixels // (OH * OW))) if parts.rows == OH else 1
    band = parts.rows if images > 1 else max(1, min(parts.rows, -(-schedule.pixels // OW)))
    bands = -(-parts.rows // band)
    band = -(-parts.rows // bands)
    once = images >= parts.images and bands == 1  # a part is one chunk
    high = min(H, (band - 1) * SH + (KH - 1) * DH + 1)  # input rows of a band

    # Where the operands of a step lie: X in place, or its channels packed by tiles, or whole rows with their padding.
    pack_x, pack_dz = schedule.pack_x or lay.padded, schedule.pack_dz
    if lay.padded:
        x_row, x_step = lay.padded_width * C, SW * C
        x_floats = images * high * x_row + MR
    elif pack_x:
        x_row, x_step = W * MR, SW * MR
        x_floats = in_tiles * images * high * x_row
    else:
        x_row, x_step, x_floats = W * C, SW * C, 1
    z_step = NR if pack_dz else M
    z_floats = in_blocks * images * band * OW * NR if pack_dz else 1
    copy_tile, copy_line = copy_floats(MR), copy_floats(W * C)
    copy_block = _copy_gradient(NR) if activation is None else _make_gradient(schedule.tile, activation)
    zero_left, zero_right = zero_floats(PL * C), zero_floats(max(0, (lay.padded_width - PL - W) * C))

    def first_row(tile):
        """Of a tile; the last one overlaps the one before."""
        return T.min(tile * MR, R - MR)

    def first_channel(block):
        return T.min(block * NR, M - NR)

    @T.inline
    def pack_rows(X, A, image, count, top):
        for i in range(count):
            for y in range(high):
                if top + y >= 0 and top + y < H:
                    zero_left(A, 0, (i * high + y) * x_row)
                    copy_line(A, 0, (i * high + y) * x_row + PL * C, X, ((image + i) * H + top + y) * (W * C))
                    zero_right(A, 0, (i * high + y) * x_row + (PL + W) * C)

    @T.inline
    def pack_tiles(X, A, image, count, top, tile0, here):
        for i in range(count):
            for y in range(high):
                if top + y >= 0 and top + y < H:
                    for ix in range(W):
                        for t in range(here):
                            copy_tile(
                                A,
                                0,
                                ((t * images + i) * high + y) * x_row + ix * MR,
                                X,
                                (((image + i) * H + top + y) * W + ix) * C + first_row(tile0 + t),
                            )

    @T.inline
    def pack_gradient(DZ, D, part, image, count, row, height, block0, here):
        for i in range(count):
            for n in range(height * OW):
                for s in range(here):
                    copy_block(
                        DZ,
                        D,
                        part,
                        (((image + i) * OH + row) * OW + n) * M,
                        first_channel(block0 + s),
                        ((s * images + i) * (band * OW) + n) * NR,
                    )

    @T.inline
    def multiply(acc, X, A, DZ, D, x0, z0, count):
        for n in range(count):
            acc.add_products(
                lambda i: A[0, x0 + n * x_step + i] if pack_x else X[x0 + n * x_step + i],
                lambda v: (
                    D[0, across(z0 + n * z_step + v * lanes, lanes)]
                    if pack_dz
                    else DZ[across(z0 + n * z_step + v * lanes, lanes)]
                ),
            )

    def clipped(k, pad, stride, dilation, size, out):
        """First and last + 1 of the outputs whose tap k is not in the padding."""
        shift = k * dilation - pad
        low = T.max(0, tirx.floordiv(-shift + stride - 1, stride))
        return low, T.min(out, tirx.floordiv(size - 1 - shift, stride) + 1)

    @T.inline
    def add_chunk(acc, X, A, DZ, D, image, count, row, height, top, tile, t, block, s, ky, kx):
        low_y, high_y = T.meta_var(clipped(ky, PT, SH, DH, H, OH))
        low_x, high_x = T.meta_var((0, OW) if lay.padded else clipped(kx, PL, SW, DW, W, OW))
        first = T.meta_var(T.max(low_y, row))
        for i in range(count):
            for q in range(T.max(T.min(high_y, row + height) - first, 0)):
                oy = T.meta_var(first + q)
                iy = T.meta_var(oy * SH + ky * DH - PT)
                if pack_dz:
                    z0 = T.meta_var(((s * images + i) * (band * OW) + (oy - row) * OW + low_x) * NR)
                else:
                    z0 = T.meta_var((((image + i) * OH + oy) * OW + low_x) * M + first_channel(block))
                if lay.padded:
                    x0 = T.meta_var((i * high + iy - top) * x_row + first_row(tile))
                elif pack_x:
                    x0 = T.meta_var(((t * images + i) * high + iy - top) * x_row + (low_x * SW + kx * DW - PL) * MR)
                else:
                    x0 = T.meta_var((((image + i) * H + iy) * W + low_x * SW + kx * DW - PL) * C + first_row(tile))
                multiply(acc, X, A, DZ, D, x0, z0, T.max(high_x - low_x, 0))

    def load(acc, waiting, place):
        acc.fill(lambda i, v: waiting[place, i, across(v * lanes, lanes)])

    def keep(acc, waiting, place):
        for i in range(MR):
            for v in range(vectors):
                T.buffer_store(waiting, acc.vector(i, v), [place, i, across(v * lanes, lanes)])

    def write(acc, sums, part, line, block):
        for i in range(MR):
            for v in range(vectors):
                place = (line + i) * M + first_channel(block) + v * lanes
                T.buffer_store(sums, acc.vector(i, v), [part, across(place, lanes)])

    @T.inline
    def copy_waiting(waiting, place, i, sums, part, line, block):
        for v in T.unroll(vectors):
            for j in T.vectorized(lanes):
                sums[part, line * M + first_channel(block) + v * lanes + j] = waiting[place, i, v * lanes + j]

    @T.inline
    def sum_chunk(A, D, X, DZ, waiting, sums, part, chunk, image, count, row, height, top, tile0, t, block0, s, ky, kx):
        place = T.meta_var(((s * in_tiles + t) * KH + ky) * KX + kx)
        acc = T.meta_var(Accumulators(MR, vectors, lanes))
        if once or chunk == 0:
            acc.clear()
        else:
            load(acc, waiting, place)
        add_chunk(acc, X, A, DZ, D, image, count, row, height, top, tile0 + t, t, block0 + s, s, ky, kx)
        if once:
            write(acc, sums, part, (ky * KX + kx) * R + first_row(tile0 + t), block0 + s)
        else:
            keep(acc, waiting, place)

    @T.inline
    def inline(X, DZ, sums, part, group):
        A = T.alloc_buffer((1, x_floats), "float32")
        D = T.alloc_buffer((1, z_floats), "float32")
        waiting = T.alloc_buffer((1 if once else in_blocks * in_tiles * KH * KX, MR, NR), "float32")
        tile0 = T.meta_var(group // block_groups * in_tiles)
        block0 = T.meta_var(group % block_groups * in_blocks)
        tiles_here = T.meta_var(T.min(in_tiles, tiles - tile0))
        blocks_here = T.meta_var(T.min(in_blocks, blocks - block0))
        image0 = T.meta_var(part // parts.bands * parts.images)
        row0 = T.meta_var(part % parts.bands * parts.rows)
        images_here = T.meta_var(T.min(parts.images, lay.batch - image0))
        rows_here = T.meta_var(T.min(parts.rows, OH - row0))
        for chunk in range((images_here + (images - 1)) // images * bands):
            image = T.meta_var(image0 + chunk // bands * images)
            count = T.meta_var(T.min(images, image0 + images_here - image))
            row = T.meta_var(row0 + chunk % bands * band)
            height = T.meta_var(T.min(band, row0 + rows_here - row))
            top = T.meta_var(T.max(row * SH - PT, 0))
            if lay.padded:
                pack_rows(X, A, image, count, top)
            elif pack_x:
                pack_tiles(X, A, image, count, top, tile0, tiles_here)
            if pack_dz:
                pack_gradient(DZ, D, part, image, count, row, height, block0, blocks_here)
            for outer in range(tiles_here if once else blocks_here):
                for inner in range(blocks_here if once else tiles_here):
                    s, t = T.meta_var((inner, outer) if once else (outer, inner))
                    for ky in range(KH):
                        for kx in range(KX):
                            sum_chunk(
                                *(A, D, X, DZ, waiting, sums, part, chunk, image, count, row, height, top),
                                *(tile0, t, block0, s, ky, kx),
                            )
        if not once:
            for t in range(tiles_here):
                for tap in range(KH * KX):
                    for i in range(MR):
                        for s in range(blocks_here):
                            place = T.meta_var((s * in_tiles + t) * (KH * KX) + tap)
                            line = T.meta_var(tap * R + first_row(tile0 + t) + i)
                            copy_waiting(waiting, place, i, sums, part, line, block0 + s)

    return inline, tile_groups * block_groups


def _copy_gradient(NR: int) -> Any:
    """Inline ``(DZ, D, part, pixel, channel, place)``: NR channels of dz, from ``channel`` of a pixel on, to D."""
    copy = copy_floats(NR)

    @T.inline
    def inline(DZ, D, part, pixel, channel, place):
        copy(D, 0, place, DZ, pixel + channel)

    return inline


def _make_gradient(tile: RegisterTile, activation: Activation) -> Any:
    """The same of an ``Epilogue``."""
    lanes = tile.NR // tile.vectors

    def inline(given, D, part, pixel, channel, place):
        for v in range(tile.vectors):
            here = across(pixel + channel + v * lanes, lanes)
            dz = T.bind(activation_gradient(activation, given.y[here], given.dy[here]))
            T.buffer_store(D, dz, [0, across(place + v * lanes, lanes)])
            total = given.sums[part, across(channel + v * lanes, lanes)] + dz
            T.buffer_store(given.sums, total, [part, across(channel + v * lanes, lanes)])

    return inline
