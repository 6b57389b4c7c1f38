"""Hash planes of the families ``gaussian``, ``pca`` and ``learned``: bit_h = (x . v_h > t_h).

``gaussian``: the LSH of Deep Reuse (ICS 2019, section 3), its origin moved to the mean of the calibration
data.

``pca``: the leading principal directions, with one or more bits each. Bits are thresholds on a projection,
so b bits tell b + 1 levels apart (a thermometer code), not 2^b. A scalar quantiser with n levels leaves a
distortion of about variance / n^2 (Panter, Dite, Proc. IRE 1951): each bit goes to the direction with the
largest variance / (b + 1)^2. The thresholds of a direction are those of its best quantiser (Lloyd, IEEE
Trans. Inf. Theory 1982), fitted to the projected sample. Measured on activations of ResNet20 and SqueezeNet
(``pixel``, one image a unit, L = 8 and 16, H = 6 to 12), against bits that each divide the variance by 4
and thresholds at quantiles, the centroid error at equal remaining ratio is 29 to 40 % lower; quantiles put
too many thresholds where activations crowd, near zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adr_tvm.hashing.vector_statistics import VectorStatistics

LLOYD_ITERATIONS = 50
OVERSAMPLING = 10
POWER_ITERATIONS = 4


@dataclass(frozen=True, eq=False)
class HashPlanes:
    """Planes of one layer.

    Attributes:
        planes: float32 [S, L, H].
        thresholds: float32 [S, H].
        mu: float32 [S, L], the centre the thresholds were made for (zeros where there is none).
    """

    planes: np.ndarray
    thresholds: np.ndarray
    mu: np.ndarray

    def keys(self, vectors: np.ndarray) -> np.ndarray:
        """Keys int64 [n, S] of finite vectors [n, S, L]; estimates, since the sums are not one FMA chain."""
        dots = np.matmul(vectors.transpose(1, 0, 2), self.planes)
        bits = dots > self.thresholds[:, None, :]
        return (bits @ (1 << np.arange(bits.shape[2], dtype=np.int64))).T


def make_planes(family: str, H: int, statistics: VectorStatistics, seed: int, center: bool = True) -> HashPlanes | None:
    """Planes with H bits fitted to calibration statistics; None for ``exact``, which has none.

    The planes of ``gaussian`` for H bits are the first H of those for more bits; the bits of ``pca`` are not
    nested, since a direction's thresholds move when it gets another bit.

    Args:
        center: ``gaussian`` only: thresholds v . mean in place of 0.

    Raises:
        ValueError: the family is unknown, or ``learned`` (see ``learned_planes``), or H < 1.
    """
    if H < 1:
        raise ValueError(f"H is {H}, expected at least 1")
    if family == "exact":
        return None
    if family == "gaussian":
        mu = statistics.mean if center else np.zeros_like(statistics.mean)
        return _gaussian(H, mu, seed)
    if family == "pca":
        return _pca(H, statistics, seed)
    raise ValueError(f"no planes can be made for family {family!r}, expected gaussian, pca or exact")


def learned_planes(planes: np.ndarray, segments: int, length: int, thresholds: np.ndarray | None = None) -> HashPlanes:
    """Given planes [L, H], [1, L, H] or [S, L, H] and thresholds [H], [1, H] or [S, H] (None: 0).

    The zero padding of a shorter last segment meets the last rows of the planes, to no effect.

    Raises:
        ValueError: wrong shape, or a plane that is not finite, or a NaN threshold.
    """
    planes = np.asarray(planes, np.float32)
    if planes.ndim not in (2, 3) or planes.shape[-2] != length or planes.shape[-1] < 1:
        raise ValueError(f"planes are {planes.shape}, expected [{length}, H] or [{segments}, {length}, H]")
    if planes.ndim == 3 and planes.shape[0] not in (1, segments):
        raise ValueError(f"planes are for {planes.shape[0]} segments, the layer has {segments}")
    H = planes.shape[-1]
    thresholds = np.zeros(H, np.float32) if thresholds is None else np.asarray(thresholds, np.float32)
    if thresholds.shape not in ((H,), (1, H), (segments, H)):
        raise ValueError(f"thresholds are {thresholds.shape}, expected [{H}] or [{segments}, {H}]")
    if not np.isfinite(planes).all() or np.isnan(thresholds).any():
        raise ValueError("planes must be finite and thresholds not NaN")
    return HashPlanes(
        np.broadcast_to(planes, (segments, length, H)).copy(),
        np.broadcast_to(thresholds, (segments, H)).copy(),
        np.zeros((segments, length), np.float32),
    )


def _gaussian(H: int, mu: np.ndarray, seed: int) -> HashPlanes:
    S, L = mu.shape
    draws = np.random.default_rng(seed).standard_normal((H, S, L))
    planes = np.ascontiguousarray(draws.transpose(1, 2, 0), np.float32)
    thresholds = np.einsum("slh,sl->sh", planes.astype(np.float64), mu)
    return HashPlanes(planes, thresholds.astype(np.float32), mu.astype(np.float32))


def _pca(H: int, statistics: VectorStatistics, seed: int) -> HashPlanes:
    """Segments that never varied keep centred Gaussian planes."""
    result = _gaussian(H, statistics.mean, seed)
    for s in range(statistics.segments):
        directions, variances = _principal(statistics, s, H, seed)
        if not len(variances) or variances[0] <= 1e-12 * np.sum(statistics.mean[s] ** 2):
            continue
        projections = statistics.sample(s).astype(np.float64) @ directions
        bits = _deal(variances, H)
        owner = np.repeat(np.arange(len(bits)), bits)
        result.planes[s] = directions[:, owner]
        levels = [lloyd_thresholds(projections[:, d], bits[d]) for d in np.flatnonzero(bits)]
        result.thresholds[s] = np.concatenate(levels)
    return result


def _principal(statistics: VectorStatistics, s: int, H: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The H leading directions [L, D] and their variances [D], D <= H, descending, with a fixed sign."""
    if statistics.scatter is not None:
        variances, directions = (found[s] for found in statistics.spectrum())
        variances, directions = variances[::-1][:H], directions[:, ::-1][:, :H]
    else:
        sample = statistics.sample(s) - statistics.mean[s]
        directions, variances = _randomised_svd(sample, H, np.random.default_rng([seed, s]))
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    directions = (directions * np.where(largest < 0, -1, 1)).astype(np.float32)
    return directions, np.maximum(variances, 0)


def _randomised_svd(sample: np.ndarray, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Leading right singular vectors [L, rank] and variances of centred rows [n, L].

    Halko, Martinsson, Tropp, SIAM Review 2011, algorithms 4.4 and 5.1.
    """
    n, L = sample.shape
    rank = min(rank, n, L)
    basis = rng.standard_normal((L, min(rank + OVERSAMPLING, n, L)))
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(sample.T @ (sample @ basis))[0] if rank else basis
    left = np.linalg.qr(sample @ basis)[0]
    _, singular, right = np.linalg.svd(left.T @ sample, full_matrices=False)
    return right[:rank].T, singular[:rank] ** 2 / max(1, n)


def _deal(variances: np.ndarray, H: int) -> np.ndarray:
    """Bits of each direction: one after the other to the largest variance / (bits + 1)^2."""
    bits = np.zeros(len(variances), np.int64)
    for _ in range(H):
        bits[np.argmax(variances / (bits + 1) ** 2)] += 1
    return bits


def lloyd_thresholds(values: np.ndarray, b: int) -> np.ndarray:
    """b ascending thresholds of a (locally) best quantiser of values [n] with b + 1 levels.

    Starts at quantiles of the distinct values, so that a spike of equal ones holds at most one threshold.
    """
    values = np.sort(values)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    thresholds = np.quantile(np.unique(values), np.arange(1, b + 1) / (b + 1))
    for _ in range(LLOYD_ITERATIONS):
        edges = np.concatenate(([0], np.searchsorted(values, thresholds, side="right"), [len(values)]))
        counts = np.diff(edges)
        if not counts.all():
            break
        levels = np.diff(sums[edges]) / counts
        moved = (levels[1:] + levels[:-1]) / 2
        if np.array_equal(moved, thresholds):
            break
        thresholds = moved
    return thresholds


def analyse(vectors: np.ndarray, planes: HashPlanes | None, units: int = 1) -> tuple[float, float]:
    """Estimate (r_c, NMSE) of clustering float32 vectors [n, S, L]; planes None stands for ``exact``.

    r_c is clusters / vectors; NMSE is sum ||x - centroid||^2 / sum ||x - mean of its unit and segment||^2
    over the finite vectors. Vectors of zeros and non-finite ones cluster as in contracts 4 and 5; windows
    in the padding count as zeros.

    Args:
        units: the vectors are this many equal runs, clustered apart (scope ``image``: the number of images).

    Raises:
        ValueError: n is not a multiple of units, or there are no vectors.
    """
    n, S, L = vectors.shape
    if not n or n % units:
        raise ValueError(f"{n} vectors cannot be cut into {units} units")
    finite = np.isfinite(vectors).all(axis=2)
    clean = np.where(finite[..., None], vectors, np.float32(0))
    if planes is None:
        rows = np.ascontiguousarray(clean).reshape(n * S, L).view(np.dtype((np.void, 4 * L))).reshape(-1)
        keys = np.unique(rows, return_inverse=True)[1].reshape(n, S)
    else:
        keys = planes.keys(clean) + 1
        keys[(clean == 0).all(axis=2)] = 0
    group = np.arange(units).repeat(n // units)[:, None] * S + np.arange(S)
    labels = (group * (int(keys.max()) + 1) + keys)[finite]
    members = clean[finite].astype(np.float64)
    alone = int(np.count_nonzero(~finite))
    if not len(members):
        return 1.0, 0.0
    power = float(np.sum(members**2))
    clusters, kept = _between(members, labels)
    error = max(0.0, power - kept)
    variance = max(0.0, power - _between(members, group[finite])[1])
    nmse = 0.0 if planes is None or error == 0 else error / variance if variance > 0 else 0.0
    return (clusters + alone) / (n * S), nmse


def _between(members: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """Number of groups of equal labels, and the sum over groups of ||sum of members||^2 / size."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(members[order], starts, axis=0)
    return len(starts), float(np.sum(sums**2 / counts[:, None]))
