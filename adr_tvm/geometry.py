"""Shapes of a convolution and of its neuron vectors; one place for N, K, S, P and the vector counts."""

from __future__ import annotations

from dataclasses import dataclass

from adr_tvm.settings import ReuseSetting


def _read_positions(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> tuple[int, ...]:
    touched = {o * stride - pad + k * dilation for o in range(out) for k in range(kernel)}
    return tuple(sorted(i for i in touched if 0 <= i < size))


@dataclass(frozen=True)
class ConvGeometry:
    """A 2-d convolution (NHWC, HWIO, groups = 1) without its batch. A dense layer is H = tokens, W = 1, 1x1.

    Attributes:
        H, W, C: input rows, columns, channels.
        KH, KW, M: kernel rows, columns, output channels.
        strides: (rows, columns).
        padding: (top, left, bottom, right).
        dilation: (rows, columns).
    """

    H: int
    W: int
    C: int
    KH: int
    KW: int
    M: int
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def OH(self) -> int:
        """Output rows."""
        return (self.H + self.padding[0] + self.padding[2] - self.dilation[0] * (self.KH - 1) - 1) // self.strides[
            0
        ] + 1

    @property
    def OW(self) -> int:
        """Output columns."""
        return (self.W + self.padding[1] + self.padding[3] - self.dilation[1] * (self.KW - 1) - 1) // self.strides[
            1
        ] + 1

    @property
    def K(self) -> int:
        """Entries of an im2col row."""
        return self.C * self.KH * self.KW

    @property
    def rows(self) -> int:
        """Output pixels of one image: im2col rows per image."""
        return self.OH * self.OW

    @property
    def macs(self) -> int:
        """Dense multiply-adds of one image."""
        return self.rows * self.K * self.M

    @property
    def read_rows(self) -> tuple[int, ...]:
        """Input rows that at least one tap reads."""
        return _read_positions(self.H, self.OH, self.KH, self.strides[0], self.padding[0], self.dilation[0])

    @property
    def read_cols(self) -> tuple[int, ...]:
        """Input columns that at least one tap reads."""
        return _read_positions(self.W, self.OW, self.KW, self.strides[1], self.padding[1], self.dilation[1])

    def vector_length(self, setting: ReuseSetting) -> int:
        """Length L of a neuron vector, capped by what there is to cut."""
        if setting.granularity == "row":
            return self.K
        return min(setting.L, self.C if setting.granularity == "pixel" else self.K)

    def segments(self, setting: ReuseSetting) -> int:
        """Number of segments S."""
        length = self.C if setting.granularity == "pixel" else self.K
        return -(-length // self.vector_length(setting))

    def positions(self, setting: ReuseSetting) -> int:
        """Places of one image that carry one neuron vector per segment (P for ``pixel``, N otherwise)."""
        if setting.granularity == "pixel":
            return len(self.read_rows) * len(self.read_cols)
        return self.rows

    def vectors(self, setting: ReuseSetting) -> int:
        """Neuron vectors of one image, all segments together (an upper bound where windows lie in padding)."""
        return self.positions(setting) * self.segments(setting)


def dense_geometry(tokens: int, K: int, M: int) -> ConvGeometry:
    """A dense layer over rows [batch, tokens, 1, K] with weights [1, 1, K, M]; tokens is 1 for [batch, K]."""
    return ConvGeometry(H=tokens, W=1, C=K, KH=1, KW=1, M=M)
