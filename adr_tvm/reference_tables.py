"""Product tables of the reference: products of centroids, rounded as a ``table`` type keeps them, and gathered.

Clause 15 of ``docs/algorithm.md``. Unlike the rest of the reference this works as kernels do, because what is rounded
is the single product; it shares with them the step of an integer table only (``product_steps``). Sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.product_steps import keeps_integers, levels
from adr_tvm.reference_ids import read_index
from adr_tvm.settings import ReuseSetting

NEAR = 1e-3  # of a step: a kernel's fp32 product may be rounded the other way where it is as near to the middle


@dataclass(frozen=True, eq=False)
class TableSums:
    """Sums of gathered products, float64 [images, OH * OW, M].

    Attributes:
        sums: before bias and activation.
        slack: what roundings the other way could change, were every near one so.
    """

    sums: np.ndarray
    slack: np.ndarray


def table_type(geometry: ConvGeometry, setting: ReuseSetting) -> str:
    """The type a layer's tables have: the setting's, or ``float32`` where integer sums could overflow."""
    taps = geometry.KH * geometry.KW if setting.granularity == "pixel" else 1
    return setting.table if not setting.table.startswith("int") or keeps_integers(setting.table, taps) else "float32"


def gather_products(
    w: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    vectors: np.ndarray,
    ids: np.ndarray,
    centroids: list[np.ndarray],
    gains: np.ndarray | None,
) -> TableSums:
    """The sums of one unit.

    Args:
        w: [KH, KW, C, M].
        vectors: float64 [S, n, L], zero-padded.
        ids: [S, n].
        centroids: for each segment, float64 [clusters, L].
        gains: [S, n], or None.
    """
    S, n, L = vectors.shape
    weights = _weights(w, geometry, setting, S, L)
    taps, M = weights.shape[1], weights.shape[3]
    step = _step(weights, centroids, setting, taps) if setting.table.startswith("int") else None
    images = n // geometry.positions(setting)
    total = np.zeros((2, images, geometry.rows, M))
    for s in range(S):
        shared, alone = ids[s] >= 0, ids[s] == -2
        for t in range(taps):
            rows = np.zeros((2, n, M))  # the values, and their slack
            rows[:, shared] = _rounded(centroids[s] @ weights[s, t], setting.table, step)[:, ids[s, shared]]
            if gains is not None:
                rows *= gains[s, :, None]
            with np.errstate(invalid="ignore"):
                rows[0, alone] = vectors[s, alone] @ weights[s, t]
            total += _read(rows, t, geometry, setting, images)
    return TableSums(total[0], np.abs(total[1]))


def _weights(w: np.ndarray, geometry: ConvGeometry, setting: ReuseSetting, S: int, L: int) -> np.ndarray:
    """Weights float64 [S, taps, L, M] that the entries of a segment meet under each tap, zero-padded."""
    if setting.granularity == "pixel":
        by_tap = w.astype(np.float64).reshape(-1, geometry.C, geometry.M)
    else:
        by_tap = w.astype(np.float64).transpose(2, 0, 1, 3).reshape(1, -1, geometry.M)
    padded = np.zeros((len(by_tap), S * L, geometry.M))
    padded[:, : by_tap.shape[1]] = by_tap
    return padded.reshape(-1, S, L, geometry.M).transpose(1, 0, 2, 3)


def _step(weights: np.ndarray, centroids: list[np.ndarray], setting: ReuseSetting, taps: int) -> np.ndarray:
    """Steps [M] of the integers."""
    largest = [np.linalg.norm(c, axis=1).max(initial=0) for c in centroids]
    norms = np.linalg.norm(weights, axis=2).max(axis=1)
    return (np.array(largest)[:, None] * norms).max(axis=0) / levels(setting.table, taps, len(centroids))


def _rounded(products: np.ndarray, table: str, step: np.ndarray | None) -> np.ndarray:
    """Products as a table keeps them, and how far from that they are if rounded the other way where that is near."""
    if step is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.where(step > 0, products / step, 0)
        low, value, high = (np.rint(q + near) * step for near in (-NEAR, 0, NEAR))
    else:
        low, value, high = (_to_bfloat16(products + near * np.abs(products)) for near in (-1e-5, 0, 1e-5))
    return np.stack([value, np.maximum(value - low, high - value)])


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def _read(rows: np.ndarray, tap: int, g: ConvGeometry, setting: ReuseSetting, images: int) -> np.ndarray:
    """What every output pixel reads through a tap of rows [2, n, M]: [2, images, OH * OW, M]."""
    if setting.granularity != "pixel":
        return rows.reshape(2, images, g.rows, -1)
    (top, left, bottom, right), M = g.padding, rows.shape[2]
    maps = np.zeros((2 * images, g.H, g.W, M))
    maps[read_index(g)] = rows.reshape(2 * images, len(g.read_rows), len(g.read_cols), M)
    maps = np.pad(maps, ((0, 0), (top, bottom), (left, right), (0, 0)))
    y, x = tap // g.KW * g.dilation[0], tap % g.KW * g.dilation[1]
    (SH, SW) = g.strides
    part = maps[:, y : y + (g.OH - 1) * SH + 1 : SH, x : x + (g.OW - 1) * SW + 1 : SW]
    return part.reshape(2, images, g.rows, M)
