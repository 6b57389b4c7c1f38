"""Where a search takes times from: this machine's, measured.

For code that does not run here ``BoardClock`` measures it where it does; ``PredictedClock`` is for where there is no
board.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import numpy as np
import tvm

from adr_tvm._tvm import host_cpu
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.findings import threads_in_force
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.measure import sample_in_place, sample_kernels, time_in_place, time_kernels
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.network_time import NetworkTimes, example, sample_entries, time_network
from adr_tvm.report.results import Timings

Batch = Mapping[str, np.ndarray]


class Clock(Protocol):
    """Seconds of kernels, layers and networks.

    Attributes:
        predicted: whether they are not measured.
        threads: that they are of.
        cpu: LLVM's name of the processor, or the maker's of a board, that they are of; empty if they are not measured.
    """

    predicted: bool
    cpu: str

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
        self.timings, self.cpu = timings, host_cpu()

    @property
    def threads(self) -> int:
        """Threads that kernels run on."""
        return threads_in_force()

    def kernels(
        self, network: PlanningNetwork, layer: str, kernels: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, float]:
        """See ``Clock``."""
        return time_kernels(layer, kernels, partial(sample_kernels, network, layer, batch), self.timings)

    def layers(
        self, network: PlanningNetwork, chosen: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, tuple[float, float]]:
        """See ``Clock``."""
        return time_in_place(chosen, partial(sample_in_place, network, batch), self.timings)

    def network(
        self,
        executable: tvm.runtime.Executable,
        checked: CheckedModel,
        batch: Batch | None,
        plan: ReusePlan,
        seed: int,
    ) -> NetworkTimes:
        """See ``Clock``."""
        inputs = example(checked, batch, seed)
        return time_network(plan, partial(sample_entries, executable, inputs), self.timings)

    def note(self, images: int) -> str:
        """See ``Clock``."""
        return f"Times are of one run on a batch of {images}{with_threads(self.threads)}."


def with_threads(count: int) -> str:
    """In a note: a number of threads; nothing where it is not known."""
    return f", with {count} thread{'' if count == 1 else 's'}" if count else ""
