"""What a choice of kernels does to the network's output, on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from adr_tvm.calibration import Batch, CalibrationSet
from adr_tvm.metrics import Metric, Nmse, choose_metric
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.network import PlanningNetwork

CACHE_BYTES = 256 * 1024 * 1024


class DenseOutputs:
    """Batches of a set with the dense network's outputs, kept in memory while they are small.

    Args:
        network: the network.
        data: batches.
        images: at most this many; None takes all.
    """

    def __init__(self, network: PlanningNetwork, data: CalibrationSet, images: int | None = None):
        self.network, self.data = network, data
        self.images = len(data) if images is None else min(images, len(data))
        self._kept: list[np.ndarray] = []
        self._bytes = 0

    def __iter__(self) -> Iterator[tuple[Batch, np.ndarray]]:
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
                    self._bytes += dense.nbytes
            yield (inputs, labels), dense


def output_errors(
    network: PlanningNetwork, kernels: Mapping[str, LayerKernel], data: DenseOutputs, metric: Metric
) -> tuple[Metric, float]:
    """The metric, and the NMSE of the outputs, of the network with some layers replaced."""
    nmse = Nmse()
    with network.using({}):
        for (inputs, labels), dense in data:
            with network.using(kernels):
                out = network.run(inputs)
            metric.update(dense, out, labels)
            nmse.update(dense, out)
    return metric, nmse.value()


def new_metric(name: str, data: DenseOutputs) -> Metric:
    """A fresh metric of a kind that fits the network's outputs."""
    (_, labels), dense = next(iter(data))
    return choose_metric(name, labels is not None, dense)
