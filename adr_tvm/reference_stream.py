"""NumPy reference of clusters that persist over batches: the oracle of the kernel that takes them over.

Clause 16 of ``docs/algorithm.md``. A dict from key to centroid for each segment; who is least recently used is found by
sorting.
"""

from __future__ import annotations

import numpy as np

from adr_tvm.reference_ids import hash_keys


class ReferenceStream:
    """The table of one layer; a new one is empty.

    Args:
        planes: [S, L, H].
        thresholds: [S, H].
        slots: centroids of a segment that persist at most.

    Attributes:
        now: batches seen.
        tables: for each segment {key: (centroid float64 [L], batch that used it last)}.
        streamed: int64 [S], clusters of the last batch that took over a centroid.
    """

    def __init__(self, planes: np.ndarray, thresholds: np.ndarray, slots: int) -> None:
        self._planes, self._thresholds, self._slots = planes, thresholds, slots
        self.now = 0
        self.tables: list[dict[int, tuple[np.ndarray, int]]] = [{} for _ in planes]
        self.streamed = np.zeros(len(planes), np.int64)

    def begin(self) -> None:
        """The next batch."""
        self.now += 1
        self.streamed[:] = 0

    def take_over(self, s: int, first: np.ndarray, means: np.ndarray) -> np.ndarray:
        """Centroids float64 [clusters, L] of a segment's clusters in this batch.

        Args:
            s: segment.
            first: float32 [clusters, L], the first member of each.
            means: float64 [clusters, L].
        """
        table, used = self.tables[s], means.copy()
        keys = hash_keys(first[:, None], self._planes[s : s + 1], self._thresholds[s : s + 1])[:, 0]
        for c in np.flatnonzero((first != 0).any(axis=1)):
            key = int(keys[c])
            if key in table:
                used[c] = table[key][0]
                self.streamed[s] += 1
            table[key] = used[c], self.now
        kept = sorted(table, key=lambda key: (-table[key][1], key))[: self._slots]
        self.tables[s] = {key: table[key] for key in kept}
        return used
