"""What the cost model said beside what was measured, for the report."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from adr_tvm.report.formats import percent, setting_text, significant
from adr_tvm.report.results import NetworkResult


@dataclass(frozen=True)
class Prediction:
    """One kernel of one layer: milliseconds measured and predicted."""

    layer: str
    kernel: str
    measured_ms: float
    predicted_ms: float

    @property
    def ratio(self) -> float:
        """Predicted / measured."""
        return self.predicted_ms / self.measured_ms


def predictions(result: NetworkResult) -> list[Prediction]:
    """Of all layers that were measured, the dense kernel first."""
    found = []
    for layer in result.layers:
        kernels = [("dense", layer.time_dense_ms, layer.predicted_dense_ms)]
        kernels += [(setting_text(each.setting), each.time_ms, each.predicted_ms) for each in layer.candidates]
        for name, measured, predicted in kernels:
            if measured and predicted:
                found.append(Prediction(layer.layer, name, measured, predicted))
    return found


def verdict(found: list[Prediction]) -> str:
    """One sentence: how far predictions are off in general, and from each other."""
    if not found:
        return ""
    middle = statistics.median(each.ratio for each in found)
    spread = statistics.median(abs(each.ratio / middle - 1) for each in found)
    return (
        f"{len(found)} kernels: predicted times are {significant(middle)} of the measured in the median, and "
        f"{percent(spread)} off that."
    )
