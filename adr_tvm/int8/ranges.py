"""Scales of activations from calibration data, streamed: a histogram of magnitudes for each tensor.

A symmetric int8 tensor has one scale; what lies beyond 127 of it is clipped. The scale chosen is that with the smallest
mean squared error of the calibration values: rounding within the range, clipping beyond it.
"""

from __future__ import annotations

import numpy as np

BINS = 2048
CANDIDATES = 128
LEVELS = 127


class RangeObserver:
    """Magnitudes of one tensor.

    Values are counted in equal bins from 0 to ``limit``, a power of two that doubles, pairs of bins joined, when a
    value exceeds it; so no data are kept.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def update(self, values: np.ndarray) -> None:
        """Count values, any shape; zeros, which every scale holds, and those that are not finite are left out."""
        magnitudes = np.abs(np.asarray(values, np.float32).reshape(-1))
        magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
        if not magnitudes.size:
            return
        largest = float(magnitudes.max())
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = float(2.0 ** np.ceil(np.log2(largest)))
        while self.limit < largest:
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([joined, np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        bins = np.minimum(magnitudes * (BINS / self.limit), BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=BINS)

    def scale(self) -> float:
        """Real value of one step; 1 / 127 for a tensor that was always 0."""
        if self.largest == 0.0:
            return 1 / LEVELS
        tops = self.largest * np.arange(1, CANDIDATES + 1) / CANDIDATES
        return float(min(tops, key=self._error)) / LEVELS

    def _error(self, top: float) -> float:
        """Sum of squared errors where ``top`` is 127 steps."""
        centres, step = (np.arange(BINS) + 0.5) * (self.limit / BINS), top / LEVELS
        held = np.minimum(np.rint(centres / step), LEVELS) * step
        return float(self.counts @ np.square(centres - held))
