"""Constants and sizes of the int8 kernels: words of weights, tables of rescaling, scratch memory.

Words hold four int8, the first in the lowest byte, and are written as int32: their value is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.int8.fixed_point import Rescale
from adr_tvm.int8.reuse import GROUP
from adr_tvm.settings import ReuseSetting

TABLE_WORDS = 8192  # of products, where that is enough: 32 KiB


def pack_weights(matrix: np.ndarray) -> np.ndarray:
    """int8 [..., M, K] as int32 words [..., ceil(M / 2), ceil(K / 4), 2]; zeros behind the last filter and entry."""
    *outer, M, K = matrix.shape
    even = [(0, 0)] * len(outer) + [(0, M % 2), (0, -K % 4)]
    padded = np.pad(matrix.astype(np.int8), even)
    words = np.ascontiguousarray(padded).view("<i4").astype(np.int32)
    return np.ascontiguousarray(np.swapaxes(words.reshape(*outer, (M + 1) // 2, 2, -1), -1, -2))


def convolution_matrix(weight: np.ndarray) -> np.ndarray:
    """[M, K] of HWIO weights, K in the order (KH, KW, C)."""
    return np.ascontiguousarray(weight.reshape(-1, weight.shape[-1]).T)


def pixel_matrix(weight: np.ndarray, S: int, L: int) -> np.ndarray:
    """[M, K] of HWIO weights, K in the order (KH, KW, S, L rounded up to 4)."""
    KH, KW, C, M = weight.shape
    cut = np.pad(weight, ((0, 0), (0, 0), (0, S * L - C), (0, 0))).reshape(KH * KW, S, L, M)
    return convolution_matrix(np.pad(cut, ((0, 0), (0, 0), (0, -L % 4), (0, 0))).reshape(-1, M))


def segment_matrix(weight: np.ndarray, S: int, L: int) -> np.ndarray:
    """[M, K] of HWIO weights, K in the order (S, L rounded up to 4) of rows in the order (C, KH, KW)."""
    matrix = weight.transpose(3, 2, 0, 1).reshape(weight.shape[3], -1)
    cut = np.pad(matrix, ((0, 0), (0, S * L - matrix.shape[1]))).reshape(-1, S, L)
    return np.pad(cut, ((0, 0), (0, 0), (0, -L % 4))).reshape(len(matrix), -1)


def reuse_matrix(weight: np.ndarray, granularity: str, S: int, L: int) -> np.ndarray:
    """[M, K] of HWIO weights as the kernel of a granularity has them."""
    if granularity == "row":
        return convolution_matrix(weight)
    return (pixel_matrix if granularity == "pixel" else segment_matrix)(weight, S, L)


def pack_planes(planes: np.ndarray) -> np.ndarray:
    """Words [S, ceil(H / 2), ceil(L / 4), 2] of planes int8 [S, L, H]."""
    return pack_weights(planes.transpose(0, 2, 1))


def rescale_table(
    bias: np.ndarray, rescale: Rescale, residual: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """int32 [M, 3] of bias, multiplier, shift; [M, 5] with those of a residual."""
    return np.stack([bias, rescale.multiplier, rescale.shift, *(residual or ())], axis=1).astype(np.int32)


@dataclass(frozen=True)
class ReuseMemory:
    """Sizes of a layer that reuses, fixed when it is compiled.

    Attributes:
        capacity: clusters that a segment can have.
        slots: of its hash table.
        max_clusters: the guard; 2^31 - 1 without one.
        centroids: room for those of all segments.
        table_shift: products are kept in units of 2^table_shift as int16; -1: as int32.
        table_words: for products of one segment.
        scratch: bytes in all.
    """

    capacity: int
    slots: int
    max_clusters: int
    centroids: int
    table_shift: int
    table_words: int
    scratch: int


def _rounded(clusters: int) -> int:
    return (clusters + 3) // 4 * 4


def reuse_memory(geometry: ConvGeometry, setting: ReuseSetting, table_shift: int) -> ReuseMemory:
    """Memory of ``reuse_pixel_i8.c``, ``reuse_segment_i8.c`` or ``reuse_row_i8.c``."""
    bits = 0 if setting.hash == "exact" else setting.H
    vectors = geometry.positions(setting)
    limit = 2**31 - 1 if setting.max_clusters is None else setting.max_clusters
    capacity = min(min(2**bits, vectors) + 1 if bits else vectors, limit + 1)
    slots = 1 << (2 * capacity - 1).bit_length()
    steps = -(-geometry.vector_length(setting) // 4)
    clustering = capacity * (4 * steps + 2) + slots // 2 + 12 * steps + 8 * -(-bits // 2)
    S, rows, channels = geometry.segments(setting), geometry.rows, 8 if table_shift < 0 else 16
    places = _rounded(capacity)
    if setting.granularity == "row":
        slots = 1 << (2 * rows - 1).bit_length()
        words = rows + 10 * steps + 8 * -(-geometry.M // 2) + -(-rows // 2) + slots // 2 + 1
        return ReuseMemory(capacity, slots, limit, 0, -1, 0, 4 * words)
    if setting.granularity == "pixel":
        taps, grid = geometry.KH * geometry.KW, _grid(geometry)
        centroids = min(S * places, limit + 3 * S)
        table = 8 * max(geometry.KW * (1 + places), min(taps * (1 + places), TABLE_WORDS // 8))
        words = S + -(-S * grid // 2) + 2 * steps * centroids + max(clustering, channels * rows + table + grid)
        words = max(words, 8 * steps * S * taps)
    else:
        centroids, table = GROUP * places, 8 * GROUP * (1 + places)
        sums = -(-geometry.M // channels) * channels * rows
        words = sums + -(-GROUP * rows // 2) + 2 * steps * centroids + max(clustering, table + GROUP * rows)
        words = max(words, steps * (1 + 8 * S))
    return ReuseMemory(capacity, slots, limit, centroids, table_shift, table, 4 * words)


def _grid(g: ConvGeometry) -> int:
    """Pixels that taps read, the padding included."""
    height, width = (
        (out - 1) * stride + (kernel - 1) * dilation + 1
        for out, stride, kernel, dilation in zip((g.OH, g.OW), g.strides, (g.KH, g.KW), g.dilation, strict=True)
    )
    return height * width
