"""NumPy reference of the reused forward pass: the oracle of every kernel (``docs/algorithm.md``).

Reuse replaces each neuron vector by its representative and the product is linear, so the reference rebuilds
the input from representatives (scaled, with ``gain``) and multiplies it densely in float64:

    Y = act(rows(x_hat) W + bias),   x_hat = a * c[id]

Kernels instead multiply each representative once and gather products; the two share nothing but the contract. Where
products are rounded (``table`` other than ``float32``) there is no such input, and ``reference_tables`` gathers too.
Weights are expected to be finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.vectors import im2col_blocks, neuron_vectors
from adr_tvm.reference_ids import (
    cluster,
    fused_multiply_add,
    pack,
    read_index,
    rounding_band,
    same_ids,
    spread,
)
from adr_tvm.reference_stream import ReferenceStream
from adr_tvm.reference_tables import gather_products, table_type
from adr_tvm.settings import ReuseSetting

__all__ = [
    "ReuseResult",
    "conv2d",
    "conv2d_chain",
    "reuse_conv2d",
    "reuse_conv2d_given_ids",
    "rounding_band",
    "same_ids",
]

LINEAR = Activation()


@dataclass(frozen=True, eq=False)
class ReuseResult:
    """Output and inner state of one reuse layer; U units of G images each.

    Attributes:
        y: float32 [B, OH, OW, M].
        ids: int32, ``pixel`` [U, G, S, H, W], else [U, S, G * OH * OW]. -1: no vector (contract 3, and pixels
            that no tap reads); -2: non-finite, its own cluster (contract 5).
        centroids: for each unit and segment, float64 [clusters, L], indexed by id.
        clusters: int64 [U, S], the non-finite vectors included.
        reused: bool [U], False where the guard ran the unit dense (contract 13).
        gains: float64 like ids, the factors a of contract 9, None without ``gain``.
        slack: float64 like y: by how much a kernel may differ beyond its fp32 sums, because it rounds products that lie
            near the middle of two values the other way (contract 15); 0 with ``table=float32``.
    """

    y: np.ndarray
    ids: np.ndarray
    centroids: list[list[np.ndarray]]
    clusters: np.ndarray
    reused: np.ndarray
    gains: np.ndarray | None
    slack: np.ndarray


def _multiply(rows: np.ndarray, w: np.ndarray, bias: np.ndarray, activation: Activation) -> np.ndarray:
    """act(rows W + bias) in float64 for im2col rows [n, K] and HWIO weights."""
    matrix = w.astype(np.float64).transpose(2, 0, 1, 3).reshape(-1, w.shape[3])
    with np.errstate(invalid="ignore"):
        return activation.apply(rows.astype(np.float64) @ matrix + bias)


def conv2d(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    geometry: ConvGeometry,
    activation: Activation = LINEAR,
    dtype: type = np.float32,
) -> np.ndarray:
    """The dense layer, accumulated in float64: x [B, H, W, C], w [KH, KW, C, M], bias [M].

    Returns:
        [B, OH, OW, M] rounded once, to dtype.
    """
    blocks = [_multiply(block, w, bias, activation) for block in im2col_blocks(x, geometry)]
    y = np.concatenate(blocks) if blocks else np.zeros((0, geometry.M))
    with np.errstate(over="ignore"):
        return y.astype(dtype).reshape(len(x), geometry.OH, geometry.OW, geometry.M)


def conv2d_chain(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, geometry: ConvGeometry, activation: Activation = LINEAR
) -> np.ndarray:
    """The dense layer in the arithmetic of contract 11: one fp32 FMA chain over (KH, KW, C)."""
    outputs = []
    matrix = w.astype(np.float32).reshape(geometry.K, geometry.M)
    for block in im2col_blocks(x, geometry):
        rows = block.reshape(-1, geometry.C, geometry.KH * geometry.KW).transpose(0, 2, 1).reshape(block.shape)
        y = np.zeros((len(rows), geometry.M), np.float32)
        for k in range(geometry.K):
            y = fused_multiply_add(rows[:, k, None], matrix[k], y)
        outputs.append(activation.apply(y + bias.astype(np.float32)))
    return np.concatenate(outputs).reshape(len(x), geometry.OH, geometry.OW, geometry.M)


def _centroids(vectors: np.ndarray, ids: np.ndarray, exact: bool) -> np.ndarray:
    """Representatives float64 [max id + 1, L] of vectors [n, L] float64 with ids [n] (contracts 7 and 8)."""
    members = np.flatnonzero(ids >= 0)
    members = members[np.argsort(ids[members], kind="stable")]
    present, starts, counts = np.unique(ids[members], return_index=True, return_counts=True)
    centroids = np.zeros((present[-1] + 1 if len(present) else 0, vectors.shape[1]))
    if len(present):
        first = vectors[members[starts]]
        centroids[present] = first
        if not exact:
            offsets = vectors[members] - np.repeat(first, counts, axis=0)
            centroids[present] += np.add.reduceat(offsets, starts, axis=0) / counts[:, None]
    return centroids


def _gains(vectors: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Factors a = <x, c> / <c, c> of contract 9 for float64 vectors and their centroids [n, L].

    1 where <c, c> is 0 or infinite in fp32.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        norms = np.einsum("nl,nl->n", own, own).astype(np.float32).astype(np.float64)
        usable = (norms > 0) & np.isfinite(norms)
        return np.where(usable, np.einsum("nl,nl->n", vectors, own) / np.where(usable, norms, 1), 1)


def _values(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    ids: np.ndarray,
    activation: Activation,
    stream: ReferenceStream | None,
) -> ReuseResult:
    """Everything that follows from ids [U, S, n]: contracts 7 to 10, 13 and 16."""
    units, S, n = ids.shape
    if stream is not None:
        stream.begin()
    vectors = neuron_vectors(x, geometry, setting).astype(np.float64)
    vectors = vectors.reshape(units, n, S, -1).transpose(0, 2, 1, 3)
    rebuilt = np.where(ids[..., None] == -1, 0.0, vectors)
    gains = np.ones(ids.shape) if setting.gain else None
    clusters = np.zeros((units, S), np.int64)
    centroids: list[list[np.ndarray]] = []
    for u in range(units):
        centroids.append([])
        for s in range(S):
            own, shared = ids[u, s], ids[u, s] >= 0
            table = _centroids(vectors[u, s], own, setting.hash == "exact")
            if stream is not None:
                _, first = np.unique(own[shared], return_index=True)
                table = stream.take_over(s, vectors[u, s, shared][first].astype(np.float32), table)
            centroids[u].append(table)
            clusters[u, s] = len(np.unique(own[shared])) + np.count_nonzero(own == -2)
            rebuilt[u, s, shared] = table[own[shared]]
            if gains is not None:
                gains[u, s, shared] = _gains(vectors[u, s, shared], rebuilt[u, s, shared])
                rebuilt[u, s] *= gains[u, s, :, None]
    limit = np.inf if setting.max_clusters is None else setting.max_clusters
    reused = clusters.sum(axis=1) <= limit
    rebuilt[~reused] = vectors[~reused]
    rows = rebuilt.transpose(0, 2, 1, 3).reshape(units * n, -1)
    if setting.granularity == "pixel":
        image = np.zeros(x.shape)
        image[read_index(geometry)] = rows[:, : geometry.C].reshape(
            len(x), len(geometry.read_rows), len(geometry.read_cols), geometry.C
        )
        y = conv2d(image, w, bias, geometry, activation)
    else:
        y = _multiply(rows[:, : geometry.K], w, bias, activation)
        with np.errstate(over="ignore"):
            y = y.astype(np.float32).reshape(len(x), geometry.OH, geometry.OW, geometry.M)
    slack = np.zeros(y.shape)
    if table_type(geometry, setting) != "float32":
        by_unit, slack_by_unit = (a.reshape(units, -1, geometry.rows, geometry.M) for a in (y, slack))
        for u in np.flatnonzero(reused).tolist():
            own = None if gains is None else gains[u]
            sums = gather_products(w, geometry, setting, vectors[u], ids[u], centroids[u], own)
            with np.errstate(over="ignore", invalid="ignore"):
                by_unit[u] = activation.apply(sums.sums + bias).astype(np.float32)
            slack_by_unit[u] = sums.slack
    return ReuseResult(
        y=y,
        ids=spread(ids, len(x), geometry, setting, -1),
        centroids=centroids,
        clusters=clusters,
        reused=reused,
        gains=None if gains is None else spread(gains, len(x), geometry, setting, 1.0),
        slack=slack,
    )


def reuse_conv2d(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    planes: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
    activation: Activation = LINEAR,
    stream: ReferenceStream | None = None,
) -> ReuseResult:
    """The reused layer on x [B, H, W, C] with planes [S, L, H] and thresholds [S, H] (None: zeros).

    ``stream`` holds centroids of earlier batches, and takes those of this one (contract 16).

    Raises:
        ValueError: x, planes or thresholds have the wrong shape, or planes are missing.
    """
    ids = cluster(x, geometry, setting, planes, thresholds)
    return _values(x, w, bias, geometry, setting, ids, activation, stream)


def reuse_conv2d_given_ids(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    ids: np.ndarray,
    activation: Activation = LINEAR,
) -> ReuseResult:
    """What follows from given ids (as in ``ReuseResult``): judges a kernel's values apart from its ids.

    Raises:
        ValueError: x or ids have the wrong shape.
    """
    packed = pack(np.asarray(ids), len(x), geometry, setting)
    return _values(x, w, bias, geometry, setting, packed, activation, None)
