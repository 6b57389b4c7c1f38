"""Which taps of a window lie inside of an image, and which windows an image's row or column lies in, as expressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from adr_tvm.geometry import ConvGeometry
from adr_tvm.schedules.register_tile import Isa
from adr_tvm.schedules.sliding_window import channel_blocks

VECTORS = 4  # of channels that are handled together


@dataclass(frozen=True)
class Axis:
    """One of the two axes that windows slide along.

    Attributes:
        size: of the image.
        out: number of windows.
        kernel: taps of a window.
        stride, dilation, pad: pad is that before the image.
    """

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    pad: int

    def taps(self, start: Any, low: int, high: int) -> tuple[Any, Any]:
        """(first, one behind the last) tap of a window from ``start`` on that reads low, ..., high - 1."""
        return (
            _clamped(_ceil_div(low - start, self.dilation), self.kernel),
            _clamped(_ceil_div(high - start, self.dilation), self.kernel),
        )

    def windows(self, place: Any) -> tuple[Any, Any]:
        """(first, one behind the last) window that may read ``place``; with a dilation not all between do."""
        padded, reach = place + self.pad, self.dilation * (self.kernel - 1)
        return _clamped(_ceil_div(padded - reach, self.stride), self.out), _clamped(padded // self.stride + 1, self.out)

    def offset(self, place: Any, window: Any) -> Any:
        """Distance of ``place`` from the begin of a window; the dilation divides it where a tap lies there."""
        return place + self.pad - window * self.stride


def axes_of(geometry: ConvGeometry) -> tuple[Axis, Axis]:
    """Rows and columns."""
    g = geometry
    return (
        Axis(g.H, g.OH, g.KH, g.strides[0], g.dilation[0], g.padding[0]),
        Axis(g.W, g.OW, g.KW, g.strides[1], g.dilation[1], g.padding[1]),
    )


def channel_groups(C: int, isa: Isa) -> tuple[int, int, int]:
    """(groups, vectors of a group, lanes) that cover C channels; the last group may overlap the one before."""
    blocks, lanes = channel_blocks(C, isa.lanes)
    vectors = min(VECTORS, C // lanes)
    return -(-blocks // vectors), vectors, lanes


def _ceil_div(a: Any, b: int) -> Any:
    return (a + (b - 1)) // b


def _clamped(value: Any, high: int) -> Any:
    return T.max(0, T.min(high, value))
