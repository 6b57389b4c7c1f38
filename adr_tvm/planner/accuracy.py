"""What a choice of kernels does to the network's outputs, on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from adr_tvm.data.calibration import Batch, CalibrationSet
from adr_tvm.metrics.metrics import Metric, Nmse, choose_metric, class_scores
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.network import PlanningNetwork

CACHE_BYTES = 256 * 1024 * 1024


class DenseOutputs:
    """Batches of a set with the dense network's outputs, kept in memory while they are small.

    Args:
        network: the network.
        data: batches.
        images: at most this many, rounded up to whole batches; None takes all.
    """

    def __init__(self, network: PlanningNetwork, data: CalibrationSet, images: int | None = None):
        self.network, self.data = network, data
        self.images = len(data) if images is None else min(images, len(data))
        self._kept: list[list[np.ndarray]] = []
        self._bytes = 0

    def __iter__(self) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        done = 0
        for i, (inputs, labels) in enumerate(self.data):
            if done >= self.images:
                return
            done += len(next(iter(inputs.values())))
            if i < len(self._kept):
                dense = self._kept[i]
            else:
                dense = self.network.run(inputs)
                if i == len(self._kept) and self._bytes < CACHE_BYTES:
                    self._kept.append(dense)
                    self._bytes += sum(array.nbytes for array in dense)
            yield (inputs, labels), dense


class OutputMetric:
    """A metric of all outputs of a network: the worst of them counts.

    The first output decides which metric it is. Top-1 or agreement of another output that is no classifier's is
    replaced by its NMSE, under the same budget.

    Args:
        metrics: one for each output.
    """

    def __init__(self, metrics: Sequence[Metric]):
        self.metrics = list(metrics)
        self.name = self.metrics[0].name

    def update(self, dense: Sequence[np.ndarray], out: Sequence[np.ndarray], labels: np.ndarray | None) -> None:
        """Take in the outputs of some images."""
        for metric, before, after in zip(self.metrics, dense, out, strict=True):
            metric.update(before, after, labels)

    @property
    def images(self) -> int:
        """Images seen."""
        return self.metrics[0].images

    def drop(self) -> float:
        """What the budget limits, of the worst output."""
        return self._worst([metric.drop() for metric in self.metrics])

    def bound(self) -> float:
        """One-sided 90 % bound on ``drop`` of the output where it is worst."""
        return self._worst([metric.bound() for metric in self.metrics])

    def keeps(self, budget: float) -> bool:
        """Whether the drop, without any margin, keeps the budget."""
        return self.drop() >= budget if self.name == "psnr" else self.drop() <= budget

    def within(self, budget: float) -> bool:
        """Whether the bound keeps the budget on every output."""
        return all(metric.within(budget) for metric in self.metrics)

    def images_needed(self, budget: float) -> int | None:
        """About how many images would show the budget kept at the observed rates; None: no number would."""
        needed = [metric.images_needed(budget) for metric in self.metrics]
        return None if None in needed else max(n for n in needed if n is not None)

    def _worst(self, values: list[float]) -> float:
        return min(values) if self.name == "psnr" else max(values)


def output_errors(
    network: PlanningNetwork, kernels: Mapping[str, LayerKernel], data: DenseOutputs, metric: OutputMetric
) -> tuple[OutputMetric, float]:
    """The metric, and the largest NMSE of an output, of the network with some layers replaced."""
    errors: list[Nmse] = []
    with network.using({}):
        for (inputs, labels), dense in data:
            with network.using(kernels):
                outputs = network.run(inputs)
            metric.update(dense, outputs, labels)
            errors = errors or [Nmse() for _ in outputs]
            for nmse, before, after in zip(errors, dense, outputs, strict=True):
                nmse.update(before, after)
    return metric, max(nmse.value() for nmse in errors)


def new_metric(name: str, data: DenseOutputs) -> OutputMetric:
    """A fresh metric of a kind that fits the network's first output.

    Raises:
        ValueError: top1 or agreement does not fit the output, or top1 lacks labels.
    """
    (_, labels), dense = next(iter(data))
    first = choose_metric(name, labels is not None, dense[0])
    others = [
        Nmse() if first.name in ("top1", "agreement") and class_scores(out) is None else type(first)()
        for out in dense[1:]
    ]
    return OutputMetric([first, *others])
