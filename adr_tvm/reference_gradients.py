"""NumPy reference of the reused backward pass with frozen ids: the oracle of its kernels.

Clauses B1 to B7 of ``docs/algorithm.md``. With ids frozen the forward pass is linear in the input: x_hat = A x, where A
replaces every neuron vector by the mean of its cluster, and z = rows(x_hat) W + bias. So

    dW = rows(x_hat)^T dZ,   dX_hat = col2im(dZ W^T),   dX = A^T dX_hat (averaged) or dX_hat (straight-through),

or B / b dX_hat of the first b = ceil(B / 4) images and 0 of the others (sampled). A^T = A, the mean over the members of
each cluster. The reference computes just that, densely in float64. Kernels sum dZ over the members of each cluster
instead (Ning, Guan, Shen, ICDE 2019, on backward propagation); the two share nothing but the contract.

Where clusters take over centroids of earlier batches (B9), x_hat is made of these, which are constants: dW has them,
while dX stays the mean over the members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from adr_tvm.activation import Activation
from adr_tvm.geometry import ConvGeometry
from adr_tvm.hashing.vectors import im2col_blocks, neuron_vectors
from adr_tvm.reference_ids import pack, read_index
from adr_tvm.settings import INPUT_GRADIENTS, ReuseSetting


@dataclass(frozen=True, eq=False)
class ReuseGradients:
    """Gradients of one reuse layer, float64.

    Attributes:
        x: [B, H, W, C].
        w: [KH, KW, C, M].
        bias: [M].
    """

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray


def activation_gradient(y: np.ndarray, dy: np.ndarray, activation: Activation) -> np.ndarray:
    """dZ float64 = dY act'(Z), told from the output: 0 at the limits of ``clip``."""
    dy = dy.astype(np.float64)
    if activation.kind == "clip":
        low, high = y.dtype.type(activation.low), y.dtype.type(activation.high)
        return np.where((y > low) & (y < high), dy, 0)
    if activation.kind == "leaky_relu":
        return np.where(y > 0, dy, dy * activation.slope)
    return dy


def reuse_conv2d_gradients(
    x: np.ndarray,
    w: np.ndarray,
    dz: np.ndarray,
    geometry: ConvGeometry,
    setting: ReuseSetting,
    ids: np.ndarray,
    input_gradient: str = "averaged",
    centroids: list[list[np.ndarray]] | None = None,
) -> ReuseGradients:
    """Gradients of sum(dz * z) for the reused layer with given ids (clauses B1 to B7, B9).

    Args:
        x: [B, H, W, C].
        w: [KH, KW, C, M].
        dz: [B, OH, OW, M], gradient of what the activation is applied to.
        ids: as in ``reference.ReuseResult``.
        input_gradient: ``averaged``, ``sampled`` or ``straight-through``.
        centroids: what the forward pass multiplied, as in ``reference.ReuseResult``; None: the means of the members.

    Raises:
        ValueError: a shape is wrong, or ``input_gradient`` is not known.
    """
    if input_gradient not in INPUT_GRADIENTS:
        raise ValueError(f"input_gradient is {input_gradient!r}, expected one of {', '.join(INPUT_GRADIENTS)}")
    if dz.shape != (len(x), geometry.OH, geometry.OW, geometry.M):
        raise ValueError(f"dz is {dz.shape}, expected [{len(x)}, {geometry.OH}, {geometry.OW}, {geometry.M}]")
    own = pack(np.asarray(ids), len(x), geometry, setting)
    vectors = neuron_vectors(x, geometry, setting).astype(np.float64)
    units, S, n = own.shape
    shape = (units, n, S, geometry.vector_length(setting))
    rebuilt = _averaged(vectors.reshape(shape), own) if centroids is None else _replaced(centroids, own, shape)
    flat = dz.astype(np.float64).reshape(-1, geometry.M)
    rows = _im2col_rows(rebuilt, len(x), geometry, setting)
    matrix = w.astype(np.float64).transpose(2, 0, 1, 3).reshape(geometry.K, geometry.M)
    dw = (rows.T @ flat).reshape(geometry.C, geometry.KH, geometry.KW, geometry.M).transpose(1, 2, 0, 3)
    drows = flat @ matrix.T
    if input_gradient != "averaged":
        dx = _col2im(drows, len(x), geometry)
        if input_gradient == "sampled":
            first = math.ceil(len(x) / 4)
            dx = np.where(np.arange(len(x))[:, None, None, None] < first, dx * len(x) / first, 0)
    elif setting.granularity == "pixel":
        dense = _col2im(drows, len(x), geometry)[read_index(geometry)].reshape(-1, geometry.C)
        dx = _placed(_uncut(_averaged(_cut(dense, shape), own), geometry.C), len(x), geometry)
    else:
        dx = _col2im(_uncut(_averaged(_cut(drows, shape), own), geometry.K), len(x), geometry)
    return ReuseGradients(dx, dw, flat.sum(axis=0))


def _averaged(vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Vectors [U, n, S, L] replaced by the means of their clusters; 0 where they are in none (ids [U, S, n] < 0)."""
    means = np.zeros_like(vectors)
    for u, s in np.ndindex(ids.shape[:2]):
        own = ids[u, s]
        members = np.flatnonzero(own >= 0)
        sums = np.zeros((own.max(initial=-1) + 1, vectors.shape[3]))
        np.add.at(sums, own[members], vectors[u, members, s])
        sizes = np.bincount(own[members], minlength=len(sums))
        means[u, members, s] = sums[own[members]] / sizes[own[members], None]
    return means


def _replaced(centroids: list[list[np.ndarray]], ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Vectors [U, n, S, L] that are the given centroids [clusters, L] of each (unit, segment); 0 in no cluster."""
    vectors = np.zeros(shape)
    for u, s in np.ndindex(ids.shape[:2]):
        members = np.flatnonzero(ids[u, s] >= 0)
        vectors[u, members, s] = centroids[u][s][ids[u, s, members]]
    return vectors


def _cut(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows [U n, K] as vectors [U, n, S, L], the last segment zero-padded."""
    return np.pad(rows, ((0, 0), (0, shape[2] * shape[3] - rows.shape[1]))).reshape(shape)


def _uncut(vectors: np.ndarray, length: int) -> np.ndarray:
    """The inverse of ``_cut``."""
    return vectors.reshape(vectors.shape[0] * vectors.shape[1], -1)[:, :length]


def _placed(pixels: np.ndarray, batch: int, g: ConvGeometry) -> np.ndarray:
    """Rows of the pixels that are read, as images [B, H, W, C]; the others are 0."""
    images = np.zeros((batch, g.H, g.W, g.C))
    images[read_index(g)] = pixels.reshape(batch, len(g.read_rows), len(g.read_cols), g.C)
    return images


def _im2col_rows(vectors: np.ndarray, batch: int, g: ConvGeometry, setting: ReuseSetting) -> np.ndarray:
    """im2col rows [B OH OW, K], order (C, KH, KW), of neuron vectors [U, n, S, L]."""
    if setting.granularity != "pixel":
        return _uncut(vectors, g.K)
    return np.concatenate(list(im2col_blocks(_placed(_uncut(vectors, g.C), batch, g), g)))


def _col2im(drows: np.ndarray, batch: int, g: ConvGeometry) -> np.ndarray:
    """The transpose of im2col: [B OH OW, K] to [B, H, W, C]."""
    (top, left, bottom, right), (SH, SW), (DH, DW) = g.padding, g.strides, g.dilation
    padded = np.zeros((batch, g.H + top + bottom, g.W + left + right, g.C))
    windows = drows.reshape(batch, g.OH, g.OW, g.C, g.KH, g.KW)
    for ky, kx in np.ndindex(g.KH, g.KW):
        rows = slice(ky * DH, ky * DH + (g.OH - 1) * SH + 1, SH)
        columns = slice(kx * DW, kx * DW + (g.OW - 1) * SW + 1, SW)
        padded[:, rows, columns] += windows[..., ky, kx]
    return padded[:, top : top + g.H, left : left + g.W]
