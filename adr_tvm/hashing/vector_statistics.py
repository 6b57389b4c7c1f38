"""Streaming statistics of neuron vectors, from which hash planes are fitted.

Vectors whose entries are all zero are left out: they form a cluster of their own, whatever the planes
(``docs/algorithm.md``, contract 4), so planes have nothing to tell apart there and must not be drawn
towards zero. Vectors with NaN or Inf are left out for the same reason (contract 5).
"""

from __future__ import annotations

import numpy as np

COVARIANCE_MAX_LENGTH = 1024
SAMPLE_BYTES = 32 << 20
SMALL_LENGTH = 64
SMALL_WORK = 59000


class VectorStatistics:
    """Count, mean, covariance and a uniform sample of the vectors of each segment, in bounded memory.

    The sample is a reservoir (algorithm R: Vitter, ACM Trans. Math. Software 1985), the covariance is
    merged block by block (Chan, Golub, LeVeque, COMPSTAT 1982). The sample does not depend on how the
    stream is cut into blocks.

    Attributes:
        count: int64 [S], vectors seen that are finite and not zero.
        mean: float64 [S, L].
        scatter: float64 [S, L, L], sum of (x - mean)(x - mean)^T; None where L > 1024, where planes come from
            the sample.
    """

    def __init__(self, segments: int, length: int, seed: int, sample_size: int = 4096) -> None:
        """Segments S of length L; keep at most sample_size vectors a segment, and 32 MiB of them in all."""
        if segments < 1 or length < 1 or sample_size < 1:
            raise ValueError(f"segments {segments}, length {length}, sample_size {sample_size}: expected >= 1")
        self.count = np.zeros(segments, np.int64)
        self.mean = np.zeros((segments, length))
        self.scatter = np.zeros((segments, length, length)) if length <= COVARIANCE_MAX_LENGTH else None
        capacity = min(sample_size, max(256, SAMPLE_BYTES // (segments * length * 4)))
        self._reservoir = np.zeros((segments, capacity, length), np.float32)
        self._generators = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(segments)]
        self._spectrum: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def segments(self) -> int:
        """Number of segments S."""
        return len(self.count)

    @property
    def length(self) -> int:
        """Length L of a vector."""
        return self.mean.shape[1]

    def sample(self, segment: int) -> np.ndarray:
        """A uniform sample of the vectors of one segment, float32 [n, L]."""
        return self._reservoir[segment, : self.count[segment]]

    def covariance(self, segment: int) -> np.ndarray:
        """Covariance of one segment, float64 [L, L]; zeros before the first vector.

        Raises:
            ValueError: L > 1024, where no covariance is kept.
        """
        if self.scatter is None:
            raise ValueError(f"no covariance is kept for vectors of length {self.length}")
        return self.scatter[segment] / max(1, self.count[segment])

    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues [S, L], ascending, and eigenvectors [S, L, L] of the covariances; found once.

        Raises:
            ValueError: L > 1024, where no covariance is kept.
        """
        if self._spectrum is None:
            values, vectors = np.linalg.eigh(np.stack([self.covariance(s) for s in range(self.segments)]))
            self._spectrum = values, vectors
        return self._spectrum

    def only(self, segments: np.ndarray) -> VectorStatistics:
        """The statistics of some segments, for planes; not to be updated."""
        some = VectorStatistics(len(segments), self.length, 0, 1)
        some.count, some.mean, some._reservoir = self.count[segments], self.mean[segments], self._reservoir[segments]
        some.scatter = None if self.scatter is None else self.scatter[segments]
        return some

    def update(self, vectors: np.ndarray) -> None:
        """Take in float32 vectors [n, S, L].

        Raises:
            ValueError: wrong shape.
        """
        if vectors.ndim != 3 or vectors.shape[1:] != self.mean.shape:
            raise ValueError(f"vectors are {vectors.shape}, expected [n, {self.segments}, {self.length}]")
        self._spectrum = None
        usable = np.isfinite(vectors).all(axis=2) & (vectors != 0).any(axis=2)
        for s in range(self.segments):
            block = vectors[usable[:, s], s]
            if len(block):
                self._sample(s, block)
                self._merge(s, block.astype(np.float64))

    def _sample(self, s: int, block: np.ndarray) -> None:
        capacity = self._reservoir.shape[1]
        rank = self.count[s] + np.arange(len(block))
        drawn = (self._generators[s].random(len(block)) * (rank + 1)).astype(np.int64)
        slot = np.where(rank < capacity, rank, drawn)
        taken = slot < capacity
        # Of several vectors drawn for one slot the last stays, as if they had come one by one.
        slots, last = np.unique(slot[taken][::-1], return_index=True)
        self._reservoir[s, slots] = block[taken][::-1][last]

    def _merge(self, s: int, block: np.ndarray) -> None:
        n, m = int(self.count[s]), len(block)
        centre = block.mean(axis=0)
        shift = centre - self.mean[s]
        if self.scatter is not None:
            offsets = block - centre
            self.scatter[s] += gram(offsets) + np.outer(shift, shift) * (n * m / (n + m))
        self.mean[s] += shift * (m / (n + m))
        self.count[s] = n + m


def gram(rows: np.ndarray) -> np.ndarray:
    """rows^T rows [L, L] of rows [n, L].

    Small L goes to BLAS in runs too small for it to start threads: on a busy machine that took 144 ms in
    place of 0.06 ms for 3025 x 24. It also keeps the bytes the same at any number of BLAS threads.
    """
    n, L = rows.shape
    if L > SMALL_LENGTH:
        return rows.T @ rows
    run = SMALL_WORK // (L * (L + 1))
    runs = np.pad(rows, ((0, -n % run), (0, 0))).reshape(-1, run, L)
    return np.matmul(runs.transpose(0, 2, 1), runs).sum(axis=0)
