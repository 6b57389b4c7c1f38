"""Activations that a convolution or dense kernel applies in its epilogue, after the bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

FLOAT_MAX = 3.4e38


@dataclass(frozen=True)
class Activation:
    """An elementwise function of the epilogue.

    Attributes:
        kind: ``linear`` y = x; ``clip`` y = min(max(x, low), high); ``leaky_relu`` y = x > 0 ? x : slope * x.
        low, high: limits of ``clip``.
        slope: factor of ``leaky_relu`` for x <= 0.
    """

    kind: Literal["linear", "clip", "leaky_relu"] = "linear"
    low: float = -FLOAT_MAX
    high: float = FLOAT_MAX
    slope: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "clip", "leaky_relu"):
            raise ValueError(f"activation is {self.kind!r}, expected linear, clip or leaky_relu")
        if not self.low <= self.high:
            raise ValueError(f"clip limits are {self.low} and {self.high}, expected low <= high")

    @classmethod
    def relu(cls) -> Activation:
        """max(x, 0)."""
        return cls("clip", low=0.0)

    @classmethod
    def relu6(cls) -> Activation:
        """min(max(x, 0), 6)."""
        return cls("clip", low=0.0, high=6.0)

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The function of x, in the dtype of x. NaN stays NaN."""
        if self.kind == "clip":
            return np.clip(x, x.dtype.type(self.low), x.dtype.type(self.high))
        if self.kind == "leaky_relu":
            return np.where(x > 0, x, x * x.dtype.type(self.slope))
        return x
