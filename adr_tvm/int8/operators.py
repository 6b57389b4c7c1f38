"""Integer operators, channels last: the oracle of the C kernels, byte by byte (``docs/algorithm.md``, I1 to I5).

Tensors are int8 [B, H, W, C] with one scale each; sums are int32. Matrix products are taken in float64, which holds
every sum of fewer than 2^38 products of int8 exactly.
"""

from __future__ import annotations

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.vectors import im2col_blocks
from adr_tvm.int8.fixed_point import Rescale, requantise, round_shift


def conv2d_sums(x: np.ndarray, w: np.ndarray, bias: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """int32 sums [B, OH, OW, M] of int8 x and HWIO weights with bias int32 [M]."""
    matrix = w.astype(np.float64).transpose(2, 0, 1, 3).reshape(geometry.K, geometry.M)
    rows = [block.astype(np.float64) @ matrix for block in im2col_blocks(x, geometry)]
    sums = np.concatenate(rows).astype(np.int64) + bias
    return sums.astype(np.int32).reshape(len(x), geometry.OH, geometry.OW, geometry.M)


def depthwise_sums(x: np.ndarray, w: np.ndarray, bias: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """int32 sums [B, OH, OW, C] of a depthwise convolution with weights [KH, KW, C]; ``geometry.M`` is C."""
    taps = w.reshape(-1, geometry.C).astype(np.int64)
    out = []
    for block in im2col_blocks(x, geometry):
        out.append(np.einsum("nct,tc->nc", block.reshape(len(block), geometry.C, -1).astype(np.int64), taps))
    sums = np.concatenate(out) + bias
    return sums.astype(np.int32).reshape(len(x), geometry.OH, geometry.OW, geometry.C)


def _window_values(x: np.ndarray, geometry: ConvGeometry, pad: int) -> np.ndarray:
    """int64 [B, OH, OW, C, taps], ``pad`` where a tap lies outside."""
    taps = geometry.KH * geometry.KW
    values = np.concatenate(list(im2col_blocks(x.astype(np.int64) - pad, geometry))) + pad
    return values.reshape(len(x), geometry.OH, geometry.OW, geometry.C, taps)


def max_pool(x: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """Largest value of each window; the padding takes no part."""
    return _window_values(x, geometry, -128).max(axis=-1).astype(np.int8)


def average_pool(x: np.ndarray, geometry: ConvGeometry, rescale: Rescale, low: int, high: int) -> np.ndarray:
    """Sum of each window, the padding as zeros, rescaled by one factor (1 / window and the change of scale)."""
    return requantise(_window_values(x, geometry, 0).sum(axis=-1), rescale, low, high)


def add(a: np.ndarray, b: np.ndarray, multipliers: tuple[int, int], shift: int, low: int, high: int) -> np.ndarray:
    """int8 of (a * multipliers[0] + b * multipliers[1]) / 2^shift, rounded once."""
    total = a.astype(np.int64) * multipliers[0] + b.astype(np.int64) * multipliers[1]
    return np.clip(round_shift(total, shift), low, high).astype(np.int8)


def convolution(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, geometry: ConvGeometry, rescale: Rescale, low: int, high: int
) -> np.ndarray:
    """int8 convolution, rescaled."""
    return requantise(conv2d_sums(x, w, bias, geometry), rescale, low, high)


def quantise(x: np.ndarray, scale: float) -> np.ndarray:
    """int8 of float32 x: x * float32(1 / scale) in fp32, rounded to nearest even, limited to [-128, 127]; NaN is 0."""
    scaled = np.asarray(x, np.float32) * np.float32(1 / scale)
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), -128, 127)).astype(np.int8)


def dequantise(sums: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 of integers [..., M]: float32(sum) * scales[m], each rounded once."""
    return np.asarray(sums).astype(np.float32) * np.asarray(scales, np.float32)
