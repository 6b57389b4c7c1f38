"""Times of code that does not run here: a cost model's, from the clusters that the same layers count on this machine.

Which vectors are equal follows from the data, not from the processor, so a build for this machine counts clusters (and
verifies the accuracy) in place of one for the target. A unit that ran dense takes its dense time and, if it counted
first, the time of counting. Only convolutions and matrix products have a prediction: a network's time is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from adr_tvm.frontend.dense_check import random_inputs
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.geometry import ConvGeometry
from adr_tvm.passes.expose_counts import ENTRY
from adr_tvm.passes.mark_candidates import Candidate
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.clock import Batch
from adr_tvm.planner.cost import CostModel
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.network_time import NetworkTimes
from adr_tvm.settings import ReuseSetting


class PredictedClock:
    """See the module.

    Args:
        cost: the target's cost model.
        target: its name, for the report.
        candidates: the network's layers.
    """

    predicted, cpu = True, ""

    def __init__(self, cost: CostModel, target: str, candidates: Sequence[Candidate]):
        self.cost, self.target = cost, target
        self.geometries = {c.layer: c.geometry for c in candidates if c.geometry is not None}

    @property
    def threads(self) -> int:
        """Threads that the times are of."""
        return self.cost.threads

    def kernels(
        self, network: PlanningNetwork, layer: str, kernels: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, float]:
        """See ``Clock``."""
        x = inputs_of(network, [layer], batch)[layer]
        return {name: self._kernel(layer, kernel, x, _images(batch)) for name, kernel in kernels.items()}

    def layers(
        self, network: PlanningNetwork, chosen: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, tuple[float, float]]:
        """See ``Clock``."""
        with network.using(chosen):
            inputs = inputs_of(network, list(chosen), batch)
        images = _images(batch)
        return {
            layer: (
                self.cost.dense_seconds(self.geometries[layer], images),
                self._kernel(layer, kernel, inputs[layer], images),
            )
            for layer, kernel in chosen.items()
        }

    def network(
        self,
        executable: tvm.runtime.Executable,
        checked: CheckedModel,
        batch: Batch | None,
        plan: ReusePlan,
        seed: int,
    ) -> NetworkTimes:
        """See ``Clock``."""
        arrays = random_inputs(checked.inputs, 1, seed) if batch is None else batch
        images = _images(arrays)
        times = {layer: self.cost.dense_seconds(g, images) for layer, g in self.geometries.items()}
        dense = sum(times.values())
        if plan.reused:
            inputs = [tvm.runtime.tensor(arrays[spec.name]) for spec in checked.inputs]
            stats = relax.VirtualMachine(executable, tvm.cpu())[ENTRY](*inputs)[1]
            for (layer, setting), found in zip(plan.reused.items(), stats, strict=True):
                times[layer] = self.seconds(self.geometries[layer], setting, found.numpy(), images)
        main = sum(times.values())
        return NetworkTimes(dense, main, main)

    def seconds(self, g: ConvGeometry, setting: ReuseSetting, stats: np.ndarray, images: int) -> float:
        """Seconds of a layer with reuse.

        Args:
            stats: int [units, 2], clusters of each unit and whether it reused.
        """
        clusters, reused = stats[:, 0].astype(np.float64), stats[:, 1] != 0
        vectors = g.vectors(setting) * images / len(stats)
        dense = self.cost.dense_seconds(g, images)
        counting = self.cost.reuse_seconds(g, setting, 0.0, images)
        left = np.where(clusters > 0, dense + counting, dense)
        found = [self.cost.reuse_seconds(g, setting, float(n) / vectors, images) for n in clusters]
        return float(np.where(reused, found, left).mean())

    def note(self, images: int) -> str:
        """See ``Clock``."""
        plural = "" if self.threads == 1 else "s"
        return (
            f"Times are predicted, not measured: nothing ran on {self.target}. They are the convolutions' and matrix "
            f"products' of one run on a batch of {images} with {self.threads} thread{plural}, by the cost model "
            f"({self.cost.source}). Accuracy and clusters are measured, with a build for this machine."
        )

    def _kernel(self, layer: str, kernel: LayerKernel, x: Any, images: int) -> float:
        g = self.geometries[layer]
        if kernel.setting is None:
            return self.cost.dense_seconds(g, images)
        return self.seconds(g, kernel.setting, kernel(x)[1].numpy(), images)


def inputs_of(network: PlanningNetwork, layers: Sequence[str], batch: Batch) -> dict[str, Any]:
    """Input tensors of some layers in a run of the network."""
    seen: dict[str, Any] = {}

    def hook(layer: str, x: Any) -> None:
        if layer in layers:
            seen[layer] = tvm.runtime.tensor(x.numpy())

    with network.watching(hook):
        network.run(batch)
    return seen


def _images(batch: Batch) -> int:
    return len(next(iter(batch.values())))
