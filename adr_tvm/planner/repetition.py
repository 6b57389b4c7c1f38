"""How much the vectors of a layer repeat under a setting, estimated from a sample of bounded size.

Segments resemble each other, so some stand for all. Clusters grow with the vectors of a unit, so a unit is looked at
whole where that is within bounds. Of a larger one positions are drawn, and the number of clusters is carried on as it
grew: from a quarter of the sample to half of it, and from there to all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.hashing.vectors import vectors_at
from adr_tvm.settings import ReuseSetting

SAMPLE_ENTRIES = 1 << 19  # of the vectors that one estimate looks at, where units are not too large for it
MOST_ENTRIES = 1 << 21
FEWEST_SEGMENTS = 4  # one may hold little but zeros
FEWEST_POSITIONS = 64  # of an image


@dataclass(frozen=True)
class Sample:
    """Which vectors stand for all of a layer.

    Attributes:
        segments: ascending.
        positions: ascending places in an image (``ConvGeometry.positions``), all or some.
    """

    segments: np.ndarray
    positions: np.ndarray


def draw_sample(geometry: ConvGeometry, setting: ReuseSetting, images: int, seed: int) -> Sample:
    """Segments and positions of ``images`` images, at random where they are not all."""
    S, L, P = geometry.segments(setting), geometry.vector_length(setting), geometry.positions(setting)
    rng = np.random.default_rng(seed)
    count = min(S, max(FEWEST_SEGMENTS, SAMPLE_ENTRIES // (images * P * L)))
    most = max(FEWEST_POSITIONS, MOST_ENTRIES // (images * count * L))
    positions = np.arange(P) if most >= P else np.sort(rng.choice(P, most, replace=False))
    return Sample(np.sort(rng.choice(S, count, replace=False)), positions)


def repetition(
    images: np.ndarray, geometry: ConvGeometry, setting: ReuseSetting, sample: Sample, planes: HashPlanes | None
) -> tuple[float, float]:
    """Estimate (r_c, NMSE of the vectors): sum ||x - centroid||^2 / sum ||x - mean of its unit and segment||^2.

    Vectors of zeros and non-finite ones cluster as in contracts 4 and 5; windows in the padding count as zeros.

    Args:
        images: float32 [B, H, W, C].
        planes: of the sampled segments; None stands for ``exact``.
    """
    vectors = vectors_at(images, geometry, setting, sample.positions, sample.segments)
    B, n, S, _ = vectors.shape
    units = B if setting.scope == "image" else 1
    finite = np.isfinite(vectors).all(axis=3)
    clean = vectors if finite.all() else np.where(finite[..., None], vectors, np.float32(0))
    keys = _bits_of(clean) if planes is None else _keys(clean, planes)
    unit = np.arange(B)[:, None, None] * (units > 1)
    group = np.broadcast_to(unit * S + np.arange(S), finite.shape)
    labels = group * (int(keys.max()) + 1) + keys
    kept, alone = labels[finite], int(np.count_nonzero(~finite))
    P, most = geometry.positions(setting), 2**setting.H + 1 if planes is not None else math.inf
    clusters = _distinct(kept)
    if n < P:
        quarter, half = (_distinct(labels[:, ::step][finite[:, ::step]]) for step in (4, 2))
        grown = clusters * 2 ** _growth(quarter, half, clusters, math.log2(P / n))
        clusters = min(grown, units * S * min(most, P * B / units))
    r_c = min(1.0, clusters / (B * P * S) + alone / (B * n * S))
    if planes is None or not len(kept):
        return r_c, 0.0
    members = clean.reshape(-1, clean.shape[3]) if finite.all() else clean[finite]
    power = float(np.einsum("ij,ij->", members, members, dtype=np.float64))
    error = max(0.0, power - _between(members, kept))
    variance = max(0.0, power - _between(members, group[finite]))
    return r_c, 0.0 if error == 0 else error / variance if variance > 0 else 0.0


def _growth(quarter: int, half: int, whole: int, doublings: float) -> float:
    """Doublings of the clusters in so many of the vectors, each by the same share of the one before."""
    if not quarter:
        return 0.0
    before, last = math.log2(half / quarter), math.log2(whole / half)
    share = min(1.0, last / before) if before > 0 else 0.0
    return last * (doublings if share == 1 else share * (1 - share**doublings) / (1 - share))


def _keys(vectors: np.ndarray, planes: HashPlanes) -> np.ndarray:
    """Keys int64 [B, n, S] from 1 on; 0 is the key of zero vectors."""
    B, n, S, L = vectors.shape
    keys = planes.keys(vectors.reshape(B * n, S, L)).reshape(B, n, S) + 1
    keys[(vectors == 0).all(axis=3)] = 0
    return keys


def _bits_of(vectors: np.ndarray) -> np.ndarray:
    """Numbers [B, n, S] that are equal where the vectors' bits are; others share one with a chance of 2^-64."""
    words = np.ascontiguousarray(vectors).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(0).integers(2**63, size=vectors.shape[3], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (words * odd).sum(axis=3, dtype=np.uint64)
    return np.unique(mixed, return_inverse=True)[1].reshape(mixed.shape)


def _distinct(labels: np.ndarray) -> int:
    if not len(labels):
        return 0
    most = int(labels.max()) + 1
    return int(np.count_nonzero(np.bincount(labels))) if most <= 8 * len(labels) else len(np.unique(labels))


def _between(members: np.ndarray, labels: np.ndarray) -> float:
    """Sum over groups of equal labels of ||sum of members||^2 / size."""
    if int(labels.max()) >= 8 * len(labels):
        labels = np.unique(labels, return_inverse=True)[1]
    sizes = np.maximum(np.bincount(labels), 1)
    return sum(float(np.sum(np.bincount(labels, column) ** 2 / sizes)) for column in members.T)
