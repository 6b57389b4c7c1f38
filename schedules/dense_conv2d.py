"""Dense convolution as an implicit GEMM (``docs/algorithm.md``, clause 11).

A task takes a chunk of rows of X and a group of blocks of output channels. For each step of K it packs its rows
(im2col on the fly; 1x1 convolutions read them where they are), then multiplies panels of MR rows by blocks of NR
channels in registers. Between steps partial sums wait in a buffer: they are the accumulators themselves, stored and
loaded again, so that each output stays one FMA chain over K.

In float16 X, weights, the residual and Y are half as wide, and so are accumulators: within a step, whose sums are added
up in fp32, as are bias and residual. An output is then one chain of float16 for each step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.accumulators import Accumulators, across, cast, splat
from adr_tvm.schedules.conv_schedule import ConvSchedule, k_steps, reads_directly, schedule_for_tile
from adr_tvm.schedules.epilogue import activation_expr
from adr_tvm.schedules.im2col import copy_runs, copy_units
from adr_tvm.schedules.register_tile import RegisterTile

PAGE = 1024  # floats of a page of memory
LARGE_INPUT = 1024 * 1024  # bytes of an image that do not stay in L2
LINE = 16  # floats of a cache line; a row pitch of an odd number of lines keeps packed rows out of each other's sets


@dataclass(frozen=True)
class Destination:
    """Where the result goes.

    Attributes:
        channels: of Y; None: those of the convolution.
        offset: of the first channel of the result in Y.
        residual: whether a tensor of the result's shape is added before the activation.
        strides, origin: pixel (y, x) of the result is pixel (y, x) * strides + origin of Y.
    """

    channels: int | None = None
    offset: int = 0
    residual: bool = False
    strides: tuple[int, int] = (1, 1)
    origin: tuple[int, int] = (0, 0)


class _Sums:
    """Sums of a panel in memory, in the place of accumulators where rows are stored."""

    def __init__(self, sums: tirx.Buffer, slot: Any, row: Any):
        self.sums, self.slot, self.row = sums, slot, row

    def entries(self, i: int, start: int, count: int) -> Any:
        """Entries start to start + count of row i."""
        return self.sums[self.slot, self.row + i, across(start, count)]


def pieces(count: int, lanes: int) -> list[tuple[int, int]]:
    """A number of channels as (start, width) of vectors of ``lanes``, 8, 4, 2 and 1 channels."""
    found, start = [], 0
    for width in (lanes, 8, 4, 2, 1):
        while count - start >= width:
            found.append((start, width))
            start += width
    return found


def to_cache(buffer: tirx.Buffer, *place: Any, level: int = 2) -> None:
    """Fetch the cache line that an entry of a buffer would be in, even beyond its end, to L1 or L2."""
    address = T.address_of(buffer[place])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(4 - level), T.int32(1)))


def conv_task(
    geometry: ConvGeometry,
    activation: Activation,
    schedule: ConvSchedule,
    to: Destination,
    gather: Any = None,
    dtype: str = "float32",
):
    """Inline ``(X, packed, bias, R, Y, first, end, group)``: one chunk of rows, from row ``first`` of all images on.

    X is flat; R, the residual, is not read without one. Rows from ``end`` on are not written. ``gather`` packs other
    rows than those of the image: inline ``(X, A, first, i, step, end)``, step of K of row first + i to A[i].
    """
    H, W, C, OW, M, K, rows = geometry.H, geometry.W, geometry.C, geometry.OW, geometry.M, geometry.K, geometry.rows
    KH, KW = geometry.KH, geometry.KW
    SH, SW = geometry.strides
    MR, NR, chunk = schedule.tile.MR, schedule.tile.NR, schedule.tile.MR * schedule.panels
    vectors, lanes = schedule.tile.vectors, NR // schedule.tile.vectors
    blocks = -(-M // NR)
    in_group = -(-blocks // schedule.groups)
    in_page = max(1, PAGE // NR)
    steps = k_steps(geometry, schedule.k_step)
    count, width = steps.count, steps.together * steps.entries
    pitch = (-(-width // LINE) | 1) * LINE
    direct, whole_rows = gather is None and reads_directly(geometry), count == 1 and geometry.dilation[1] == 1
    # Floats that each entry of K fetches. A panel's share of the next block: it is all there after the last panel.
    weights_ahead = -(-NR // schedule.panels) if schedule.fetch and in_group * count > 1 else 0
    # The rows of the next panel: they lie one behind the other.
    far_rows = direct and SH * SW == 1 and 4 * rows * C >= LARGE_INPUT
    rows_ahead = MR * count if schedule.fetch and far_rows else 0
    # What the next chunk packs: the pixels that follow those of this one.
    packs = gather is None and not direct
    pixels_ahead = -(-MR * SH * SW * count // (KH * KW)) if schedule.fetch and packs else 0
    runs, units = copy_runs(geometry, dtype), copy_units(geometry, steps, dtype)
    half = dtype == "float16"
    act = activation_expr(activation)
    residual, offset, (YS, XS), (Y0, X0) = to.residual, to.offset, to.strides, to.origin

    @T.inline
    def pack_image(X, A, first, i, step, end):
        row = T.meta_var(first + i)
        if whole_rows:
            runs(X, row // rows, row % rows, row < end, A, i)
        else:
            units(X, row // rows, row % rows, row < end, A, i, step)

    pack = pack_image if gather is None else gather

    def following(slot, here, group, step):
        """Block and entry of K that are multiplied next; the last of a task is followed by its first."""
        last = slot + 1 == here
        return (
            group * in_group + T.if_then_else(last, 0, slot + 1),
            T.if_then_else(last, (step + 1) % count, step) * width,
        )

    @T.inline
    def touch(packed, block, step, length):
        # The processor fetches ahead within a page, not across pages: on its own it would wait at each new one.
        if block < blocks:
            for q in range((length + (in_page - 1)) // in_page):
                to_cache(packed, block, step * width + q * in_page, 0, level=1)

    def fetch_weights(packed, after, index):
        for start in range(0, weights_ahead, LINE):
            to_cache(packed, after[0], after[1], index * weights_ahead + start)

    def fetch_rows(X, row, k):
        for start in range(0, rows_ahead, LINE):
            to_cache(X, row * C + k * rows_ahead + start)

    def fetch_chunk(X, row, index):
        down = row // rows * H + row % rows // OW * SH + (KH - 1) * geometry.dilation[0] - geometry.padding[0]
        for start in range(0, pixels_ahead, LINE):
            to_cache(X, (down * W + row % OW * SW) * C + index * pixels_ahead + start)

    @T.inline
    def multiply_packed(acc, X, row, A, panel, packed, block, step, length, after):
        for k in range(length):
            fetch_weights(packed, after, panel * length + k)
            fetch_chunk(X, row + chunk, panel * length + k)
            acc.add_products(
                lambda i: A[panel * MR + i, k], lambda v: packed[block, step * width + k, across(v * lanes, lanes)]
            )

    def input_row(row, end):
        here = T.min(row, end - 1)
        if SH * SW > 1:
            here = (here // rows * H + here % rows // OW * SH) * W + here % OW * SW
        return here * C

    @T.inline
    def multiply_input(acc, X, row, end, panel, packed, block, step, length, after):
        for k in range(length):
            fetch_weights(packed, after, panel * length + k)
            fetch_rows(X, row + MR, k)
            acc.add_products(
                lambda i: X[input_row(row + i, end) + (step * width + k)],
                lambda v: packed[block, step * width + k, across(v * lanes, lanes)],
            )

    def write(acc, i, bias, R, Y, row, block, start, entries):
        """Channels start to start + entries of the block, of row i of the accumulators."""
        image, y, x = row // rows, row % rows // OW, row % rows % OW
        m = block * NR + start
        value = widened(acc.entries(i, start, entries), entries) + bias[across(m, entries)]
        if residual:
            value = value + widened(R[image, y, x, across(m, entries)], entries)
        value = cast(act(value), dtype, entries) if half else act(value)
        T.buffer_store(Y, value, [image, y * YS + Y0, x * XS + X0, across(offset + m, entries)])

    def widened(value, entries):
        return cast(value, "float32", entries) if half else value

    def write_full(acc, i, bias, R, Y, row, block):
        for v in range(vectors):
            write(acc, i, bias, R, Y, row, block, v * lanes, lanes)

    def write_edge(acc, i, bias, R, Y, row, block):
        for start, count in pieces(M % NR, lanes):
            write(acc, i, bias, R, Y, row, block, start, count)

    @T.inline
    def store_row(acc, i, bias, R, Y, row, block):
        if block < M // NR:
            write_full(acc, i, bias, R, Y, row, block)
        else:
            write_edge(acc, i, bias, R, Y, row, block)

    @T.inline
    def store_if(acc, i, bias, R, Y, row, end, block):
        if row < end:
            store_row(acc, i, bias, R, Y, row, block)

    def store(acc, bias, R, Y, first, end, block):
        for i in range(MR):
            store_if(acc, i, bias, R, Y, first + i, end, block)

    @T.inline
    def one_row(X, packed, bias, R, Y, first, end, group):
        for slot in range(T.min(in_group, blocks - group * in_group)):
            if half:
                total = T.meta_var(Accumulators(1, vectors, lanes))
                total.clear()
                for step in range(count):
                    part = T.meta_var(Accumulators(1, vectors, lanes, dtype))
                    part.clear()
                    for k in range(T.min(width, K - step * width)):
                        part.add_products(
                            lambda i: X[first * C + (step * width + k)],
                            lambda v: packed[group * in_group + slot, step * width + k, across(v * lanes, lanes)],
                        )
                    total.add(lambda i, v: widened(part.vector(i, v), lanes))
                store_row(total, 0, bias, R, Y, first, group * in_group + slot)
            else:
                acc = T.meta_var(Accumulators(1, vectors, lanes))
                acc.clear()
                for k in range(K):
                    acc.add_products(
                        lambda i: X[first * C + k],
                        lambda v: packed[group * in_group + slot, k, across(v * lanes, lanes)],
                    )
                store_row(acc, 0, bias, R, Y, first, group * in_group + slot)

    def load_sums(acc, sums, slot, row):
        acc.fill(lambda i, v: sums[slot, row + i, across(v * lanes, lanes)])

    def keep_sums(acc, sums, slot, row):
        for i in range(MR):
            for v in range(vectors):
                T.buffer_store(sums, acc.vector(i, v), [slot, row + i, across(v * lanes, lanes)])

    def add_to_sums(acc, sums, slot, row, first_step):
        """A step of float16 to the sums of those before."""
        for i in range(MR):
            for v in range(vectors):
                place = [slot, row + i, across(v * lanes, lanes)]
                before = splat(T.float32(0), lanes) if first_step else sums[tuple(place)]
                T.buffer_store(sums, before + widened(acc.vector(i, v), lanes), place)

    @T.inline
    def many_rows(X, packed, bias, R, Y, first, end, group):
        A = T.alloc_buffer((1 if direct else chunk, pitch), dtype)
        sums = T.alloc_buffer((in_group if count > 1 else 1, chunk if count > 1 else 1, NR), "float32")
        panels = T.meta_var(T.min((end - first + (MR - 1)) // MR, schedule.panels))
        for step in range(count):
            length = T.meta_var(T.min(width, K - step * width))
            if not direct:
                for i in range(panels * MR):
                    pack(X, A, first, i, step, end)
            here = T.meta_var(T.min(in_group, blocks - group * in_group))
            for slot in range(here):
                block = T.meta_var(group * in_group + slot)
                after = T.meta_var(following(slot, here, group, step))
                if weights_ahead == 0:
                    touch(packed, block + 1, step, length)
                for panel in range(panels):
                    acc = T.meta_var(Accumulators(MR, vectors, lanes, dtype))
                    if half or count == 1:
                        acc.clear()
                    elif step == 0:
                        acc.clear()
                    else:
                        load_sums(acc, sums, slot, panel * MR)
                    if direct:
                        multiply_input(acc, X, first + panel * MR, end, panel, packed, block, step, length, after)
                    else:
                        multiply_packed(acc, X, first, A, panel, packed, block, step, length, after)
                    if half and count > 1:
                        if step == 0:
                            add_to_sums(acc, sums, slot, panel * MR, True)
                        else:
                            add_to_sums(acc, sums, slot, panel * MR, False)
                        if step == count - 1:
                            kept = T.meta_var(_Sums(sums, slot, panel * MR))
                            store(kept, bias, R, Y, first + panel * MR, end, block)
                    elif step == count - 1:
                        store(acc, bias, R, Y, first + panel * MR, end, block)
                    else:
                        keep_sums(acc, sums, slot, panel * MR)

    @T.inline
    def inline(X, packed, bias, R, Y, first, end, group):
        if rows == 1 and MR > 1 and gather is None:  # a dense layer, tiled for many rows, may be called with one
            if end - first == 1:
                one_row(X, packed, bias, R, Y, first, end, group)
            else:
                many_rows(X, packed, bias, R, Y, first, end, group)
        else:
            many_rows(X, packed, bias, R, Y, first, end, group)

    return inline


def dense_image(geometry: ConvGeometry, activation: Activation, tile: RegisterTile):
    """Inline ``(X, packed, bias, Y, image)``: one image, its rows shared among the threads."""
    schedule = schedule_for_tile(tile, geometry, geometry.rows)
    rows, chunk = geometry.rows, tile.MR * schedule.panels
    task = conv_task(geometry, activation, schedule, Destination())
    size = geometry.H * geometry.W * geometry.C

    @T.inline
    def inline(X, packed, bias, Y, image):
        flat = T.decl_buffer((X.shape[0] * size,), "float32", data=X.data)
        for t in T.parallel(-(-rows // chunk) * schedule.groups):
            task(
                flat,
                packed,
                bias,
                Y,
                Y,
                image * rows + t // schedule.groups * chunk,
                (image + 1) * rows,
                t % schedule.groups,
            )

    return inline


@functools.cache
def dense_conv2d(
    geometry: ConvGeometry,
    activation: Activation,
    schedule: ConvSchedule,
    to: Destination = Destination(),
    dtype: str = "float32",
) -> tirx.PrimFunc:
    """Y = activation(conv(X, W) + bias [+ R]), into some of Y's channels.

    Args:
        geometry: shapes of one image.
        schedule: how the work is cut up.
        to: where the result goes.
        dtype: float32 or float16, of all but the bias.

    Returns:
        PrimFunc of X [B, H, W, C], packed weights [M/NR, K, NR], bias float32 [M padded to NR], with a residual
        R [B, OH, OW, M], and Y [B, OH, OW, channels]; B is symbolic.
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
    NR, rows, groups = schedule.tile.NR, geometry.rows, schedule.groups
    blocks, chunk = -(-M // NR), schedule.tile.MR * schedule.panels
    channels = M if to.channels is None else to.channels
    run = conv_task(geometry, activation, schedule, to, dtype=dtype)
    loop = T.parallel if schedule.parallel else T.serial

    @T.inline
    def body(X, packed, bias, R, Y, B):
        flat = T.decl_buffer((B * (H * W * C),), dtype, data=X.data)
        for task in loop((B * rows + (chunk - 1)) // chunk * groups):
            run(flat, packed, bias, R, Y, task // groups * chunk, B * rows, task % groups)

    if to.residual:

        @T.prim_func(private=True)
        def with_residual(x: T.handle, w: T.handle, b: T.handle, r: T.handle, y: T.handle):
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            B = T.int64()
            X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
            packed = T.match_buffer(w, (T.int64(blocks), T.int64(K), T.int64(NR)), dtype)
            bias = T.match_buffer(b, (T.int64(blocks * NR),), "float32")
            R = T.match_buffer(r, (B, T.int64(OH), T.int64(OW), T.int64(M)), dtype)
            Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(channels)), dtype)
            body(X, packed, bias, R, Y, B)

        return with_residual

    @T.prim_func(private=True)
    def plain(x: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        B = T.int64()
        X = T.match_buffer(x, (B, T.int64(H), T.int64(W), T.int64(C)), dtype)
        packed = T.match_buffer(w, (T.int64(blocks), T.int64(K), T.int64(NR)), dtype)
        bias = T.match_buffer(b, (T.int64(blocks * NR),), "float32")
        Y = T.match_buffer(y, (B, T.int64(OH), T.int64(OW), T.int64(channels)), dtype)
        body(X, packed, bias, Y, Y, B)

    return plain
