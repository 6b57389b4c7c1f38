"""Hash planes refined while the network trains: gradient descent on the error of replacing vectors by centroids.

TREC ("Transient Redundancy Elimination-based Convolution", NeurIPS 2022) trains planes through a relaxed bit,
sigmoid(alpha (x.v - 0.1 / 2^H)) with alpha = 10^4. Here, for a vector x and the bit h of its segment,

    p_h = sigmoid(alpha (x.v_h - t_h) / s_h)        s_h: standard deviation of x.v_h, so alpha has no unit

and the relaxed loss of a sample is, over vectors i and bits h, one bit at a time with the others as they are,

    E = sum_i sum_h  p_ih e1_ih + (1 - p_ih) e0_ih

where e1, e0 = ||x - c||^2 for the centroids c of the clusters that x is in with bit h set and not set: one of them is
its own, the other that of the neighbour across plane h. Where the neighbour has no members the bit adds nothing: moving
there would open another cluster. Centroids and s are constants:

    dE/dv_h = (alpha / s_h) sum_i p_ih (1 - p_ih) (e1_ih - e0_ih) x_i        dE/dt_h = the same without x_i, negative

A centroid is the mean of its members, at which the error is stationary, so as alpha grows this tends to the gradient of
the quantisation error sum_i ||x_i - c(i)||^2 itself. Only vectors within about s / alpha of a plane count: with TREC's
10^4 these are none of a sample of thousands; alpha = 10 lets a tenth of them speak.

Planes move against the gradient, preconditioned by the inverse covariance of the vectors (a step of one length then
moves projections by one amount, whatever the direction's variance). A step is taken if the quantisation error of the
sample times its number of clusters falls, else it is halved: finer clusters must pay for themselves. Measured on
CifarNet's conv2 (`pixel`, L = 8, H = 8, batch scope; 8192 vectors, tested on other images): from pca NMSE .241 to .231
with r_c .0083 to .0086, from gaussian .360 to .214 with r_c .0121 to .0133, in 0.4 and 0.7 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adr_tvm.hashing.planes import HashPlanes
from adr_tvm.hashing.vector_statistics import gram

ALPHA = 10.0
ITERATIONS = 20
FIRST_STEP = 0.1  # standard deviations that projections move by
SMALLEST_STEP = 1e-3
RIDGE = 1e-2  # of the mean variance, added to the covariance


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of a sample of one segment.

    Attributes:
        labels: cluster of each vector, int64 [n].
        keys: of each cluster, ascending, int64 [c]: unit * 2^H + bits.
        centroids: float64 [c, L].
    """

    labels: np.ndarray
    keys: np.ndarray
    centroids: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, units: np.ndarray, planes: np.ndarray, thresholds: np.ndarray) -> Clusters:
        """Clusters of vectors x [n, L] of units int64 [n]; planes [L, H], thresholds [H]."""
        H = planes.shape[1]
        bits = x @ planes > thresholds
        keys, labels, sizes = np.unique(
            units * 2**H + bits @ (1 << np.arange(H, dtype=np.int64)), return_inverse=True, return_counts=True
        )
        sums = np.stack([np.bincount(labels, column, len(keys)) for column in x.T], axis=1)
        return cls(labels, keys, sums / sizes[:, None])

    def error(self, x: np.ndarray) -> float:
        """Sum over vectors x [n, L] of the squared distance from their centroid."""
        return float(((x - self.centroids[self.labels]) ** 2).sum())

    def flip_costs(self, x: np.ndarray, H: int) -> np.ndarray:
        """e1 - e0 of the module, float64 [n, H]; 0 where the neighbour has no members."""
        own = ((x - self.centroids[self.labels]) ** 2).sum(axis=1)
        costs = np.zeros((len(x), H))
        for h in range(H):
            flipped = self.keys ^ (1 << h)
            place = np.minimum(np.searchsorted(self.keys, flipped), len(self.keys) - 1)
            there = (self.keys[place] == flipped)[self.labels]
            other = ((x - self.centroids[place[self.labels]]) ** 2).sum(axis=1)
            sign = np.where((self.keys >> h & 1)[self.labels] == 1, -1.0, 1.0)
            costs[:, h] = np.where(there, sign * (other - own), 0.0)
        return costs


def relaxed_bits(x: np.ndarray, planes: np.ndarray, thresholds: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """p of the module, float64 [n, H]; scales [H] are s."""
    slope = np.clip(ALPHA * (x @ planes - thresholds) / scales, -60, 60)
    return 1 / (1 + np.exp(-slope))


def gradient(
    x: np.ndarray, planes: np.ndarray, thresholds: np.ndarray, scales: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """dE/dplanes [L, H] and dE/dthresholds [H] for given e1 - e0 [n, H]."""
    p = relaxed_bits(x, planes, thresholds, scales)
    weights = ALPHA / scales * p * (1 - p) * costs
    return np.einsum("nl,nh->lh", x, weights), -weights.sum(axis=0)  # not BLAS: the same at any number of threads


def learned(planes: HashPlanes, vectors: np.ndarray, units: np.ndarray, iterations: int = ITERATIONS) -> HashPlanes:
    """Planes refined on a sample.

    Args:
        planes: to start from.
        vectors: float32 [n, S, L]; zero and non-finite ones are left out, as they are in no hashed cluster.
        units: int [n], the unit in which a vector is clustered: its image, or 0 for all.
        iterations: steps to try.

    Returns:
        Planes of the same shape. In no segment is error times clusters of the sample larger than before.
    """
    directions, thresholds = planes.planes.copy(), planes.thresholds.copy()
    usable = np.isfinite(vectors).all(axis=2) & (vectors != 0).any(axis=2)
    for s in range(vectors.shape[1]):
        chosen = usable[:, s]
        on = np.isfinite(thresholds[s])
        if np.count_nonzero(chosen) > 1 and on.any():
            found = _learned_segment(
                vectors[chosen, s].astype(np.float64), units[chosen].astype(np.int64),
                directions[s][:, on].astype(np.float64), thresholds[s, on].astype(np.float64), iterations,
            )  # fmt: skip
            directions[s][:, on], thresholds[s, on] = found
    return HashPlanes(directions, thresholds, planes.mu)


def _learned_segment(
    x: np.ndarray, units: np.ndarray, planes: np.ndarray, thresholds: np.ndarray, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """As ``learned``, of one segment: x [n, L], planes [L, H], thresholds [H]. Works on centred vectors."""
    mean = x.mean(axis=0)
    x = x - mean
    covariance = gram(x) / len(x)
    scale = np.sqrt(np.maximum(np.einsum("lh,lk,kh->h", planes, covariance, planes), 1e-30))
    moving = scale > 1e-12
    if not moving.any():
        return planes, thresholds
    ridge = RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.inv(covariance + ridge)
    # Planes whose projections have the variance 1.
    v, t = planes / scale, (thresholds - mean @ planes) / scale
    first = now = Clusters.of(x, units, v, t)
    error, step = now.error(x), FIRST_STEP
    direction = None
    for _ in range(iterations):
        if direction is None:
            ones = np.where(moving, 1.0, np.inf)
            dv, dt = gradient(x, v, t, ones, now.flip_costs(x, len(t)))
            dv = inverse @ dv
            size = np.sqrt(np.einsum("lh,lk,kh->h", dv, covariance, dv) + dt**2).max()
            if size == 0:
                break
            direction = dv / size, dt / size
        tried = v - step * direction[0], t - step * direction[1]
        then = Clusters.of(x, units, *tried)
        lower = then.error(x)
        if lower * len(then.keys) < error * len(now.keys):
            (v, t), now, error, direction = tried, then, lower, None
            step *= 1.5
        else:
            step /= 2
            if step < SMALLEST_STEP:
                break
    if now is first:
        return planes, thresholds
    return v * scale, t * scale + mean @ (v * scale)
