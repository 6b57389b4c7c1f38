"""Times of this machine's GPU, by its own clock: CUDA events around the kernels (TVM's timer of the device).

Clusters and accuracy are those of a build for the processor: which vectors are equal follows from the data. A layer is
timed by itself, on the input that the network gives it; its kernels run one after the other as they do in the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from adr_tvm.build import build_plan, code_objects_of
from adr_tvm.frontend.onnx_model import CheckedModel
from adr_tvm.plan import ReusePlan
from adr_tvm.planner.clock import Batch
from adr_tvm.planner.layer_kernel import LayerKernel
from adr_tvm.planner.measure import MOST_REPEATS, REPEAT_SECONDS, REPEATS, time_in_place, time_kernels
from adr_tvm.planner.network import PlanningNetwork
from adr_tvm.planner.network_time import (
    LEAST_ROUNDS,
    MOST_ROUNDS,
    ROUNDS_SECONDS,
    NetworkTimes,
    example,
    time_network,
)
from adr_tvm.planner.predicted_clock import inputs_of
from adr_tvm.precision import Precision
from adr_tvm.report.results import Timings
from adr_tvm.targets import TargetEntry
from adr_tvm.timing import take_turns


class CudaClock:
    """See the module.

    Args:
        name: the GPU's.
        entry, target: what code is compiled for.
        mod: the canonical module.
        timings: those known already; new ones are put there.
        precision: data type that code runs in; None: fp32.
    """

    predicted, threads = False, 1

    def __init__(
        self,
        name: str,
        entry: TargetEntry,
        target: Target,
        mod: tvm.IRModule,
        timings: Timings,
        precision: Precision | None = None,
    ):
        self.cpu, self.entry, self.target, self.mod, self.timings = name, entry, target, mod, timings
        self.device, self.precision = tvm.cuda(), precision

    def kernels(
        self, network: PlanningNetwork, layer: str, kernels: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, float]:
        """See ``Clock``."""
        return time_kernels(layer, kernels, partial(self._kernels, network, layer, batch), self.timings)

    def layers(
        self, network: PlanningNetwork, chosen: Mapping[str, LayerKernel], batch: Batch
    ) -> dict[str, tuple[float, float]]:
        """See ``Clock``."""

        def sample(chosen: Mapping[str, LayerKernel]) -> dict[str, tuple[list[float], list[float]]]:
            with network.using(chosen):
                inputs = inputs_of(network, list(chosen), batch)
            found = {}
            for layer, kernel in chosen.items():
                times = self._timed(inputs[layer], {"dense": network.dense[layer], "reuse": kernel})
                found[layer] = times["dense"], times["reuse"]
            return found

        return time_in_place(chosen, sample, self.timings)

    def network(
        self,
        executable: tvm.runtime.Executable,
        checked: CheckedModel,
        batch: Batch | None,
        plan: ReusePlan,
        seed: int,
    ) -> NetworkTimes:
        """See ``Clock``; ``executable``, which is of the processor, is built anew for the GPU."""
        return time_network(plan, partial(self._entries, plan, example(checked, batch, seed)), self.timings)

    def note(self, images: int) -> str:
        """See ``Clock``."""
        return (
            f"Times are of one run on a batch of {images}, measured on {self.cpu} with CUDA events, without copies to "
            "the GPU and back. Accuracy and clusters are measured with a build for this machine's processor."
        )

    def _kernels(
        self, network: PlanningNetwork, layer: str, batch: Batch, kernels: Mapping[str, LayerKernel]
    ) -> dict[str, list[float]]:
        return self._timed(inputs_of(network, [layer], batch)[layer], kernels)

    def _timed(self, x: Any, kernels: Mapping[str, LayerKernel]) -> dict[str, list[float]]:
        """Seconds of kernels of one layer, in turn."""
        given = tvm.runtime.tensor(x.numpy(), self.device)
        runs = {}
        for name, kernel in kernels.items():
            with code_objects_of(self.entry):
                machine = relax.VirtualMachine(kernel.build(self.target, self.precision), self.device)
            runs[name] = self._run(machine, "main", [given])
        return take_turns(lambda name: runs[name](), list(runs), REPEATS, MOST_REPEATS, REPEAT_SECONDS)

    def _entries(self, plan: ReusePlan, arrays: Sequence[np.ndarray], entries: Sequence[str]) -> dict[str, list[float]]:
        with code_objects_of(self.entry):
            library = build_plan(self.mod, plan, self.target, precision=self.precision)
        machine = relax.VirtualMachine(library, self.device)
        inputs = [tvm.runtime.tensor(array, self.device) for array in arrays]
        runs = {entry: self._run(machine, entry, inputs) for entry in entries}
        return take_turns(lambda name: runs[name](), entries, LEAST_ROUNDS, MOST_ROUNDS, ROUNDS_SECONDS)

    def _run(self, machine: relax.VirtualMachine, entry: str, inputs: Sequence[Any]) -> Callable[[], float]:
        """What runs an entry twice and returns the seconds of the second run."""
        timed = machine.time_evaluator(entry, self.device, number=1, repeat=1)
        return lambda: float(timed(*inputs).results[0])
