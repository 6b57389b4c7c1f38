"""Least squares with coefficients that are not negative."""

from __future__ import annotations

import numpy as np


def nonnegative_least_squares(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """x >= 0 [n] that minimises ||rows x - wanted||, rows [m, n] (Lawson, Hanson, 1974, algorithm 23.10).

    Columns may differ by orders of magnitude; those of zeros get 0.
    """
    scale = np.linalg.norm(rows, axis=0)
    columns = rows / np.where(scale > 0, scale, 1.0)
    n = columns.shape[1]
    x, free = np.zeros(n), np.zeros(n, bool)
    small = 1e-10 * max(1.0, float(np.linalg.norm(wanted)))
    for _ in range(3 * n):
        gradient = np.where(free, -np.inf, columns.T @ (wanted - columns @ x))
        if not n or gradient.max() <= small:
            break
        free[gradient.argmax()] = True
        while True:
            best = np.zeros(n)
            best[free] = np.linalg.lstsq(columns[:, free], wanted, rcond=None)[0]
            if best[free].min(initial=1.0) > 0:
                break
            falling = free & (best <= 0)
            step = np.min(x[falling] / (x[falling] - best[falling]))
            x = x + step * (best - x)
            free &= x > small
            x[~free] = 0.0
        x = best
    return np.where(scale > 0, x / np.where(scale > 0, scale, 1.0), 0.0)
