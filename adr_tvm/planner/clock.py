"""Where a search takes times from: this machine's, measured. ``PredictedClock`` is for code that does not run here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import tvm

from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.findings import threads_in_force
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.measure import time_in_place, time_kernels
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.network_time import NetworkTimes, time_network
from adr_tvm.report.results import Timings

Batch = Mapping[str, np.ndarray]


class Clock(Protocol):
    """Seconds of kernels, layers and networks.

    Attributes:
        predicted: whether they are not measured.
        threads: that they are of.
    """

    predicted: bool

    @property
    def threads(self) -> int:
        """See the class."""

    def kernels(
        self, network: PlanningNetwork, layer: str, kernels: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, float]:
        """Seconds of some kernels of one layer on the input that the dense network gives it, by name."""

    def layers(
        self, network: PlanningNetwork, chosen: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, tuple[float, float]]:
        """(dense, reuse) seconds of chosen layers in runs of the network with all of them."""

    def network(
        self,
        executable: tvm.runtime.Executable,
        checked: CheckedModel,
        batch: Batch | None,
        plan: ReusePlan,
        seed: int,
    ) -> NetworkTimes:
        """Times of the whole network on a batch (None: random numbers)."""

    def note(self, images: int) -> str:
        """What to say of the times of a batch."""


class MeasuredClock:
    """Times of this machine.

    Args:
        timings: those known already; new ones are put there.
    """

    predicted = False

    def __init__(self, timings: Timings):
        self.timings = timings

    @property
    def threads(self) -> int:
        """Threads that kernels run on."""
        return threads_in_force()

    def kernels(
        self, network: PlanningNetwork, layer: str, kernels: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, float]:
        """See ``Clock``."""
        return time_kernels(network, layer, kernels, batch, self.timings)

    def layers(
        self, network: PlanningNetwork, chosen: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, tuple[float, float]]:
        """See ``Clock``."""
        return time_in_place(network, chosen, batch, self.timings)

    def network(
        self,
        executable: tvm.runtime.Executable,
        checked: CheckedModel,
        batch: Batch | None,
        plan: ReusePlan,
        seed: int,
    ) -> NetworkTimes:
        """See ``Clock``."""
        return time_network(executable, checked, batch, plan, seed, self.timings)

    def note(self, images: int) -> str:
        """See ``Clock``."""
        with_threads = f", with {self.threads} thread{'' if self.threads == 1 else 's'}" if self.threads else ""
        return f"Times are of one run on a batch of {images}{with_threads}."
