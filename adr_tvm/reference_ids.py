"""Cluster ids of the reference: exact hash bits, numbering, and the comparison with a kernel's ids.

Clauses 1 to 6 and 8 of ``docs/algorithm.md``. Hash bits come from the exact fp32 FMA chain of clause 2, so a
kernel that follows it gives the same ids bit by bit; one that sums in another order may differ in the
rounding band only.
"""

from __future__ import annotations

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.vectors import hashed_vectors, neuron_vectors
from adr_tvm.settings import ReuseSetting

BAND = 1e-5


def fused_multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 arrays with one rounding, as the hardware's fp32 FMA.

    The float64 product is exact, so only the sum rounds twice. That is wrong only where the float64 sum lies
    half way between two floats; there it is first rounded to odd (Boldo, Melquiond, IEEE Trans. Comput.
    2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    halfway = (total.view(np.int64) & 0x0FFFFFFF) == 0
    if halfway.any():
        p, t = product[halfway], total[halfway]
        addend = np.broadcast_to(c, total.shape)[halfway].astype(np.float64)
        virtual = t - p
        with np.errstate(invalid="ignore"):
            error = (p - (t - virtual)) + (addend - virtual)
        step = np.where((error > 0) == (t > 0), 1, -1)
        inexact = np.isfinite(error) & (error != 0)
        total[halfway] = (t.view(np.int64) + np.where(inexact, step, 0)).view(np.float64)
    with np.errstate(over="ignore"):
        return total.astype(np.float32)


def hash_keys(vectors: np.ndarray, planes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Keys int64 [n, S] of contract 2 for finite float32 vectors [n, S, L]."""
    n, S, L = vectors.shape
    H = planes.shape[2]
    keys = np.empty((n, S), np.int64)
    for s in range(S):
        dots = np.zeros((n, H), np.float32)
        for element in range(L):
            dots = fused_multiply_add(vectors[:, s, element, None], planes[s, element], dots)
        keys[:, s] = (dots > thresholds[s]) @ (1 << np.arange(H, dtype=np.int64))
    return keys


def number(labels: np.ndarray) -> np.ndarray:
    """Labels [n] replaced by 0, 1, ... in the order of their first occurrence (contract 6)."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def units_of(batch: int, setting: ReuseSetting) -> int:
    """Number of units U: what is clustered apart."""
    return batch if setting.scope == "image" else 1


def _labels(
    vectors: np.ndarray,
    finite: np.ndarray,
    setting: ReuseSetting,
    planes: np.ndarray | None,
    thresholds: np.ndarray | None,
) -> np.ndarray:
    """What members of a cluster share, [n, S]: the data's bits (``exact``), else the key, -1 for zeros."""
    n, S, L = vectors.shape
    if setting.hash == "exact":
        return vectors.reshape(n * S, L).view(np.dtype((np.void, 4 * L))).reshape(n, S)
    if planes is None or planes.shape != (S, L, setting.H):
        found = None if planes is None else planes.shape
        raise ValueError(f"planes are {found}, expected [S, L, H] = {(S, L, setting.H)}")
    thresholds = np.zeros((S, setting.H), np.float32) if thresholds is None else thresholds
    if thresholds.shape != (S, setting.H):
        raise ValueError(f"thresholds are {thresholds.shape}, expected [S, H] = {(S, setting.H)}")
    keys = hash_keys(np.where(finite[..., None], vectors, np.float32(0)), planes, thresholds)
    return np.where((vectors == 0).all(axis=2), -1, keys)


def cluster(
    x: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    planes: np.ndarray | None,
    thresholds: np.ndarray | None,
) -> np.ndarray:
    """Ids int32 [U, S, vectors of a unit] by contracts 1 to 6 and 8."""
    vectors = neuron_vectors(x, geometry, setting)
    hashed = np.tile(hashed_vectors(geometry, setting), (len(x), 1))
    finite = np.isfinite(vectors).all(axis=2)
    labels = _labels(vectors, finite, setting, planes, thresholds)
    units, S = units_of(len(x), setting), vectors.shape[1]
    ids = np.where(hashed & ~finite, -2, -1).astype(np.int32).reshape(units, -1, S).transpose(0, 2, 1).copy()
    labels, members = (a.reshape(units, -1, S).transpose(0, 2, 1) for a in (labels, hashed & finite))
    for u, s in np.ndindex(units, S):
        ids[u, s, members[u, s]] = number(labels[u, s, members[u, s]])
    return ids


def read_index(geometry: ConvGeometry) -> tuple:
    """Index of the pixels that at least one tap reads in [B, H, W, ...]."""
    rows, cols = np.array(geometry.read_rows, int), np.array(geometry.read_cols, int)
    return slice(None), rows[:, None], cols


def spread(packed: np.ndarray, batch: int, geometry: ConvGeometry, setting: ReuseSetting, missing: float) -> np.ndarray:
    """[U, S, n] shaped as ``ReuseResult.ids``; ``missing`` stands where no tap reads."""
    if setting.granularity != "pixel":
        return packed
    units, S, _ = packed.shape
    maps = np.full((batch, geometry.H, geometry.W, S), missing, packed.dtype)
    per_image = packed.transpose(0, 2, 1).reshape(batch, len(geometry.read_rows), len(geometry.read_cols), S)
    maps[read_index(geometry)] = per_image
    return maps.transpose(0, 3, 1, 2).reshape(units, -1, S, geometry.H, geometry.W)


def pack(ids: np.ndarray, batch: int, geometry: ConvGeometry, setting: ReuseSetting) -> np.ndarray:
    """The inverse of ``spread``."""
    S, units = geometry.segments(setting), units_of(batch, setting)
    if setting.granularity == "pixel":
        expected: tuple[int, ...] = (units, batch // max(units, 1), S, geometry.H, geometry.W)
    else:
        expected = (units, S, batch // max(units, 1) * geometry.rows)
    if ids.shape != expected:
        raise ValueError(f"ids are {ids.shape}, expected {expected}")
    if setting.granularity != "pixel":
        return ids
    maps = ids.reshape(batch, S, geometry.H, geometry.W).transpose(0, 2, 3, 1)
    return maps[read_index(geometry)].reshape(units, -1, S).transpose(0, 2, 1)


def rounding_band(
    x: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    planes: np.ndarray,
    mu: np.ndarray,
    thresholds: np.ndarray | None = None,
) -> np.ndarray:
    """Vectors whose hash may round either way: |v . x - t| <= 1e-5 ||v|| (||x|| + ||mu||).

    Args:
        x: [B, H, W, C].
        planes: [S, L, H].
        mu: [S, L], the centre; zeros where there is none.
        thresholds: [S, H]; None stands for the centred hash, v . mu.

    Returns:
        bool in the shape of the ids; False for the vectors without a key (zero, non-finite, not hashed).
    """
    vectors = neuron_vectors(x, geometry, setting)
    keyed = np.isfinite(vectors).all(axis=2) & (vectors != 0).any(axis=2)
    vectors = np.where(keyed[..., None], vectors, 0).astype(np.float64)
    planes, mu = planes.astype(np.float64), mu.astype(np.float64)
    if thresholds is None:
        thresholds = np.einsum("slh,sl->sh", planes, mu)
    distances = np.abs(np.einsum("nsl,slh->nsh", vectors, planes) - thresholds)
    reach = np.linalg.norm(vectors, axis=2) + np.linalg.norm(mu, axis=1)
    norms = reach[..., None] * np.linalg.norm(planes, axis=1)
    band = keyed & (distances <= BAND * norms).any(axis=2)
    units = units_of(len(x), setting)
    packed = band.reshape(units, -1, band.shape[1]).transpose(0, 2, 1)
    return spread(packed, len(x), geometry, setting, False)


def same_ids(expected: np.ndarray, found: np.ndarray, band: np.ndarray, setting: ReuseSetting) -> bool:
    """Whether a kernel's ids are right: equal bit by bit except for the vectors in the rounding band.

    A vector of the band may join another cluster or open one of its own, which renumbers those after it. So
    the partitions of the other vectors are compared, and ``found`` must be numbered by first members
    (contract 6).

    Args:
        expected, found, band: in the shape of ``ReuseResult.ids``.
    """
    if expected.shape != found.shape or not np.array_equal(np.minimum(expected, 0), np.minimum(found, 0)):
        return False
    if setting.granularity == "pixel":
        expected, found, band = (np.moveaxis(a, 2, 1) for a in (expected, found, band))
    for u, s in np.ndindex(expected.shape[:2]):
        shared = expected[u, s] >= 0
        a, b, sure = expected[u, s][shared], found[u, s][shared], ~band[u, s][shared]
        if not np.array_equal(b, number(b)) or not np.array_equal(number(a[sure]), number(b[sure])):
            return False
    return True
