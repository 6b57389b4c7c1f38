"""Neuron vectors: im2col rows and input pixels cut into segments of L entries (``docs/algorithm.md``, Words).

All arrays are NHWC fp32. The im2col row is in the order (C, KH, KW) of Deep Reuse (ICS 2019, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.settings import ReuseSetting

BLOCK_BYTES = 64 << 20


def _windows(image: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """View [OH, OW, C, KH, KW] of the zero-padded image [H, W, C]."""
    top, left, bottom, right = geometry.padding
    padded = np.pad(image, ((top, bottom), (left, right), (0, 0)))
    (sh, sw), (dh, dw) = geometry.strides, geometry.dilation
    span = (dh * (geometry.KH - 1) + 1, dw * (geometry.KW - 1) + 1)
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(0, 1))
    return view[::sh, ::sw, :, ::dh, ::dw]


def im2col_blocks(x: np.ndarray, geometry: ConvGeometry) -> Iterator[np.ndarray]:
    """The im2col matrix of x [B, H, W, C], image by image, as blocks [rows, K] of at most ~64 MiB.

    A block never spans two images.
    """
    step = max(1, BLOCK_BYTES // (geometry.OW * geometry.K * x.itemsize))
    for image in x:
        windows = _windows(image, geometry)
        for row in range(0, geometry.OH, step):
            yield np.ascontiguousarray(windows[row : row + step]).reshape(-1, geometry.K)


def cut(rows: np.ndarray, S: int, L: int) -> np.ndarray:
    """Rows [n, K] as vectors [n, S, L], the last segment zero-padded."""
    return np.pad(rows, ((0, 0), (0, S * L - rows.shape[1]))).reshape(len(rows), S, L)


def neuron_vector_blocks(x: np.ndarray, geometry: ConvGeometry, setting: ReuseSetting) -> Iterator[np.ndarray]:
    """The vectors of x [B, H, W, C] in the order of contract 1, as float32 blocks [n, S, L] of ~64 MiB.

    A block never spans two images. Windows that lie in the padding are included, as zeros.

    Raises:
        ValueError: the shape of x is not that of the geometry.
    """
    if x.ndim != 4 or x.shape[1:] != (geometry.H, geometry.W, geometry.C):
        raise ValueError(f"x is {x.shape}, expected [B, {geometry.H}, {geometry.W}, {geometry.C}]")
    x = np.asarray(x, np.float32)
    S, L = geometry.segments(setting), geometry.vector_length(setting)
    if setting.granularity == "pixel":
        rows, cols = np.array(geometry.read_rows, int), np.array(geometry.read_cols, int)
        for image in x:
            yield cut(image[rows[:, None], cols].reshape(-1, geometry.C), S, L)
    else:
        for block in im2col_blocks(x, geometry):
            yield cut(block, S, L)


def neuron_vectors(x: np.ndarray, geometry: ConvGeometry, setting: ReuseSetting) -> np.ndarray:
    """All blocks of ``neuron_vector_blocks`` in one array, float32 [B * positions, S, L]."""
    blocks = list(neuron_vector_blocks(x, geometry, setting))
    if not blocks:
        return np.zeros((0, geometry.segments(setting), geometry.vector_length(setting)), np.float32)
    return np.concatenate(blocks)


def vectors_at(
    x: np.ndarray, geometry: ConvGeometry, setting: ReuseSetting, positions: np.ndarray, segments: np.ndarray
) -> np.ndarray:
    """Some of the vectors of x [B, H, W, C]: float32 [B, positions, segments, L].

    Args:
        positions: places in an image, in the order of contract 1.
        segments: which, in any order.
    """
    S, L = geometry.segments(setting), geometry.vector_length(setting)
    x = np.asarray(x, np.float32)
    if setting.granularity == "pixel":
        rows, cols = np.array(geometry.read_rows, int), np.array(geometry.read_cols, int)
        at = x[:, rows[positions // len(cols)], cols[positions % len(cols)]]
    else:
        oy, ox = positions // geometry.OW, positions % geometry.OW
        at = np.stack([_windows(image, geometry)[oy, ox].reshape(len(positions), geometry.K) for image in x])
    if at.shape[2] != S * L:
        at = np.pad(at, ((0, 0), (0, 0), (0, S * L - at.shape[2])))
    return at.reshape(len(x), len(positions), S, L)[:, :, segments]


def hashed_vectors(geometry: ConvGeometry, setting: ReuseSetting) -> np.ndarray:
    """Which vectors of one image are hashed at all, bool [positions, S] (contract 3).

    False only for the vectors of ``segment`` all of whose entries lie in the padding.
    """
    P, S, L = geometry.positions(setting), geometry.segments(setting), geometry.vector_length(setting)
    if setting.granularity != "segment":
        return np.ones((P, S), bool)
    inside = _windows(np.ones((geometry.H, geometry.W, 1), bool), geometry)
    taps = inside.reshape(P, 1, geometry.KH * geometry.KW)
    entries = np.broadcast_to(taps, (P, geometry.C, taps.shape[2])).reshape(P, geometry.K)
    return np.any(cut(entries, S, L), axis=2)
