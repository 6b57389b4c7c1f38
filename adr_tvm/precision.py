"""Data types that a network can run in, beside fp32: how activations and weights are kept, and how products are made.

Sums are fp32, but on Arm cores, which add up some of a sum in fp16 first (``schedules/dense_conv2d.py``).
``tf32`` keeps fp32 tensors and rounds the factors of a product to 10 bits of mantissa; ``bf16`` and ``fp16`` keep
tensors in 16 bits. Network inputs and outputs stay fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TF32_DROPPED = 13  # bits of an fp32 mantissa that tf32 lacks


@dataclass(frozen=True)
class Precision:
    """A data type.

    Attributes:
        name: as on the command line.
        storage: element type of activations and weights.
        architecture: the oldest GPU whose tensor cores multiply it.
        largest: finite value.
    """

    name: str
    storage: str
    architecture: str
    largest: float

    @property
    def bits(self) -> int:
        """Of an element in memory."""
        return 32 if self.storage == "float32" else 16

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """fp32 values as factors have them: nearest, ties to even (tf32: away from zero); fp32 or ``storage``."""
        import numpy as np

        if self.name == "tf32":
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
            half = np.uint32(1 << (TF32_DROPPED - 1))
            nearest = (bits + half) & ~np.uint32((1 << TF32_DROPPED) - 1)
            return np.where(np.isfinite(values), nearest.view(np.float32), values)
        import ml_dtypes

        with np.errstate(over="ignore"):
            return np.asarray(values).astype(np.float16 if self.name == "fp16" else ml_dtypes.bfloat16)


PRECISIONS = {
    each.name: each
    for each in (
        Precision("tf32", "float32", "sm_80", 3.4028234663852886e38),
        Precision("bf16", "bfloat16", "sm_80", 3.3895313892515355e38),
        Precision("fp16", "float16", "sm_75", 65504.0),
    )
}
