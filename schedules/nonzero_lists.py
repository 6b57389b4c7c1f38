"""The entries of dZ that are not zero, listed by pixel and by channel, for gradients that skip the zeros.

Behind ReLU and max pooling most entries of dZ are zero: vectors of length 1 whose products are zero, whatever they are
multiplied with. Of each image the first ``capacity`` others are listed; with more than that in any image
the gradients run dense (``nonzero_weight_gradient.py``, ``nonzero_input_gradient.py``).

By pixel, entries lie in the order of (oy, ox, m), by channel in that of (m, oy, ox): the orders in which the dense
kernels add up.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

from tvm import tirx
from tvm.script import tirx as T

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.epilogue_gradient import activation_gradient
from adr_tvm.schedules.gradient_layout import int64

SHARE = Fraction(1, 4)  # of an image's entries that are listed at most
TOGETHER = 8  # entries that are looked at with one branch


@dataclass(frozen=True)
class NonzeroLists:
    """Shapes of the lists of dZ [B, OH, OW, M].

    Attributes:
        batch: B.
        height, width: OH and OW.
        channels: M.
    """

    batch: int
    height: int
    width: int
    channels: int

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.height * self.width

    @property
    def capacity(self) -> int:
        """Entries of an image that are listed at most."""
        return max(1, int(self.pixels * self.channels * SHARE))

    @property
    def shapes(self) -> list[tuple[tuple[int, ...], str]]:
        """Shapes and dtypes of counts; starts, channels and values by pixel; starts, pixels and values by channel.

        Where a count exceeds the capacity, it is not the whole, and the lists of that image say nothing.
        """
        B, room = self.batch, self.capacity + 1  # the last one takes what does not count
        by_pixel = [((B, self.pixels + 1), "int32"), ((B, room), "int32"), ((B, room), "float32")]
        by_channel = [((B, self.channels + 1), "int32"), ((B, room), "int32"), ((B, room), "float32")]
        return [((B,), "int32"), *by_pixel, *by_channel]


def nonzero_lists(geometry: ConvGeometry, batch: int) -> NonzeroLists:
    """Of the output gradient of a convolution."""
    return NonzeroLists(batch, geometry.OH, geometry.OW, geometry.M)


def are_few(lists: NonzeroLists):
    """Inline ``(counts, few)``: few[0] int32 is 1 if the entries of all images are listed, else 0."""
    B, cap = lists.batch, lists.capacity

    @T.inline
    def inline(counts, few):
        few[0] = 1
        for b in range(B):
            if counts[b] > cap:
                few[0] = 0

    return inline


@functools.cache
def list_nonzeros(lists: NonzeroLists) -> tirx.PrimFunc:
    """PrimFunc of dZ float32 [B, OH, OW, M] and the outputs of ``lists.shapes``."""
    shape = lists.batch, lists.height, lists.width, lists.channels
    list_image = _list_image(lists, None)

    @T.prim_func(private=True)
    def kernel(
        z: T.handle, n: T.handle, ps: T.handle, pc: T.handle, pv: T.handle, cs: T.handle, cp: T.handle, cv: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        DZ = T.match_buffer(z, int64(*shape), "float32")
        counts = T.match_buffer(n, int64(*lists.shapes[0][0]), "int32")
        pixel_starts = T.match_buffer(ps, int64(*lists.shapes[1][0]), "int32")
        channels = T.match_buffer(pc, int64(*lists.shapes[2][0]), "int32")
        pixel_values = T.match_buffer(pv, int64(*lists.shapes[3][0]), "float32")
        channel_starts = T.match_buffer(cs, int64(*lists.shapes[4][0]), "int32")
        places = T.match_buffer(cp, int64(*lists.shapes[5][0]), "int32")
        channel_values = T.match_buffer(cv, int64(*lists.shapes[6][0]), "float32")
        flat = T.decl_buffer((math.prod(shape),), "float32", data=DZ.data)
        bits = T.decl_buffer((math.prod(shape) // 2,), "int64", data=DZ.data)
        for b in T.parallel(T.int64(lists.batch)):
            list_image(
                flat,
                flat,
                bits,
                counts,
                pixel_starts,
                channels,
                pixel_values,
                channel_starts,
                places,
                channel_values,
                b,
            )

    return kernel


@functools.cache
def list_epilogue_nonzeros(lists: NonzeroLists, activation: Activation) -> tirx.PrimFunc:
    """The same of dZ = dY activation'(Y), which is not written: PrimFunc of Y and dY, likewise, and the outputs."""
    shape = lists.batch, lists.height, lists.width, lists.channels
    list_image = _list_image(lists, activation)

    @T.prim_func(private=True)
    def kernel(
        y: T.handle, d: T.handle,
        n: T.handle, ps: T.handle, pc: T.handle, pv: T.handle, cs: T.handle, cp: T.handle, cv: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        Y = T.match_buffer(y, int64(*shape), "float32")
        DY = T.match_buffer(d, int64(*shape), "float32")
        counts = T.match_buffer(n, int64(*lists.shapes[0][0]), "int32")
        pixel_starts = T.match_buffer(ps, int64(*lists.shapes[1][0]), "int32")
        channels = T.match_buffer(pc, int64(*lists.shapes[2][0]), "int32")
        pixel_values = T.match_buffer(pv, int64(*lists.shapes[3][0]), "float32")
        channel_starts = T.match_buffer(cs, int64(*lists.shapes[4][0]), "int32")
        places = T.match_buffer(cp, int64(*lists.shapes[5][0]), "int32")
        channel_values = T.match_buffer(cv, int64(*lists.shapes[6][0]), "float32")
        Yf = T.decl_buffer((math.prod(shape),), "float32", data=Y.data)
        DYf = T.decl_buffer((math.prod(shape),), "float32", data=DY.data)
        bits = T.decl_buffer((math.prod(shape) // 2,), "int64", data=DY.data)
        for b in T.parallel(T.int64(lists.batch)):
            list_image(
                Yf, DYf, bits, counts, pixel_starts, channels, pixel_values, channel_starts, places, channel_values, b
            )

    return kernel


def _list_image(lists: NonzeroLists, activation: Activation | None):
    """Inline ``(Y, DY, bits, the outputs, b)`` of image b; without an activation dZ = dY.

    ``bits``: dY as 64-bit numbers, of two entries each.
    """
    pixels, M, cap = lists.pixels, lists.channels, lists.capacity
    together = TOGETHER if M % 2 == 0 else M + 1

    def any_set(bits, pair):
        found = bits[pair]
        for i in range(1, together // 2):
            found = found | bits[pair + i]
        return found != 0

    def entry(Y, DY, place):
        return DY[place] if activation is None else activation_gradient(activation, Y[place], DY[place])

    @T.inline
    def append(Y, DY, channels, values, found, b, o, m):
        value = T.bind(entry(Y, DY, (b * pixels + o) * M + m))
        # Written whether it counts or not: no branch that would be guessed wrongly.
        channels[b, T.min(found[0], cap)] = m
        values[b, T.min(found[0], cap)] = value
        # By its bits: `!=` takes NaN for equal.
        found[0] = found[0] + T.Cast("int32", (T.reinterpret("int32", value) & T.int32(0x7FFFFFFF)) != 0)

    @T.inline
    def sort(channels, pixel_starts, pixel_values, channel_starts, places, channel_values, found, b):
        cursor = T.alloc_buffer((M + 1,), "int32")
        for m in range(M + 1):
            cursor[m] = 0
        for i in range(found[0]):
            cursor[channels[b, i] + 1] = cursor[channels[b, i] + 1] + 1
        channel_starts[b, 0] = 0
        for m in range(M):
            cursor[m + 1] = cursor[m + 1] + cursor[m]
            channel_starts[b, m + 1] = cursor[m + 1]
        for o in range(pixels):
            for i in T.serial(pixel_starts[b, o], pixel_starts[b, o + 1]):
                m = T.meta_var(channels[b, i])
                places[b, cursor[m]] = o
                channel_values[b, cursor[m]] = pixel_values[b, i]
                cursor[m] = cursor[m] + 1

    @T.inline
    def inline(Y, DY, bits, counts, pixel_starts, channels, pixel_values, channel_starts, places, channel_values, b):
        found = T.alloc_buffer((1,), "int32", scope="local")
        found[0] = 0
        for o in range(pixels):
            pixel_starts[b, o] = T.min(found[0], cap)
            if found[0] <= cap:
                for k in range(M // together):
                    if any_set(bits, ((b * pixels + o) * M + k * together) // 2):
                        for j in range(together):
                            append(Y, DY, channels, pixel_values, found, b, o, k * together + j)
                for j in range(M % together):
                    append(Y, DY, channels, pixel_values, found, b, o, M // together * together + j)
        pixel_starts[b, pixels] = T.min(found[0], cap)
        counts[b] = found[0]
        if found[0] <= cap:
            sort(channels, pixel_starts, pixel_values, channel_starts, places, channel_values, found, b)

    return inline
