"""Reuse of int8 vectors in integer arithmetic: the oracle of the C kernels (``docs/algorithm.md``, I6 to I9).

Bits are ``dot > threshold`` of int8 vectors and planes, summed in int32, so a hash never rounds and ids are equal on
every machine. Centroids are means rounded to int8, ties to even; products of centroids are int32 and rescaled once,
when all are added up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.vectors import hashed_vectors, im2col_blocks, neuron_vectors
from adr_tvm.int8.fixed_point import round_divide
from adr_tvm.int8.operators import conv2d_sums
from adr_tvm.reference_ids import number, read_index
from adr_tvm.settings import ReuseSetting

NEVER = 2**30  # a threshold that no dot product exceeds
GROUP = 5  # segments of ``segment`` whose products are added up as int16


@dataclass(frozen=True, eq=False)
class IntegerPlanes:
    """Hash planes of an int8 layer.

    Attributes:
        planes: int8 [S, L, H].
        thresholds: int32 [S, H]; a bit is set where the dot product is larger.
    """

    planes: np.ndarray
    thresholds: np.ndarray


@dataclass(frozen=True, eq=False)
class IntegerReuse:
    """Sums and inner state of one reuse layer, an image a unit.

    Attributes:
        sums: int32 [B, OH, OW, M], bias included.
        ids: int32 [B, S, positions]; -1 where there is no vector.
        clusters: int64 [B, S].
        seen: int64 [B], clusters that were counted: those of all segments, or of an image that runs dense one more than
            the guard allows.
        reused: bool [B], False where the guard ran the image dense.
    """

    sums: np.ndarray
    ids: np.ndarray
    clusters: np.ndarray
    seen: np.ndarray
    reused: np.ndarray


def quantise_planes(planes: np.ndarray, thresholds: np.ndarray, scale: float) -> IntegerPlanes:
    """Planes float32 [S, L, H] and thresholds [S, H] for vectors of int8 in units of ``scale``.

    Each plane is scaled to a largest entry of 127. A bit keeps its meaning up to that rounding; +inf stays "never".
    """
    largest = np.abs(planes).max(axis=1)
    steps = np.where(largest > 0, largest, 1) / 127
    rounded = np.rint(planes / steps[:, None]).astype(np.int8)
    limits = np.asarray(thresholds, np.float64) / (steps.astype(np.float64) * scale)
    limits = np.floor(np.clip(limits, -NEVER, NEVER))
    return IntegerPlanes(rounded, limits.astype(np.int32))


def labels(vectors: np.ndarray, setting: ReuseSetting, planes: IntegerPlanes | None) -> np.ndarray:
    """What members of a cluster share, int64 [n, S], of vectors int8 [n, S, L]: the key, or with ``exact`` the data."""
    n, S, L = vectors.shape
    if setting.hash == "exact":
        data = np.ascontiguousarray(vectors).reshape(n * S, L).view(np.dtype((np.void, L))).reshape(-1)
        return np.unique(data, return_inverse=True)[1].reshape(n, S)
    if planes is None:
        raise ValueError(f"hash {setting.hash} needs planes")
    dots = np.einsum("nsl,slh->nsh", vectors.astype(np.int64), planes.planes.astype(np.int64))
    keys = (dots > planes.thresholds) @ (1 << np.arange(planes.planes.shape[2], dtype=np.int64))
    return np.where((vectors == 0).all(axis=2), -1, keys)


def centroids(vectors: np.ndarray, ids: np.ndarray, exact: bool) -> np.ndarray:
    """int8 [clusters, L] of vectors int8 [n, L] with ids [n]: the first member if ``exact``, else the rounded mean."""
    members = np.flatnonzero(ids >= 0)
    members = members[np.argsort(ids[members], kind="stable")]
    if not len(members):
        return np.zeros((0, vectors.shape[1]), np.int8)
    _, starts, counts = np.unique(ids[members], return_index=True, return_counts=True)
    if exact:
        return vectors[members[starts]]
    sums = np.add.reduceat(vectors[members].astype(np.int64), starts, axis=0)
    return round_divide(sums, counts[:, None]).astype(np.int8)


def reuse_conv2d(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    planes: IntegerPlanes | None = None,
    table_shift: int = -1,
) -> IntegerReuse:
    """The reused layer on int8 x [B, H, W, C] with HWIO int8 weights and bias int32 [M].

    Args:
        table_shift: products are kept in units of 2^table_shift; -1: as they are.
    """
    S, n = geometry.segments(setting), geometry.positions(setting)
    vectors = neuron_vectors(x, geometry, setting).astype(np.int8).reshape(len(x), n, S, -1)
    hashed = hashed_vectors(geometry, setting)
    ids = np.full((len(x), S, n), -1, np.int32)
    clusters = np.zeros((len(x), S), np.int64)
    rebuilt = vectors.copy()
    for image in range(len(x)):
        label = labels(vectors[image], setting, planes)
        for s in range(S):
            ids[image, s, hashed[:, s]] = number(label[hashed[:, s], s])
            table = centroids(vectors[image, :, s], ids[image, s], setting.hash == "exact")
            clusters[image, s] = len(table)
            rebuilt[image, hashed[:, s], s] = table[ids[image, s, hashed[:, s]]]
    limit = np.inf if setting.max_clusters is None else setting.max_clusters
    seen = np.minimum(clusters.sum(axis=1), limit + 1)
    reused = seen <= limit
    rebuilt[~reused] = vectors[~reused]
    sums = _sums(x, rebuilt, w, bias, geometry, setting, -1)
    if table_shift > 0:
        sums[reused] = _sums(x, rebuilt, w, bias, geometry, setting, table_shift)[reused]
    return IntegerReuse(sums, ids, clusters, seen, reused)


def table_shift_of(w: np.ndarray, geometry: ConvGeometry, setting: ReuseSetting) -> int:
    """Smallest unit, as its power of two, in which the products that are added up as int16 fit for any input.

    ``pixel``: those of all taps of a segment; ``segment``: those of ``GROUP`` segments.
    """
    magnitudes = [np.abs(part.astype(np.int64)).sum(axis=0) * 128 for part in _parts(w, geometry, setting)]
    together = len(magnitudes) // geometry.segments(setting) if setting.granularity == "pixel" else GROUP
    for shift in range(24):
        largest = [(m + (1 << shift >> 1)) >> shift for m in magnitudes]
        groups = [sum(largest[i : i + together]) for i in range(0, len(largest), together)]
        if max(int(np.max(group)) for group in groups) <= 32767:
            return shift
    raise AssertionError("weights are int8")


def _parts(w: np.ndarray, geometry: ConvGeometry, setting: ReuseSetting) -> list[np.ndarray]:
    """Weights [entries, M] of each product: ``pixel``: segments, in each the taps; else segments."""
    S, L = geometry.segments(setting), geometry.vector_length(setting)
    if setting.granularity == "pixel":
        taps = w.reshape(-1, geometry.C, geometry.M)
        return [tap[s * L : (s + 1) * L] for s in range(S) for tap in taps]
    matrix = w.transpose(2, 0, 1, 3).reshape(geometry.K, geometry.M)
    return [matrix[s * L : (s + 1) * L] for s in range(S)]


def _sums(
    x: np.ndarray,
    rebuilt: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    table_shift: int,
) -> np.ndarray:
    """int32 sums [B, OH, OW, M] of vectors rebuilt from centroids, int8 [B, positions, S, L]."""
    rows = rebuilt.reshape(len(x), rebuilt.shape[1], -1)
    if setting.granularity == "pixel":
        image = np.zeros(x.shape, np.int8)
        shape = (len(x), len(geometry.read_rows), len(geometry.read_cols), geometry.C)
        image[read_index(geometry)] = rows[:, :, : geometry.C].reshape(shape)
        if table_shift < 0:
            return conv2d_sums(image, w, bias, geometry)
        blocks = np.concatenate(list(im2col_blocks(image, geometry)))
        taps = blocks.reshape(len(x), geometry.rows, geometry.C, geometry.KH * geometry.KW)
        S, L = geometry.segments(setting), geometry.vector_length(setting)
        vectors = [taps[:, :, s * L : (s + 1) * L, t] for s in range(S) for t in range(geometry.KH * geometry.KW)]
    else:
        L, last = geometry.vector_length(setting), geometry.K
        vectors = [rows[:, :, s * L : min((s + 1) * L, last)] for s in range(geometry.segments(setting))]
    shift = max(table_shift, 0)
    sums = np.zeros((len(x), geometry.rows, geometry.M), np.int64)
    for vector, part in zip(vectors, _parts(w, geometry, setting), strict=True):
        products = (vector.astype(np.float64) @ part.astype(np.float64)).astype(np.int64)
        sums += ((products + (1 << shift >> 1)) >> shift) << shift
    return (sums + bias).astype(np.int32).reshape(len(x), geometry.OH, geometry.OW, geometry.M)
